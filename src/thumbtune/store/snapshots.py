"""What exports and snapshots share: rows made of votes, the digest that names them, and their entry in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from thumbtune.data.formats import RowStream
from thumbtune.data.sources import iterate_raw_rows
from thumbtune.store.database import Store, now_us
from thumbtune.store.schema import snapshot_completions, snapshots

MAX_LINE_BYTES = 32 * 2**20

ENTRY_BATCH = 1_000
"""Completions entered in one transaction: short ones, since votes wait for them."""


def make_rows(vote: Mapping[str, Any], weight: float) -> Iterator[dict[str, Any]]:
    """The training rows of a vote beside its completion. An edit gives two: as served, 👎, and its correction, 👍."""
    finished = vote["finish_reason"] != "length"
    yield _as_row(vote, vote["completion"], vote["label"], weight=weight, finished=finished)
    if corrects(vote):
        corrected = {"role": "assistant", "content": vote["correction"]}
        yield _as_row(vote, corrected, True, weight=weight, finished=True)


def corrects(vote: Mapping[str, Any]) -> bool:
    """Whether a vote says how the answer should have been."""
    return vote["kind"] == "edit" and bool((vote["correction"] or "").strip())


def _as_row(
    vote: Mapping[str, Any], completion: Mapping[str, Any], label: bool, *, weight: float, finished: bool
) -> dict[str, Any]:
    return {
        "prompt": vote["messages"],
        "completion": [completion],
        "label": label,
        "finished": finished,
        "weight": weight,
        "tools": vote["tools"],  # in every row: a table takes its columns from the first
        "completion_id": vote["completion_id"],
        "model_version": vote["model_version"],
        "kind": vote["kind"],
        "reason": vote["reason"],
        "user_key": vote["user_key"],
        "conversation_key": vote["conversation_key"],
        "created_us": vote["created_us"],
    }


def has_text(completion: Mapping[str, Any] | None) -> bool:
    """Whether there is something to learn from."""
    return completion is not None and bool(completion.get("content") or completion.get("tool_calls"))


def digest_rows(path: Path) -> str:
    """The digest that training writes into its manifest, so that a model version names what it learned from."""
    stream = RowStream(iterate_raw_rows(path, MAX_LINE_BYTES), str(path), stop_at_first=True)
    for _ in stream:
        pass
    return stream.digest


def write_snapshot(
    store: Store,
    digest: str,
    path: Path,
    n_rows: int,
    manifest: Mapping[str, Any],
    completion_ids: Sequence[str],
) -> None:
    """Enter rows under their digest with the completions they hold, so that an erasure can name them.

    Twice is once, and a half-done entry is completed.
    """
    held = snapshot_completions
    with store.write() as connection:
        if connection.scalar(select(snapshots.c.digest).where(snapshots.c.digest == digest)) is None:
            row = {
                "digest": digest,
                "path": str(path.resolve()),
                "n_rows": n_rows,
                "manifest": dict(manifest),
            }
            connection.execute(insert(snapshots).values(**row, created_us=now_us()))
    for start in range(0, len(completion_ids), ENTRY_BATCH):
        ids = completion_ids[start : start + ENTRY_BATCH]
        there = select(held.c.completion_id).where(held.c.digest == digest, held.c.completion_id.in_(ids))
        with store.write() as connection:
            entered = set(connection.scalars(there))
            new = [{"digest": digest, "completion_id": name} for name in ids if name not in entered]
            if new:
                connection.execute(insert(held), new)


def find_snapshot(store: Store, digest: str) -> dict[str, Any] | None:
    """A snapshot's entry: `n_rows`, `manifest`, where it lies; None where it was not entered here."""
    with store.read() as connection:
        row = connection.execute(select(snapshots).where(snapshots.c.digest == digest)).first()
    return None if row is None else dict(row._mapping)
