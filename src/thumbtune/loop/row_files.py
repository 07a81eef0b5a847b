"""Training rows in one file, a batch in memory at a time: Parquet, or JSON lines where no table can hold them.

A table gives every object of a column the same keys. Which ones is known only after the last row, so a file whose
keys turn out to be too few is written once more, with all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROWS_AT_ONCE = 4_096

Row = Mapping[str, Any]


def write_rows(make_rows: Callable[[], Iterator[Row]], path: Path) -> Path | None:
    """Write rows to `path`, a `.parquet` file; gives the file, which ends in `.jsonl` where rows fit no table.

    None where there are no rows, and no file. `make_rows` may be called more than once; it gives the same rows each
    time, all with the same columns.
    """
    import pyarrow

    schema, is_whole = None, False
    try:
        while not is_whole:
            schema, is_whole = _write_table(make_rows(), path, schema)
            if schema is None:
                return None
        return path
    except pyarrow.ArrowException:
        path.unlink(missing_ok=True)
    lines = path.with_suffix(".jsonl")
    with lines.open("w", encoding="utf-8") as file:
        for row in make_rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return lines


def _write_table(rows: Iterator[Row], path: Path, schema: Any) -> tuple[Any, bool]:
    """The schema of all rows, and whether the file holds them; after a row that does not fit, none is written."""
    import pyarrow
    import pyarrow.parquet

    writer, is_whole = None, True
    try:
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            table = pyarrow.Table.from_pylist(chunk)
            known = schema
            schema = (
                table.schema
                if known is None
                else pyarrow.unify_schemas([known, table.schema], promote_options="permissive")
            )
            is_whole &= known is None or schema.equals(known)
            if not is_whole:
                continue
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, schema)
            if not table.schema.equals(schema):
                table = pyarrow.Table.from_pylist(chunk, schema=schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    return schema, is_whole


def read_columns(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a `.parquet` file, of a folder of its parts in the order of their names, or of a `.jsonl` file."""
    import pyarrow.parquet

    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                yield row if columns is None else {name: row[name] for name in columns}
        return
    for part in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with pyarrow.parquet.ParquetFile(part) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
