"""`thumbtune snapshot` and `snapshot-explain`: freeze the votes that are learned from, and say what became of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from thumbtune.cli.store import DEFAULT_STORE, AsJson, StoreUrl, open_store

EXAMPLES = """
[bold]Examples[/bold]

  thumbtune snapshot --out snapshots/7

  thumbtune snapshot --store postgresql://votes@db/votes --out snapshots/7 --kinds explicit,edit --half-life-days 30

  thumbtune snapshot --out snapshots/7 --backend spark --memory-limit 8GB

  thumbtune train snapshots/7/train.parquet --eval snapshots/7/held_out.parquet
"""

EXPLAIN_EXAMPLES = """
[bold]Examples[/bold]

  thumbtune snapshot-explain snapshots/7 4711
"""


def snapshot(
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    url: StoreUrl = DEFAULT_STORE,
    backend: Annotated[
        Literal["duckdb", "spark"], typer.Option(help="Where votes are sorted out; the rows are the same.")
    ] = "duckdb",
    memory_limit: Annotated[
        str, typer.Option(help="Memory of that; what needs more goes through the disk.")
    ] = "2GB",
    kinds: Annotated[
        str, typer.Option(help="Kinds of votes: explicit, edit, retry, copy; with commas.")
    ] = "explicit",
    most_votes_of_one: Annotated[
        str, typer.Option(metavar="N|off", help="So many of each voter's votes, the newest ones.")
    ] = "20",
    burst_votes: Annotated[
        str, typer.Option(metavar="N|off", help="More votes than this of one in a minute, and all are out.")
    ] = "30",
    quorum: Annotated[
        str,
        typer.Option(metavar="SHARE|off", help="Share of the voters on one answer that must agree."),
    ] = "2/3",
    near_duplicates: Annotated[
        str, typer.Option(metavar="SHARE|off", help="Texts that are this similar count once.")
    ] = "0.9",
    held_out: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of people never trained on, for measuring.")
    ] = 0.1,
    max_age_days: Annotated[
        float | None, typer.Option(min=0.01, help="Leave out older votes.", show_default=False)
    ] = None,
    half_life_days: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="A vote this much older than the newest one weighs half.", show_default=False
        ),
    ] = None,
    salt: Annotated[
        str, typer.Option(help="Who is held out hangs on it: another one, other people.")
    ] = "thumbtune",
    as_json: AsJson = False,
) -> None:
    """Freeze the votes into a folder: rows to train on, rows to measure on, and what became of every vote."""
    from thumbtune.loop.curate import CurationRules
    from thumbtune.loop.snapshot import take_snapshot

    most, burst = (
        _read_number("most-votes-of-one", most_votes_of_one),
        _read_number("burst-votes", burst_votes),
    )
    rules = CurationRules(
        kinds=tuple(kind.strip() for kind in kinds.split(",")),
        max_age_days=max_age_days,
        burst_votes=None if burst is None else int(burst),
        most_votes_of_one=None if most is None else int(most),
        quorum=_read_number("quorum", quorum),
        near_duplicates=_read_number("near-duplicates", near_duplicates),
        held_out_share=held_out,
        half_life_days=half_life_days,
        salt=salt,
    )
    done = take_snapshot(open_store(url), rules, out, backend=backend, memory_limit=memory_limit)
    if as_json:
        print(json.dumps(asdict(done) | {"folder": str(done.folder)}))
        return
    print(
        f"{out}: {done.n_rows:,} rows, {done.n_up:,} 👍 and {done.n_rows - done.n_up:,} 👎, digest {done.digest[:12]}"
    )
    print(f"held out: {done.n_held_out:,} rows, {done.n_held_out_up:,} 👍")
    for outcome, count in done.outcomes.items():
        if not outcome.startswith("kept"):
            print(f"left out: {count:,} votes, {outcome}")
    print(f"next: thumbtune train {done.train}")


def explain(
    folder: Annotated[Path, typer.Argument(help="A snapshot.", show_default=False)],
    vote_id: Annotated[int, typer.Argument(help="Number of the vote.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """What became of one vote in a snapshot: kept, and where, or the first reason that kept it out."""
    from thumbtune.loop.snapshot import explain_vote

    outcome = explain_vote(folder, vote_id)
    print(json.dumps({"vote_id": vote_id, "outcome": outcome}) if as_json else outcome)


def _read_number(option: str, text: str) -> float | None:
    """A number, a fraction such as 2/3, or off."""
    from fractions import Fraction

    from thumbtune.errors import ConfigError

    if text == "off":
        return None
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--{option} {text}: expected a number or off") from error
