"""`thumbtune data`: look at a file of thumbs before training on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thumbtune.data.chat import TruncationSide

if TYPE_CHECKING:
    from rich.console import Console

    from thumbtune.data.check import DataCheck, Lengths
    from thumbtune.data.refusals import Refusals

app = typer.Typer(help="Look at a file of thumbs before training on it.", no_args_is_help=True)

FORMATS = "JSONL, JSON, CSV, Parquet, or a folder that datasets' save_to_disk wrote."


File = Annotated[Path, typer.Argument(metavar="FILE", help=FORMATS, show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(help="Name or folder of the model whose tokenizer counts tokens.", show_default=False),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of prompt and completion together.", show_default=False)
]
MaxPromptLength = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of the prompt.", show_default=False)
]
TruncationOption = Annotated[TruncationSide, typer.Option(help="Which end of a too long prompt stays.")]
LabelMap = Annotated[
    str | None,
    typer.Option(metavar="WORD=BOOL,...", help="Further label words: meh=false,ok=true.", show_default=False),
]


@app.command()
def check(
    file: File,
    model: Model = None,
    max_length: MaxLength = None,
    max_prompt_length: MaxPromptLength = None,
    truncation: TruncationOption = "keep_end",
    label_map: LabelMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Count what a file holds: rows, classes, lengths, doubles, and what truncation would cut.

    Exit code 0: every row can be used. 1: some rows cannot; they are listed by reason. 2: wrong file or option.

    [bold]Examples[/bold]

      thumbtune data check thumbs.jsonl

      thumbtune data check thumbs.csv --label-map good=true,bad=false

      thumbtune data check thumbs.jsonl --model ./my-model --max-length 1024 --json
    """
    from rich.console import Console
    from rich.progress import track

    from thumbtune.data.check import check_rows
    from thumbtune.data.formats import RowsRefused, read_rows

    try:
        rows = read_rows(file, label_map=_read_label_map(label_map), skip_refused=True)
    except RowsRefused as error:
        if as_json:
            print(
                json.dumps(
                    {"n_read": error.n_read, "n_rows": 0, "refusals": error.refusals.as_dict()}, indent=2
                )
            )
        else:
            _print_refusals(Console(), error.refusals, error.n_read)
        raise typer.Exit(1) from None
    progress = Console(stderr=True)
    found = check_rows(
        rows,
        tokenizer=_load_tokenizer(model) if model else None,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        truncation=truncation,
        watch=lambda examples: track(
            examples, "Counting tokens", console=progress, transient=True, disable=not progress.is_terminal
        ),
    )
    if as_json:
        print(
            json.dumps({**found.as_dict(), "refusals": rows.refusals.as_dict()}, indent=2, ensure_ascii=False)
        )
    else:
        _print_check(Console(), found)
        _print_refusals(Console(), rows.refusals, rows.n_read)
    if rows.refusals.total or found.n_unrendered:
        raise typer.Exit(1)


@app.command()
def show(
    file: File,
    model: Annotated[
        str,
        typer.Option(
            help="Name or folder of the model whose tokenizer renders the rows.", show_default=False
        ),
    ],
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 5,
    start: Annotated[int, typer.Option(min=0, help="How many rows to pass over first.")] = 0,
    max_length: MaxLength = None,
    max_prompt_length: MaxPromptLength = None,
    truncation: TruncationOption = "keep_end",
    label_map: LabelMap = None,
) -> None:
    """Print rows as the model sees them: trained tokens on green (👍) or red (👎), the prompt dim.

    Without colour (NO_COLOR, or not into a terminal) trained tokens stand between ⟦ and ⟧. Line breaks, control
    characters and special tokens are visible; what truncation cuts is marked.

    [bold]Examples[/bold]

      thumbtune data show thumbs.jsonl --model ./my-model

      thumbtune data show thumbs.jsonl --model ./my-model --start 40 --rows 1 --max-length 256
    """
    from jinja2 import TemplateError
    from rich.console import Console
    from rich.text import Text

    from thumbtune.cli.rendering import render_example
    from thumbtune.data.formats import read_rows
    from thumbtune.data.pairs import unpair
    from thumbtune.errors import DataError

    found = read_rows(file, label_map=_read_label_map(label_map), skip_refused=True)
    examples = unpair(found.pairs) if found.pairs else found.examples
    tokenizer = _load_tokenizer(model)
    console = Console(highlight=False)
    for example in examples[start : start + rows]:
        try:
            text = render_example(
                tokenizer,
                example,
                max_length=max_length,
                max_prompt_length=max_prompt_length,
                truncation=truncation,
                with_colour=console.color_system is not None and not console.no_color,
            )
        except (DataError, TemplateError) as error:
            text = Text(f"── {example.where} · cannot be rendered: {error}\n")
        console.print(text, soft_wrap=True)
    if start >= len(examples):
        print(
            f"{file} has {len(examples)} rows to show: --start {start} passes over all of them",
            file=sys.stderr,
        )
    if found.refusals.total:
        counts = found.refusals.describe_counts()
        print(f"{found.refusals.total} rows cannot be used and are not shown ({counts})", file=sys.stderr)


