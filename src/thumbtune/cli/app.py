"""The command tree. Each group lives in its own file and imports what is heavy inside its functions."""

from __future__ import annotations

import typer

from thumbtune.cli import data, loop, store, synth
from thumbtune.cli.compare import COMPARE_EXAMPLES, DEMO_EXAMPLES, compare, demo
from thumbtune.cli.report import report
from thumbtune.cli.serve import EXAMPLES as SERVE_EXAMPLES
from thumbtune.cli.serve import serve
from thumbtune.cli.simulate import SIMULATE_EXAMPLES, simulate
from thumbtune.cli.snapshot import EXAMPLES as SNAPSHOT_EXAMPLES
from thumbtune.cli.snapshot import EXPLAIN_EXAMPLES, explain, snapshot
from thumbtune.cli.train import EXAMPLES as TRAIN_EXAMPLES
from thumbtune.cli.train import train
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
app.command(
    "train",
    epilog=TRAIN_EXAMPLES,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train)
app.command("compare", epilog=COMPARE_EXAMPLES)(compare)
app.command("report")(report)
app.command("serve", epilog=SERVE_EXAMPLES)(serve)
app.command("export")(store.export)
app.command("snapshot", epilog=SNAPSHOT_EXAMPLES)(snapshot)
app.command("snapshot-explain", epilog=EXPLAIN_EXAMPLES)(explain)
app.add_typer(store.keys, name="keys")
app.add_typer(store.models, name="models")
app.add_typer(store.store, name="store")
app.command("cycle", epilog=loop.CYCLE_EXAMPLES)(loop.cycle)
app.add_typer(loop.canary, name="canary")
app.command("forget")(loop.forget)
app.command("simulate", epilog=SIMULATE_EXAMPLES)(simulate)
app.command("demo", epilog=DEMO_EXAMPLES)(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"thumbtune {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options that stand before the command."""
    ctx.call_on_close(store.open_stores.close)
