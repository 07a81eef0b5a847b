"""The store as two flat Parquet files: presses without text, and texts beside them.

    staged = stage_votes(store, folder)      # folder/votes.parquet, folder/texts.parquet, folder/staged.json

Read in one transaction, a batch in memory at a time. Texts become SHA-256 digests of their NFC form here, so that no
backend needs Unicode rules: two answers that look the same are the same.
"""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, exists, select

from thumbtune.data.rows import read_content
from thumbtune.errors import ConfigError, DataError
from thumbtune.store.database import Store, now_us
from thumbtune.store.schema import completions, votes
from thumbtune.store.snapshots import corrects

PRESSES = {
    "vote_id": "int64",
    "completion_id": "string",
    "user_key": "string",
    "kind": "string",
    "label": "bool",
    "strength": "double",
    "reason": "string",
    "created_us": "int64",
    "conversation_key": "string",
    "asked_by": "string",
    "model_version": "string",
    "finish_reason": "string",
    "erased": "bool",
    "has_text": "bool",
    "prompt_digest": "string",
    "completion_digest": "string",
    "correction_digest": "string",
}
"""Columns of `votes.parquet`, one row a press. A correction's digest is empty where there is none."""

TEXTS = {
    "completion_id": "string",
    "messages": "string",
    "completion": "string",
    "tools": "string",
    "corrections": "string",
}
"""Columns of `texts.parquet`, one row a completion that has text, as JSON; `corrections` is {vote_id: text}."""

COMPLETIONS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Staged:
    """What was read from a store, at one moment."""

    folder: Path
    staged_us: int
    n_presses: int
    n_completions: int
    newest_us: int
    """When the newest press was pressed."""
    seconds: float

    @property
    def votes(self) -> Path:
        return self.folder / "votes.parquet"

    @property
    def texts(self) -> Path:
        return self.folder / "texts.parquet"


def stage_votes(store: Store, folder: Path) -> Staged:
    """Write every press and every voted-on completion into a new folder. Raises `ConfigError`, `DataError`."""
    import pyarrow
    import pyarrow.parquet

    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is in use: name a new folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds what people wrote
    start, staged_us = time.perf_counter(), now_us()
    n_presses = n_completions = newest_us = 0
    presses_schema = pyarrow.schema(PRESSES.items())
    texts_schema = pyarrow.schema(TEXTS.items())
    with (
        store.read() as connection,
        pyarrow.parquet.ParquetWriter(folder / "votes.parquet", presses_schema) as presses_file,
        pyarrow.parquet.ParquetWriter(folder / "texts.parquet", texts_schema) as texts_file,
    ):
        for presses, texts in _gather(_iterate_voted(connection)):
            presses_file.write_table(pyarrow.Table.from_pylist(presses, schema=presses_schema))
            texts_file.write_table(pyarrow.Table.from_pylist(texts, schema=texts_schema))
            n_presses += len(presses)
            n_completions += len(texts)
            newest_us = max(newest_us, *(press["created_us"] for press in presses))
    if not n_presses:
        raise DataError(f"{store.address} holds no vote: there is nothing to freeze")
    seconds = time.perf_counter() - start
    staged = Staged(folder, staged_us, n_presses, n_completions, newest_us, seconds)
    (folder / "staged.json").write_text(json.dumps(asdict(staged) | {"folder": None}), encoding="utf-8")
    return staged


def read_staged(folder: Path) -> Staged:
    """What `stage_votes` left in a folder. Raises `DataError`."""
    try:
        noted = json.loads((folder / "staged.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder} holds no staged votes: stage them first") from error
    return Staged(**noted | {"folder": folder})


def digest_text(*parts: Any) -> str:
    """SHA-256 in hex over JSON texts in Unicode's NFC, where `é` is one thing however it was typed."""
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(unicodedata.normalize("NFC", canonical).encode()).hexdigest()


ROWS_IN_A_GROUP = 20_000

Batch = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def _gather(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Small batches of the database as larger ones for Parquet."""
    presses: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for some_presses, some_texts in batches:
        presses += some_presses
        texts += some_texts
        if len(presses) >= ROWS_IN_A_GROUP:
            yield presses, texts
            presses, texts = [], []
    if presses:
        yield presses, texts


def _iterate_voted(connection: Connection) -> Iterator[Batch]:
    """Presses and texts of some completions at a time, in the order of the completions' ids."""
    is_voted = exists().where(votes.c.completion_id == completions.c.id)
    last = ""
    while True:
        found = connection.execute(
            select(completions)
            .where(completions.c.id > last, is_voted)
            .order_by(completions.c.id)
            .limit(COMPLETIONS_AT_ONCE)
        ).all()
        if not found:
            return
        last = found[-1].id
        described = {row.id: _describe_completion(row) for row in found}
        of_these = select(votes).where(votes.c.completion_id.in_(described)).order_by(votes.c.id)
        pressed = [dict(vote) for vote in connection.execute(of_these).mappings()]
        corrections: dict[str, dict[str, str]] = {}
        for vote in filter(corrects, pressed):
            corrections.setdefault(vote["completion_id"], {})[str(vote["id"])] = vote["correction"]
        yield (
            [_as_press(vote, described[vote["completion_id"]]) for vote in pressed],
            [_as_text(row, corrections.get(row.id)) for row in found if described[row.id]["has_text"]],
        )


def _describe_completion(row: Row[Any]) -> dict[str, Any]:
    """What a press takes from its completion."""
    readable = (
        row.erased_us is None and _says_something(row.messages or []) and _says_something([row.completion])
    )
    return {
        "conversation_key": row.conversation_key,
        "asked_by": row.user_key,
        "model_version": row.model_version,
        "finish_reason": row.finish_reason,
        "erased": row.erased_us is not None,
        "has_text": readable,
        "prompt_digest": digest_text(row.messages, row.tools) if readable else "",
        "completion_digest": digest_text(row.completion) if readable else "",
    }


def _says_something(messages: Sequence[Mapping[str, Any] | None]) -> bool:
    """Space alone is nothing to learn from: training refuses it."""
    return any(
        message and (message.get("tool_calls") or read_content(message).strip()) for message in messages
    )


def _as_press(vote: Mapping[str, Any], completion: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: vote[name] for name in PRESSES if name in vote},
        "vote_id": vote["id"],
        "correction_digest": digest_text(vote["correction"]) if corrects(vote) else "",
        **completion,
    }


def _as_text(row: Row[Any], corrections: Mapping[str, str] | None) -> dict[str, Any]:
    return {
        "completion_id": row.id,
        "messages": _dump(row.messages),
        "completion": _dump(row.completion),
        "tools": None if row.tools is None else _dump(row.tools),
        "corrections": _dump(corrections) if corrections else None,
    }


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
