"""`thumbtune synth`: make thumbs whose truth is known."""

from __future__ import annotations

import typer

app = typer.Typer(help="Make thumbs whose truth is known.", no_args_is_help=True)
