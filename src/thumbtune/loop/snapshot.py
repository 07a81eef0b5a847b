"""A snapshot: the votes that are learned from, frozen in a folder, the same bytes' worth on every backend.

    snapshot = take_snapshot(store, CurationRules(), Path("snapshots/7"))

    snapshots/7/train.parquet      rows to train on, as an export's
                held_out.parquet   rows to measure on, of people who are never trained on
                outcomes.parquet   (vote_id, outcome) of every press: no text, nobody's key
                manifest.json      rules, counts, seconds, package versions, digests

A snapshot is named by the digest of `train.parquet`: the one that training computes over the rows that it reads and
writes into its manifest, so `model_versions.snapshot` and `snapshots.digest` are equal and an erasure finds the models
that learned from a person. Rows stand in the order of their texts' digests, which no two share, so that this digest
hangs neither on the backend nor on the order in which votes came. The hold-out has its own digest in the manifest; two
snapshots that differ in nothing else share one entry in the store, which then names the completions of both.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from thumbtune.data.rows import read_content
from thumbtune.errors import ConfigError, DataError
from thumbtune.loop.backends import Backend, connect
from thumbtune.loop.curate import HELD_OUT, NEAR_DUPLICATE, OUTCOMES, TRAINING, CurationRules, curate
from thumbtune.loop.near_duplicates import find_near_duplicates
from thumbtune.loop.row_files import read_columns, write_rows
from thumbtune.loop.staging import Staged, stage_votes
from thumbtune.store.database import Store
from thumbtune.store.schema import completions, erasures, snapshot_completions
from thumbtune.store.snapshots import digest_rows, make_rows, write_snapshot

if TYPE_CHECKING:
    from ibis import Table

_FILES = {TRAINING: "train.parquet", HELD_OUT: "held_out.parquet"}

PACKAGES = ("thumbtune", "ibis-framework", "duckdb", "pyspark", "rensa", "pyarrow")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen folder and what is in it."""

    folder: Path
    digest: str
    """Training's digest of `train.parquet`: the snapshot's name in the store."""
    held_out_digest: str | None
    """The same of `held_out.parquet`; None where nothing is held out."""
    n_rows: int
    n_up: int
    n_held_out: int
    n_held_out_up: int
    outcomes: Mapping[str, int]
    """Presses by what became of them; they add up to all presses."""
    rules: Mapping[str, Any]
    newest_us: int
    staged_us: int
    seconds: Mapping[str, float]
    """By step."""
    backend: str
    packages: Mapping[str, str]
    files: Mapping[str, str]
    """Names of the files of rows: train, and held_out where there is one."""

    @property
    def train(self) -> Path:
        return self.folder / self.files["train"]

    @property
    def held_out(self) -> Path | None:
        return self.folder / self.files["held_out"] if "held_out" in self.files else None


def take_snapshot(
    store: Store,
    rules: CurationRules,
    folder: Path,
    *,
    backend: Backend = "duckdb",
    memory_limit: str = "2GB",
) -> Snapshot:
    """Stage, freeze and enter a store's votes as of now, in one call. Raises `ConfigError`, `DataError`.

    One process a folder at a time; what a killed one left beside it is cleared away.
    """
    _check_is_new(folder)
    staging = folder.with_name(f".{folder.name}.staged")
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
    try:
        staged = stage_votes(store, staging)
        snapshot = freeze(staged, rules, folder, backend=backend, memory_limit=memory_limit)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    try:
        enter_snapshot(store, snapshot)
    except DataError:
        shutil.rmtree(folder)
        raise
    return snapshot


