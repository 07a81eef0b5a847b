"""Files of thumbs in, accepted rows out, and a count of every row that was not accepted.

    rows = read_rows("thumbs.jsonl")
    rows.examples, rows.digest, rows.refusals.total

`RowStream` gives the same rows one at a time and keeps none, for data larger than memory.

Strict unless told otherwise: after the whole file has been read, one error names what is wrong with how
many rows and where the first ones stand. With `skip_refused` the others are used, and the count stays in
`Rows.refusals`.

The digest is of the accepted rows in their order, not of the file: the same thumbs as JSONL, CSV or
Parquet have one digest, and a rewritten row changes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thumbtune.data.labels import parse_label, parse_label_map
from thumbtune.data.refusals import MIXED_SHAPES, NOT_UTF8, Refusals, RowRefused, RowsRefused
from thumbtune.data.rows import parse_row
from thumbtune.data.sources import iterate_raw_rows
from thumbtune.data.tables import RawRow, iterate_dataset
from thumbtune.errors import DataError
from thumbtune.records import Example, Pair

__all__ = [
    "Refusals",
    "RowRefused",
    "RowStream",
    "Rows",
    "RowsRefused",
    "parse_label",
    "parse_label_map",
    "parse_row",
    "read_rows",
    "rows_from_dataset",
    "stream_dataset",
    "write_jsonl",
]


@dataclass(frozen=True)
class Rows:
    """The accepted rows of one file or dataset; either `examples` or `pairs` is filled, never both."""

    examples: list[Example]
    pairs: list[Pair]
    refusals: Refusals
    digest: str
    """SHA-256 in hex over the accepted rows as canonical JSON, one per line."""
    n_read: int
    """Rows that were there, refused ones included; blank lines are no rows."""
    source: str
    """The path as it was given, or the name of the dataset."""

    @property
    def kind(self) -> Literal["unpaired", "paired"]:
        return "paired" if self.pairs else "unpaired"


def read_rows(
    path: str | Path,
    *,
    label_map: Mapping[str, bool] | None = None,
    skip_refused: bool = False,
    max_line_bytes: int = 32 * 2**20,
) -> Rows:
    """The rows of a JSONL, JSON, CSV or Parquet file, or of a folder by `datasets`' save_to_disk.

    Raises `RowsRefused`, a `DataError`, if any row was refused and `skip_refused` is off, or if none is left;
    and `DataError` for whatever concerns the whole file.
    """
    rows = collect_rows(RowStream(iterate_raw_rows(Path(path), max_line_bytes), str(path), label_map))
    n_accepted = len(rows.examples) + len(rows.pairs)
    refusals = rows.refusals
    if refusals.total and (not skip_refused or not n_accepted):
        shown = "\n".join(f"  {message}" for message in refusals.messages[:6])
        way_on = (
            "Mend them, or go on without them by --skip-refused"
            if n_accepted
            else "No row is left to go on with: mend them"
        )
        raise RowsRefused(
            f"{path}: {refusals.total:,} of {rows.n_read:,} rows cannot be used "
            f"({refusals.describe_counts()}). {way_on}. The first:\n{shown}",
            refusals,
            rows.n_read,
        )
    return rows


def rows_from_dataset(
    dataset: Iterable[Mapping[str, Any]],
    *,
    label_map: Mapping[str, bool] | None = None,
    source: str = "train_dataset",
) -> Rows:
    """The rows of a Hugging Face dataset or of any iterable of mappings; always strict.

    Raises `RowRefused`, a `DataError`, at the first refused row, with its index counted from 0.
    """
    return collect_rows(stream_dataset(dataset, label_map=label_map, source=source))


def stream_dataset(
    dataset: Iterable[Mapping[str, Any]],
    *,
    label_map: Mapping[str, bool] | None = None,
    source: str = "train_dataset",
) -> RowStream:
    """The rows of `rows_from_dataset`, as strict as those, one at a time."""
    return RowStream(iterate_dataset(dataset, source), source, label_map, stop_at_first=True)


class RowStream:
    """Accepted rows, one at a time, once; none is kept. `digest`, `n_read` and `refusals` are of those given so far.

    Raises `DataError` at the end if there were no rows at all, and `RowRefused` at the first refused row if
    `stop_at_first`; else refused rows are counted and left out. The first accepted row settles the `kind` of all
    others, unless it is given.
    """

    def __init__(
        self,
        raw_rows: Iterator[RawRow],
        source: str,
        label_map: Mapping[str, bool] | None = None,
        *,
        stop_at_first: bool = False,
        kind: type[Example] | type[Pair] | None = None,
    ) -> None:
        self.source = source
        self.refusals = Refusals()
        self.n_read = 0
        self.kind = kind
        self._sha256 = hashlib.sha256()
        self._raw_rows = raw_rows
        self._label_map = label_map
        self._stop_at_first = stop_at_first

    def __iter__(self) -> Iterator[Example | Pair]:
        for where, raw in self._raw_rows:
            self.n_read += 1
            try:
                row = self._accept(raw, where)
            except RowRefused as refused:
                if self._stop_at_first:
                    raise
                self.refusals.add(refused)
            else:
                yield row
        if not self.n_read:
            raise DataError(f"{self.source} holds no rows: it needs at least one")

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the accepted rows as canonical JSON, one per line."""
        return self._sha256.hexdigest()

    def _accept(self, raw: Mapping[str, Any] | RowRefused, where: str) -> Example | Pair:
        if isinstance(raw, RowRefused):
            raise raw
        row = parse_row(raw, where, self._label_map)
        if self.kind is not None and not isinstance(row, self.kind):
            others = "paired" if isinstance(row, Example) else "unpaired"
            raise RowRefused(
                MIXED_SHAPES, where, f"the rows before it are {others}, this one is not: split the file"
            )
        self._sha256.update(_write_canonical_line(row))
        self.kind = type(row)
        return row