@app.command()
def pairs(
    file: File,
    out: Annotated[Path, typer.Option(help="The JSONL file to write.", show_default=False)],
    max_pairs_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Most pairs of one prompt.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Which thumbs-up meets which thumbs-down.")] = 0,
    label_map: LabelMap = None,
    skip_refused: Annotated[bool, typer.Option(help="Go on without rows that cannot be used.")] = False,
) -> None:
    """Write the pairs that the thumbs contain: one prompt, a 👍 and a 👎, each used once.

    [bold]Examples[/bold]

      thumbtune data pairs thumbs.jsonl --out pairs.jsonl

      thumbtune data pairs thumbs.jsonl --out pairs.jsonl --max-pairs-per-prompt 1 --seed 7
    """
    from thumbtune.data.formats import read_rows, write_jsonl
    from thumbtune.data.pairs import pair_thumbs
    from thumbtune.errors import DataError

    found = read_rows(file, label_map=_read_label_map(label_map), skip_refused=skip_refused)
    if found.pairs:
        raise DataError(f"{file} holds pairs already: name a file of thumbs, with completion and label")
    made = pair_thumbs(found.examples, max_pairs_per_prompt=max_pairs_per_prompt, seed=seed)
    if not made.pairs:
        raise DataError(f"{file} contains no pair: no prompt has a 👍 and a 👎 on different completions")
    write_jsonl(made.pairs, out)
    print(f"{len(made.pairs)} pairs from {made.n_used} of {len(found.examples)} thumbs, in {out}")
    for reason, count in {**made.left_over, **found.refusals.by_reason}.items():
        print(f"  left over: {count} {reason}")


def _read_label_map(text: str | None) -> dict[str, bool] | None:
    from thumbtune.data.formats import parse_label_map

    return None if text is None else parse_label_map(text)


def _load_tokenizer(model: str) -> Any:
    from thumbtune.engine.loading import load_tokenizer

    return load_tokenizer(model)


def _print_check(console: Console, found: DataCheck) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(found.source), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    n_thumbs = found.n_desirable + found.n_undesirable
    share = found.n_desirable / n_thumbs
    for name, value in (
        (f"{found.kind} rows", f"{found.n_rows:,} of {found.n_read:,} read"),
        ("👍 desirable", f"{found.n_desirable:,} ({share:.1%})"),
        ("👎 undesirable", f"{found.n_undesirable:,} ({1 - share:.1%})"),
        ("prompts", f"{found.n_prompts:,}"),
        ("prompts with 👍 and 👎", f"{found.n_prompts_with_both:,}"),
        ("pairs contained", f"{found.n_pairs:,}"),
        ("exact duplicates", f"{found.n_duplicates:,}"),
        ("contradictions (one completion, both labels)", f"{found.n_contradictions:,}"),
        ("recommended desirable_weight", f"{found.desirable_weight:.4g}"),
        ("recommended undesirable_weight", f"{found.undesirable_weight:.4g}"),
        ("digest (SHA-256)", found.digest[:16] + "…"),
    ):
        table.add_row(name, value)
    if found.length_unit == "tokens":
        table.add_row("rows that the chat template refuses", f"{found.n_unrendered:,}")
        table.add_row("rows with a moved boundary", f"{found.n_boundary_moved:,}")
    if found.cuts is not None:
        table.add_row("rows with their prompt cut", f"{found.cuts.rows_prompt_cut:,}")
        table.add_row("rows with their completion cut", f"{found.cuts.rows_completion_cut:,}")
        table.add_row("rows dropped: no room for a completion", f"{found.cuts.rows_dropped:,}")
        table.add_row("prompt tokens cut", f"{found.cuts.prompt_tokens_cut:,}")
        table.add_row("completion tokens cut", f"{found.cuts.completion_tokens_cut:,}")
    console.print(table)
    console.print(_tabulate_lengths(found))
    for message in found.unrendered_messages:
        console.print(Text(f"  {message}"), soft_wrap=True)


def _tabulate_lengths(found: DataCheck) -> Any:
    from rich.table import Table

    table = Table("length in " + found.length_unit, "p50", "p90", "p99", "max")
    lengths: tuple[tuple[str, Lengths | None], ...] = (
        ("prompt", found.prompt_lengths),
        ("completion", found.completion_lengths),
    )
    for name, found_lengths in lengths:
        if found_lengths is not None:
            measured = (found_lengths.p50, found_lengths.p90, found_lengths.p99, found_lengths.max)
            table.add_row(name, *(f"{length:,}" for length in measured))
    return table


def _print_refusals(console: Console, refusals: Refusals, n_read: int) -> None:
    from rich.text import Text

    if not refusals.total:
        return
    headline = f"{refusals.total:,} of {n_read:,} rows cannot be used: {refusals.describe_counts()}"
    console.print(Text(headline, style="bold red"), soft_wrap=True)
    for message in refusals.messages:
        console.print(Text(f"  {message}"), soft_wrap=True)