def freeze(
    staged: Staged,
    rules: CurationRules,
    folder: Path,
    *,
    backend: Backend = "duckdb",
    memory_limit: str = "2GB",
) -> Snapshot:
    """Curate staged votes into a new folder, which appears whole or not at all. Raises `ConfigError`, `DataError`.

    `memory_limit` is DuckDB's (and the heap of Spark's driver); what needs more goes through the disk.
    """
    _check_is_new(folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        snapshot = _freeze_into(part, folder, staged, rules, backend, memory_limit)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return snapshot


def _check_is_new(folder: Path) -> None:
    if folder.exists():
        raise ConfigError(f"{folder} exists: name a new folder")
    if not folder.parent.is_dir():
        raise ConfigError(f"{folder}: the folder {folder.parent} does not exist: make it first")


def _freeze_into(
    part: Path, folder: Path, staged: Staged, rules: CurationRules, backend: Backend, memory_limit: str
) -> Snapshot:
    seconds = {"stage": round(staged.seconds, 3)}
    work = part / "work"
    work.mkdir()
    with connect(backend, work, memory_limit) as database:
        presses = database.read(staged.votes)
        with _timed(seconds, "curate"):
            outcomes = curate(
                presses,
                rules,
                staged.newest_us,
                lambda step, number: database.write(step, work / f"step-{number}.parquet"),
            )
            judged = database.write(outcomes, work / "judged.parquet")
        with _timed(seconds, "join texts"):
            for side, name in _FILES.items():
                chosen = judged.filter(judged.outcome == side).select("vote_id")
                database.write(_join_texts(chosen, presses, database.read(staged.texts)), work / name)
    redundant: set[int] = set()
    if rules.near_duplicates is not None:
        with _timed(seconds, "near duplicates"):
            redundant = _find_redundant(
                work / _FILES[TRAINING], work / _FILES[HELD_OUT], rules.near_duplicates
            )
    with _timed(seconds, "write rows"):
        train, held_out = (
            _write_side(work / name, part / name, rules, staged.newest_us, redundant)
            for name in _FILES.values()
        )
    with _timed(seconds, "write outcomes"):
        counts = _write_outcomes(work / "judged.parquet", part / "outcomes.parquet", redundant)
    shutil.rmtree(work)
    if not train.n_rows:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts.items())
        advice = "loosen the rules, or wait for votes"
        if set(counts) == {HELD_OUT}:
            advice = (
                "whoever voted is held out, so votes of more people are needed, or a smaller held_out_share"
            )
        raise DataError(f"no vote is left to train on ({reasons}): {advice}")
    sides = {"train": train, "held_out": held_out}
    snapshot = Snapshot(
        folder=folder,
        digest=train.digest,
        held_out_digest=held_out.digest or None,
        n_rows=train.n_rows,
        n_up=train.n_up,
        n_held_out=held_out.n_rows,
        n_held_out_up=held_out.n_up,
        outcomes=counts,
        rules=asdict(rules) | {"kinds": list(rules.kinds)},
        newest_us=staged.newest_us,
        staged_us=staged.staged_us,
        seconds=seconds,
        backend=backend,
        packages=_list_versions(),
        files={name: side.file for name, side in sides.items() if side.file},
    )
    manifest = asdict(snapshot) | {"folder": None}
    (part / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    return snapshot


def read_snapshot(folder: Path) -> Snapshot:
    """A frozen folder, by its manifest. Raises `DataError`."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder} holds no snapshot: `thumbtune snapshot` makes one") from error
    return Snapshot(**manifest | {"folder": folder})


def explain_vote(folder: Path, vote_id: int) -> str:
    """What became of a press in a snapshot. Raises `DataError`."""
    import pyarrow.parquet

    read_snapshot(folder)
    found = pyarrow.parquet.read_table(folder / "outcomes.parquet", filters=[("vote_id", "=", vote_id)])
    if not found.num_rows:
        raise DataError(f"{folder} knows no vote {vote_id}: it was pressed later, or erased")
    outcome: str = found["outcome"][0].as_py()
    return outcome


def enter_snapshot(store: Store, snapshot: Snapshot) -> None:
    """Enter a snapshot in the store with the completions it holds, so that an erasure can name it; twice is once.

    Raises `DataError` where someone in it was erased since its votes were staged: an erasure could not name it then.
    """
    ids, voters = set(), set()
    for path in (snapshot.train, snapshot.held_out):
        if path is not None:
            for row in read_columns(path, ["completion_id", "user_key"]):
                ids.add(row["completion_id"])
                voters.add(row["user_key"])
    manifest = {name: value for name, value in asdict(snapshot).items() if name != "folder"}
    write_snapshot(store, snapshot.digest, snapshot.folder, snapshot.n_rows, manifest, sorted(ids))
    held = snapshot_completions
    with store.read() as connection:
        erased = connection.scalar(
            select(completions.c.id)
            .join(held, held.c.completion_id == completions.c.id)
            .where(held.c.digest == snapshot.digest, completions.c.erased_us >= snapshot.staged_us)
            .limit(1)
        )
        forgotten = connection.scalars(
            select(erasures.c.user_key).where(erasures.c.at_us >= snapshot.staged_us)
        ).all()
    if erased is not None or voters.intersection(forgotten):
        raise DataError(
            f"{snapshot.folder} holds a user's text or vote that was erased while it was being frozen: "
            "delete the folder, and freeze anew"
        )


def _join_texts(chosen: Table, presses: Table, texts: Table) -> Table:
    """Chosen presses beside their texts, in an order that hangs on what they say alone."""
    beside = chosen.inner_join(presses, "vote_id").inner_join(texts, "completion_id")
    return beside.order_by("prompt_digest", "completion_digest", "correction_digest", "label")


def _find_redundant(training: Path, held_out: Path, threshold: float) -> set[int]:
    """Numbers of the training presses whose text stands nearly the same before them, or in the hold-out.

    A correction is never one.
    """
    columns = ["vote_id", "label", "kind", "messages", "completion"]
    measured: set[int] = set()

    def iterate() -> Iterator[tuple[int, bool, str]]:
        for row in read_columns(held_out, columns):
            measured.add(row["vote_id"])
            for label in (False, True):
                yield row["vote_id"], label, _join_words(row)
        for row in read_columns(training, columns):
            if row["kind"] != "edit":
                yield row["vote_id"], row["label"], _join_words(row)

    return set(find_near_duplicates(iterate(), threshold)) - measured


def _join_words(row: Mapping[str, Any]) -> str:
    return "\n".join(map(read_content, [*json.loads(row["messages"]), json.loads(row["completion"])]))


@dataclass
class _Side:
    """One file of rows as it was written."""

    file: str = ""
    digest: str = ""
    n_rows: int = 0
    n_up: int = 0


def _write_side(kept: Path, path: Path, rules: CurationRules, newest_us: int, redundant: set[int]) -> _Side:
    side = _Side()

    def make() -> Iterator[dict[str, Any]]:
        side.n_rows = side.n_up = 0
        for vote in read_columns(kept):
            if vote["vote_id"] in redundant:
                continue
            for row in make_rows(
                _read_texts(vote), rules.weigh(vote["strength"], newest_us - vote["created_us"])
            ):
                side.n_rows += 1
                side.n_up += row["label"]
                yield row

    written = write_rows(make, path)
    if written is not None:
        side.file, side.digest = written.name, digest_rows(written)
    return side


def _read_texts(vote: dict[str, Any]) -> dict[str, Any]:
    """A staged vote as the store gives it: texts as objects, its own correction beside them."""
    for name in ("messages", "completion", "tools", "corrections"):
        if vote[name] is not None:
            vote[name] = json.loads(vote[name])
    vote["correction"] = (vote["corrections"] or {}).get(str(vote["vote_id"]))
    return vote


def _write_outcomes(judged: Path, path: Path, redundant: set[int]) -> dict[str, int]:
    """Write what became of every press; gives the counts, in the order of the rules."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.dataset
    import pyarrow.parquet

    lost = pyarrow.array(sorted(redundant), pyarrow.int64())
    text = pyarrow.dictionary(pyarrow.int8(), pyarrow.string())
    schema = pyarrow.schema({"vote_id": pyarrow.int64(), "outcome": text}.items())
    counts = Counter[str]()
    with pyarrow.parquet.ParquetWriter(path, schema) as file:
        for batch in pyarrow.dataset.dataset(judged, format="parquet").to_batches():
            is_lost = pyarrow.compute.is_in(batch["vote_id"], lost)
            outcome = pyarrow.compute.if_else(
                is_lost, NEAR_DUPLICATE, batch["outcome"].cast(pyarrow.string())
            )
            for pair in outcome.value_counts().to_pylist():
                counts[pair["values"]] += pair["counts"]
            file.write_batch(pyarrow.record_batch([batch["vote_id"], outcome.cast(text)], schema=schema))
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]}


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 3)


def _list_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
