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

from thumbtune.engine.ranks import Ranks
from thumbtune.errors import CheckpointError, ThumbtuneError

PREFIX = "checkpoint-"
STAGING_PREFIX = ".saving-"


@contextmanager
def staged_checkpoint(run_folder: Path, name: str, *, ranks: Ranks = Ranks()) -> Iterator[Path]:
    """A folder to write `name` into, moved to `run_folder / name` if the block ends well, removed if not.

    Several ranks write into one folder; the main one moves it once all are done, and none goes on before.
    Raises `CheckpointError` where the disk is full or the folder cannot be written, on every rank.
    """
    staging, final = Path(), run_folder / name

    def stage() -> Path:
        folder = run_folder / f"{STAGING_PREFIX}{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def move() -> None:
        _flush(staging / name)
        if final.exists():
            os.replace(final, staging / f"replaced-{name}")
        os.replace(staging / name, final)
        _flush_entries(run_folder)

    try:
        staging = ranks.decide(stage)
        error: Exception | None = None
        try:
            yield staging
        except Exception as caught:
            error = caught
        ranks.fail_together(error)
        ranks.decide(move)
    except ThumbtuneError:
        raise
    except Exception as error:
        good = last_checkpoint(run_folder)
        kept = f"the last good checkpoint is {good}" if good else "no earlier checkpoint exists"
        raise CheckpointError(
            f"{final} could not be saved: {_find_cause(error, staging)}. "
            f"Free some space or name another folder, then run again; {kept}"
        ) from error
    finally:
        if ranks.is_main and staging.name.startswith(STAGING_PREFIX):
            shutil.rmtree(staging, ignore_errors=True)


def last_checkpoint(run_folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    return max(_find_checkpoints(run_folder), key=read_step, default=None)


def read_step(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def rotate_checkpoints(run_folder: Path, *, keep: int, protected: set[str]) -> None:
    """Remove the oldest checkpoints until `keep` are left, never the newest nor the `protected` names.

    Each is renamed before it is deleted, so that a kill leaves no half of one under its name.
    """
    found = sorted(_find_checkpoints(run_folder), key=read_step)
    spared = protected | {path.name for path in found[-1:]}
    doomed = [path for path in found if path.name not in spared]
    trash = run_folder / f"{STAGING_PREFIX}{os.getpid()}"
    for path in doomed[: max(len(found) - max(keep, len(spared)), 0)]:
        trash.mkdir(exist_ok=True)
        os.replace(path, trash / path.name)
    shutil.rmtree(trash, ignore_errors=True)


def sweep_staging(run_folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in run_folder.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _find_checkpoints(run_folder: Path) -> list[Path]:
    return [path for path in run_folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]


def _find_cause(error: BaseException, folder: Path) -> str:
    """The operating system's words where they are to be had: torch hides them, so some bytes are written once more."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    try:
        (folder / "probe").write_bytes(bytes(2**20))
    except OSError as refusal:
        return refusal.strerror or str(refusal)
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush_entries(path)


def _flush_entries(folder: Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_checkpoint(wanted: str | bool, folder: Path) -> str:
    """The folder to continue from; True is the newest one."""
    found = last_checkpoint(folder) if wanted is True else Path(str(wanted))
    if found is None:
        raise CheckpointError(
            f"{folder} holds no checkpoint to continue from: train without resume_from_checkpoint"
        )
    if not (found / "trainer_state.json").is_file():
        raise CheckpointError(
            f"{found} is no checkpoint (it holds no trainer_state.json): name a checkpoint-N folder"
        )
    return str(found)
