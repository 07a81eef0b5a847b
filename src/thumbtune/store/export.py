"""Current votes out, in the training format: one row a vote, `{prompt, completion, label, finished, weight, …}`.

Nothing is left out in silence: what cannot be learned from is counted by reason. Every export is entered in the
store under its digest with the completions it holds, so that an erasure can name it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import Connection

from thumbtune.data.weights import recency_weight, round_weight, voter_weight
from thumbtune.errors import ConfigError, DataError
from thumbtune.records import BROKEN_OFF, VoteKind
from thumbtune.store.database import Store
from thumbtune.store.reading import EXPLICIT, VoteFilter, count_by_user, iterate_votes
from thumbtune.store.snapshots import digest_rows, has_text, make_rows, write_snapshot

Format = Literal["jsonl", "parquet", "dataset"]


KINDS: tuple[str, ...] = get_args(VoteKind)


@dataclass(frozen=True, slots=True)
class Weighing:
    """How votes are weighed beside their strength; None leaves it."""

    half_life_days: float | None = None
    """A vote this much older than the newest one counts half."""
    most_votes_of_one: int | None = None
    """All votes of one user together count at most as this many."""


@dataclass
class Export:
    """What was written, and what was not."""

    path: Path
    digest: str = ""
    n_rows: int = 0
    n_up: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Votes that no row was made from, by reason."""


def export_votes(
    store: Store,
    path: Path,
    *,
    file_format: Format | None = None,
    wanted: VoteFilter = VoteFilter(kinds=EXPLICIT),
    weighing: Weighing = Weighing(),
) -> Export:
    """Write the current votes that are `wanted` to `path`; the format is its ending, or `dataset` for a folder.

    An edit gives two rows: the completion as served, 👎, and its correction, 👍. Raises `ConfigError`.
    """
    chosen: Format = file_format or _guess_format(path)
    if path.exists():
        raise ConfigError(f"{path} exists: name a new file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist: make it first")
    export = Export(path)
    ids: set[str] = set()
    staging = path.with_name(f".{path.name}.part.jsonl")
    try:
        with store.read() as connection, open(staging, "w", encoding="utf-8") as file:
            weigh = _make_scale(connection, wanted, weighing)
            for row in _make_rows(iterate_votes(connection, wanted), export, weigh):
                line = json.dumps(row, ensure_ascii=False)
                file.write(line + "\n")
                ids.add(row["completion_id"])
                export.n_rows += 1
                export.n_up += row["label"]
        if not export.n_rows:
            reasons = (
                ", ".join(f"{n} {reason}" for reason, n in export.left_out.items())
                or "none there that is asked for"
            )
            raise DataError(f"{store.address}: no vote to export ({reasons})")
        _write_as(chosen, staging, path)
        export.digest = digest_rows(path)
    finally:
        staging.unlink(missing_ok=True)
    _enter(store, export, sorted(ids), wanted, weighing)
    return export


def _make_scale(
    connection: Connection, wanted: VoteFilter, weighing: Weighing
) -> Callable[[Mapping[str, Any]], float]:
    """A vote's weight: its strength, its age before the newest of these votes, its voter's number of them."""
    newest, counts = 0, Counter[str]()
    if weighing.half_life_days is not None or weighing.most_votes_of_one is not None:
        for user_key, n, last in connection.execute(count_by_user(wanted)):
            counts[user_key], newest = n, max(newest, last)

    def weigh(vote: Mapping[str, Any]) -> float:
        weight: float = vote["strength"]
        if weighing.half_life_days is not None:
            weight *= recency_weight(newest - vote["created_us"], weighing.half_life_days)
        if weighing.most_votes_of_one is not None:
            weight *= voter_weight(counts[vote["user_key"]], weighing.most_votes_of_one)
        return round_weight(weight)

    return weigh


def _make_rows(
    found: Iterator[Mapping[str, Any]], export: Export, weigh: Callable[[Mapping[str, Any]], float]
) -> Iterator[dict[str, Any]]:
    for vote in found:
        if vote["erased_us"] is not None:
            export.left_out["text erased"] += 1
        elif not has_text(vote["completion"]):
            export.left_out["empty completion"] += 1
        elif vote["finish_reason"] in BROKEN_OFF:
            export.left_out["broken off before its end"] += 1
        else:
            yield from make_rows(vote, weigh(vote))


def _guess_format(path: Path) -> Format:
    endings: dict[str, Format] = {".jsonl": "jsonl", ".parquet": "parquet", "": "dataset"}
    if path.suffix not in endings:
        raise ConfigError(
            f"{path}: an export ends in .jsonl or .parquet, or is a folder (no ending): --format says which"
        )
    return endings[path.suffix]


def _write_as(chosen: Format, lines: Path, path: Path) -> None:
    if chosen == "jsonl":
        os.replace(lines, path)
        return
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    with open(lines, encoding="utf-8") as file:
        table = Dataset.from_list([json.loads(line) for line in file])
    if chosen == "parquet":
        table.to_parquet(str(path))
    else:
        table.save_to_disk(str(path))


def _enter(store: Store, export: Export, ids: Sequence[str], wanted: VoteFilter, weighing: Weighing) -> None:
    manifest = {
        "kinds": None if wanted.kinds is None else list(wanted.kinds),
        "weighing": asdict(weighing),
        "n_up": export.n_up,
        "left_out": dict(export.left_out),
    }
    write_snapshot(store, export.digest, export.path, export.n_rows, manifest, ids)
