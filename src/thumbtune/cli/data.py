"""`thumbtune data`: look at a file of thumbs before training on it."""

from __future__ import annotations

import typer

app = typer.Typer(help="Look at a file of thumbs before training on it.", no_args_is_help=True)
