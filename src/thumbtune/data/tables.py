"""Tables in, raw rows out: Parquet files and Hugging Face datasets, on disk or in memory.

Rows are counted from 0, as `dataset[0]` does. Arrow cannot tell an absent key from a null one, so keys
that are null are left out of objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from thumbtune.data.refusals import RowRefused
from thumbtune.data.rows import COLUMNS, IMAGE_COLUMNS, TEXT_ALONE
from thumbtune.errors import DataError

RawRow: TypeAlias = tuple[str, Mapping[str, Any] | RowRefused]
"""Where a row stands, and its columns, or why it could not even be read."""


def iterate_parquet(path: Path) -> Iterator[RawRow]:
    """The rows of a Parquet file, batch by batch. Raises `DataError` if it is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = check_columns(str(path), file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                yield f"{path.name} row {number}", drop_nulls(row)
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no readable Parquet file ({error}). Write or copy it once more") from error


def iterate_dataset_folder(path: Path) -> Iterator[RawRow]:
    """The rows of a folder by save_to_disk. Raises `DataError` if it is another folder or holds several splits."""
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        named = ", ".join(splits) or "no split"
        example = path / (splits[0] if splits else "train")
        raise DataError(f"{path} holds several splits ({named}): name the folder of one, such as {example}")
    if not (path / "state.json").is_file() or not (path / "dataset_info.json").is_file():
        raise DataError(
            f"{path} is a directory, but none that datasets' save_to_disk wrote: name a file in it"
        )
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path}: no readable datasets folder ({error}). Save it once more") from error
    yield from iterate_dataset(dataset, path.name)


def iterate_dataset(dataset: Any, source: str) -> Iterator[RawRow]:
    """`(where, row)` for a Hugging Face dataset, or for any iterable of mappings.

    Raises `DataError` for a dataset with a column of images, before any of them is decoded.
    """
    is_arrow = hasattr(dataset, "features")
    if is_arrow and dataset.column_names:
        for name in IMAGE_COLUMNS:
            if name in dataset.column_names:
                raise DataError(f"{source} has a column {name!r}: {TEXT_ALONE}")
        dataset = dataset.select_columns(check_columns(source, dataset.column_names)).with_format(None)
        if hasattr(dataset, "num_rows"):  # a table: by batches, which is ten times as fast as row by row
            dataset = _iterate_table(dataset)
    for number, row in enumerate(dataset):
        yield f"{source} row {number}", drop_nulls(row) if is_arrow else row


def _iterate_table(dataset: Any) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter(batch_size=256):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def check_columns(source: str, names: Sequence[str]) -> list[str]:
    """Those of a table's columns that are read. Raises `DataError` if they make neither sort of row."""
    present = set(names)
    if not present >= {"prompt", "completion", "label"} and not present >= {"chosen", "rejected"}:
        raise DataError(
            f"{source} has the columns {', '.join(map(repr, names))}: it needs prompt, completion and label, "
            "or prompt, chosen and rejected. Rename its columns"
        )
    return [name for name in names if name in COLUMNS]


def drop_nulls(value: Any, *, at_top: bool = True) -> Any:
    """The value without the keys that Arrow had to fill in with null; columns themselves stay.

    Arrow gives every object of a column the same keys, so that null and absent are one there.
    """
    if isinstance(value, Mapping):
        return {
            key: drop_nulls(item, at_top=False) for key, item in value.items() if at_top or item is not None
        }
    if isinstance(value, (list, tuple)):
        return [drop_nulls(item, at_top=False) for item in value]
    return value
