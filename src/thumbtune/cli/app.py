"""The command tree. Each group lives in its own file and imports what is heavy inside its functions."""

from __future__ import annotations

import typer

from thumbtune.cli import data, synth
from thumbtune.version import __version__

app = typer.Typer(
    name="thumbtune",
    help="Thumbs in, better model out: KTO fine-tuning from 👍 and 👎, with an honest comparison.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(synth.app, name="synth")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"thumbtune {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options that stand before the command."""