def collect_rows(stream: RowStream) -> Rows:
    """All rows of a stream, in memory."""
    examples: list[Example] = []
    pairs: list[Pair] = []
    for row in stream:
        if isinstance(row, Example):
            examples.append(row)
        else:
            pairs.append(row)
    return Rows(examples, pairs, stream.refusals, stream.digest, stream.n_read, stream.source)


def describe_row(row: Example | Pair) -> dict[str, Any]:
    """The row as a mapping that `parse_row` reads back; optional columns only where they hold something."""
    if isinstance(row, Example):
        described: dict[str, Any] = {"prompt": row.prompt, "completion": row.completion, "label": row.label}
    else:
        described = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
    if row.tools:
        described["tools"] = row.tools
    if row.chat_template_kwargs:
        described["chat_template_kwargs"] = row.chat_template_kwargs
    names = ("finished",) if isinstance(row, Example) else ("chosen_finished", "rejected_finished")
    described |= {name: False for name in names if not getattr(row, name)}
    if row.weight != 1:
        described["weight"] = row.weight
    return described


_encode_canonical = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str
).encode


def _write_canonical_line(row: Example | Pair) -> bytes:
    try:
        return (_encode_canonical(describe_row(row)) + "\n").encode()
    except UnicodeEncodeError:
        raise RowRefused(NOT_UTF8, row.where, "a text holds half a character: save it as UTF-8") from None
    except (TypeError, ValueError) as error:
        raise RowRefused("wrong_type", row.where, f"the row cannot be written as JSON ({error})") from None


def write_jsonl(rows: Sequence[Example] | Sequence[Pair], path: str | Path) -> None:
    """Write one row per line; the file appears whole or not at all. Raises `DataError` if it cannot.

    Reading it back gives equal rows and the same digest; `where` is not written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as handle:
            for row in rows:
                json.dump(describe_row(row), handle, ensure_ascii=False, default=_write_mapping)
                handle.write("\n")
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}). Name another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write_mapping(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
