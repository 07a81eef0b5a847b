"""Files in, raw rows out: JSON lines, a JSON array, CSV, Parquet and folders of Hugging Face `datasets`.

Every source yields `(where, row)`, and a `RowRefused` in the row's place where it could not even be read,
so that one bad line never ends the file. Lines are counted from 1, as editors do; rows of formats without
lines from 0, as `dataset[0]` does. Blank lines are no rows.

Text files are read by lines of bounded length, so that a file that is one endless line costs memory only
up to the bound. A JSON array (`.json` that begins with `[`) is the exception: it is read whole.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from thumbtune.data.refusals import (
    BROKEN_CSV,
    BROKEN_JSON,
    LINE_TOO_LONG,
    NOT_AN_OBJECT,
    NOT_UTF8,
    RowRefused,
)
from thumbtune.data.rows import COLUMNS, TEXT_COLUMNS
from thumbtune.data.tables import RawRow, check_columns, iterate_dataset_folder, iterate_parquet
from thumbtune.errors import DataError

_BOM = b"\xef\xbb\xbf"
_KNOWN_ENDINGS = ".jsonl, .ndjson, .json, .csv, .parquet, or a folder saved by datasets' save_to_disk"
_MAGIC = {
    b"\x1f\x8b": "is compressed by gzip: unpack it with gunzip first",
    b"PK\x03\x04": "is a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "is a Parquet file: give it the ending .parquet",
    b"\xff\xfe": "is UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text: save it as UTF-8",
}


def iterate_raw_rows(path: Path, max_line_bytes: int) -> Iterator[RawRow]:
    """`(where, row or refusal)` for each row of a file, by the file's ending.

    Raises `DataError` for whatever concerns the whole file: missing, empty, binary, unreadable, of
    unknown kind.
    """
    try:
        if path.is_dir():
            yield from iterate_dataset_folder(path)
            return
        suffix = path.suffix.lower()
        if suffix not in {".jsonl", ".ndjson", ".json", ".csv", ".parquet"}:
            if not path.exists():
                raise FileNotFoundError
            raise DataError(f"{path}: unknown ending {path.suffix!r}: expected {_KNOWN_ENDINGS}")
        with path.open("rb") as handle:
            head = handle.read(8192)
            handle.seek(0)
            if not head.removeprefix(_BOM).strip():
                raise DataError(f"{path} is empty: it needs one row per line")
            if suffix == ".parquet":
                yield from iterate_parquet(path)
                return
            _check_is_text(path, head)
            if head.startswith(_BOM):
                handle.seek(len(_BOM))
            if suffix == ".csv":
                yield from _iterate_csv(path, handle, max_line_bytes)
            elif suffix == ".json" and head.removeprefix(_BOM).lstrip().startswith(b"["):
                yield from _iterate_json_array(path, handle)
            else:
                yield from _iterate_json_lines(path, handle, max_line_bytes)
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file. Check the path; it is looked up from {Path.cwd()}"
        ) from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it. Change its mode with chmod, or copy it") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}). Copy it to another place"
        ) from error


def _check_is_text(path: Path, head: bytes) -> None:
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path} {what}")
    if b"\0" in head:
        raise DataError(f"{path} is a binary file (it holds NUL bytes): expected {_KNOWN_ENDINGS}")


class _BoundedLines:
    """Decoded lines of a text file; one over the bound raises `RowRefused`; the next call goes on.

    `number` is the line last read, from 1. Bytes that are not UTF-8 become lone surrogates, which the caller
    refuses: a class and not a generator, because a generator ends with its first exception.
    """

    def __init__(self, path: Path, handle: BinaryIO, max_line_bytes: int) -> None:
        self.name = path.name
        self.handle = handle
        self.max_line_bytes = max_line_bytes
        self.number = 0

    def __iter__(self) -> _BoundedLines:
        return self

    def __next__(self) -> str:
        line = self.handle.readline(self.max_line_bytes + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > self.max_line_bytes and not line.endswith(b"\n"):
            while chunk := self.handle.readline(2**20):
                if chunk.endswith(b"\n"):
                    break
            raise RowRefused(
                LINE_TOO_LONG,
                self.where,
                f"the line is longer than {self.max_line_bytes:,} bytes: is a line break missing? Split it",
            )
        return line.decode(errors="surrogateescape")

    @property
    def where(self) -> str:
        return f"{self.name} line {self.number}"


def _iterate_json_lines(path: Path, handle: BinaryIO, max_line_bytes: int) -> Iterator[RawRow]:
    lines = _BoundedLines(path, handle, max_line_bytes)
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return
        except RowRefused as refused:
            yield lines.where, refused
            continue
        if not line.strip():
            continue
        yield lines.where, _read_json_line(line, lines.where)


def _read_json_line(line: str, where: str) -> Mapping[str, Any] | RowRefused:
    if not line.isascii():
        try:
            line.encode()
        except UnicodeEncodeError as error:
            column = error.start + 1
            return RowRefused(NOT_UTF8, where, f"column {column} is not UTF-8: save the file as UTF-8")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return RowRefused(BROKEN_JSON, where, f"broken JSON at column {error.colno} ({error.msg})")
    except (ValueError, RecursionError) as error:
        return RowRefused(BROKEN_JSON, where, f"unusable JSON ({error})")
    if isinstance(row, dict):
        return row
    hint = ". A file that is one JSON array ends in .json" if isinstance(row, list) else ""
    return RowRefused(NOT_AN_OBJECT, where, f"the line is no JSON object {{...}}{hint}")


def _iterate_json_array(path: Path, handle: BinaryIO) -> Iterator[RawRow]:
    try:
        rows = json.loads(handle.read().decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {error.lineno}: broken JSON at column {error.colno} ({error.msg}). "
            "A .json file that begins with [ is one array; one object per line makes a .jsonl file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: unusable JSON ({error})") from None
    for number, row in enumerate(rows):
        where = f"{path.name} row {number}"
        yield (
            where,
            row if isinstance(row, dict) else RowRefused(NOT_AN_OBJECT, where, "the item is no object"),
        )


def _iterate_csv(path: Path, handle: BinaryIO, max_line_bytes: int) -> Iterator[RawRow]:
    lines = _BoundedLines(path, handle, max_line_bytes)
    old_limit = csv.field_size_limit(max_line_bytes)
    try:
        reader = csv.reader(lines, strict=True)
        header: list[str] | None = None
        while True:
            first_line = lines.number + 1
            where = f"{path.name} line {first_line}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except RowRefused as refused:
                yield lines.where, refused
                continue
            except csv.Error as error:
                span = f"; the row runs to line {lines.number}" if lines.number > first_line else ""
                yield where, RowRefused(BROKEN_CSV, where, f"broken CSV ({error}{span}): check its quotes")
                continue
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                if doubled := {name for name in COLUMNS if header.count(name) > 1}:
                    raise DataError(
                        f"{path} line {first_line}: the column {min(doubled)!r} stands there twice"
                    )
                check_columns(str(path), header)
            elif len(cells) != len(header):
                what = f"{len(cells)} cells under {len(header)} columns: check its commas and quotes"
                yield where, RowRefused(BROKEN_CSV, where, what)
            else:
                yield where, _read_cells(dict(zip(header, cells, strict=True)))
    finally:
        csv.field_size_limit(old_limit)


def _read_cells(row: dict[str, Any]) -> dict[str, Any]:
    for name in TEXT_COLUMNS:
        cell = row.get(name, "")
        if cell.lstrip().startswith("["):
            try:
                messages = json.loads(cell)
            except (ValueError, RecursionError):
                continue
            if messages and all(isinstance(message, dict) and "role" in message for message in messages):
                row[name] = messages
    return row
