"""Checkpoints that are whole or not there.

A checkpoint is written into a hidden folder beside its place, flushed to the disk, and renamed. Whatever kills the
process, the folders named `checkpoint-N` can be continued from; what a kill left half-written is swept up by the
next run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thumbtune.errors import CheckpointError

STAGING_PREFIX = ".saving-"


@contextmanager
def staged_checkpoint(run_folder: Path, name: str) -> Iterator[Path]:
    """A folder to write `name` into, moved to `run_folder / name` if the block ends well, removed if not.

    Raises `CheckpointError` where the disk is full or the folder cannot be written.
    """
    staging = run_folder / f"{STAGING_PREFIX}{os.getpid()}"
    final = run_folder / name
    try:
        staging.mkdir(parents=True, exist_ok=True)
        yield staging
        _flush(staging / name)
        if final.exists():
            shutil.rmtree(final)
        os.replace(staging / name, final)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        good = last_checkpoint(run_folder)
        kept = f"the last good checkpoint is {good}" if good else "no earlier checkpoint exists"
        raise CheckpointError(
            f"{final} could not be saved: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            f"Free some space or name another folder, then run again; {kept}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def last_checkpoint(run_folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    found = [
        path for path in run_folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()
    ]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def sweep_staging(run_folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in run_folder.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
