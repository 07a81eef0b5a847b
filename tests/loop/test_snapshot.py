"""Frozen folders: read by training, equal whatever came in what order, found by an erasure, forgotten after one."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from store.conftest import make_completion, make_vote
from thumbtune.data.formats import read_rows
from thumbtune.errors import ConfigError, DataError
from thumbtune.loop.curate import HELD_OUT, TRAINING, CurationRules
from thumbtune.loop.near_duplicates import find_near_duplicates
from thumbtune.loop.row_files import read_columns, write_rows
from thumbtune.loop.snapshot import (
    Snapshot,
    enter_snapshot,
    explain_vote,
    freeze,
    read_snapshot,
    take_snapshot,
)
from thumbtune.loop.staging import digest_text, read_staged, stage_votes
from thumbtune.records import Completion, Vote
from thumbtune.store.database import Store
from thumbtune.store.erasure import erase_user
from thumbtune.store.schema import model_versions, snapshot_completions, snapshots
from thumbtune.store.votes import Press, write_completions, write_votes

DAY_US = 86_400_000_000
RULES = CurationRules(held_out_share=0.3)
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": '{"city": "Ankara"}'}}


def make_history(n_people: int = 12) -> tuple[list[Completion], list[Vote]]:
    """Each of so many people asks thrice and votes on what came; every third answer has a second voter."""
    served, pressed = [], []
    for person in range(n_people):
        for turn in range(3):
            name, user = f"c{person}-{turn}", f"u{person}"
            words = " ".join(f"w{person}{turn}{i}" for i in range(12))
            served.append(
                make_completion(
                    name,
                    user_key=user,
                    conversation_key=f"k{person}",
                    completion={"role": "assistant", "content": f"Yanıt: {words}."},
                    created_us=turn,
                )
            )
            pressed.append(make_vote(name, (person + turn) % 3 > 0, user_key=user, created_us=DAY_US + turn))
            if turn == 0:
                pressed.append(
                    make_vote(
                        name, person % 3 > 0, user_key=f"u{(person + 1) % n_people}", created_us=2 * DAY_US
                    )
                )
    return served, pressed


def fill(store: Store, served: Sequence[Completion], pressed: Sequence[Vote]) -> None:
    with store.write() as connection:
        write_completions(connection, served)
        statuses = write_votes(connection, [Press(vote) for vote in pressed])
    assert set(statuses) <= {"recorded", "changed", "retracted"}


def freeze_store(store: Store, folder: Path, rules: CurationRules = RULES, **how: Any) -> Snapshot:
    folder.mkdir()
    return freeze(stage_votes(store, folder / "staged"), rules, folder / "snapshot", **how)


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path / "one.db"))
    yield opened
    opened.close()


def test_training_reads_a_snapshot_with_the_digest_it_is_entered_under(store: Store, tmp_path: Path) -> None:
    fill(store, *make_history())
    snapshot = freeze_store(store, tmp_path / "x")
    train, held_out = read_rows(snapshot.train), read_rows(snapshot.held_out)
    assert (train.digest, held_out.digest) == (snapshot.digest, snapshot.held_out_digest)
    assert (len(train.examples), len(held_out.examples)) == (snapshot.n_rows, snapshot.n_held_out)
    assert sum(row.label for row in train.examples) == snapshot.n_up > 0
    assert snapshot.n_held_out > 0
    assert snapshot.outcomes[TRAINING] == snapshot.n_rows
    assert snapshot.outcomes[HELD_OUT] == snapshot.n_held_out
    assert sum(snapshot.outcomes.values()) == 48
    assert read_snapshot(snapshot.folder) == snapshot
    assert {path.name for path in snapshot.folder.iterdir()} == {
        "train.parquet",
        "held_out.parquet",
        "outcomes.parquet",
        "manifest.json",
    }
    enter_snapshot(store, snapshot)
    enter_snapshot(store, snapshot)
    held = {
        row["completion_id"]
        for path in (snapshot.train, snapshot.held_out)
        for row in read_columns(path, ["completion_id"])
    }
    with store.read() as connection:
        assert connection.scalars(select(snapshots.c.digest)).all() == [snapshot.digest]
        assert set(connection.scalars(select(snapshot_completions.c.completion_id))) == held


def test_the_digest_hangs_on_what_was_voted_not_on_the_order_or_the_database(
    tmp_path: Path,
    make_postgres_database: Any,
) -> None:
    served, pressed = make_history()
    chance = random.Random(0)
    found = []
    for number, url in enumerate((tmp_path / "a.db", tmp_path / "b.db", make_postgres_database())):
        opened = Store(str(url))
        fill(opened, served, pressed)
        found.append(freeze_store(opened, tmp_path / f"x{number}"))
        opened.close()
        served, pressed = chance.sample(served, len(served)), chance.sample(pressed, len(pressed))
    assert len({snapshot.digest for snapshot in found}) == 1
    assert len({snapshot.held_out_digest for snapshot in found}) == 1
    assert len({json.dumps(snapshot.outcomes) for snapshot in found}) == 1
    rows = [list(read_columns(snapshot.train)) for snapshot in found]
    assert rows[0] == rows[1] == rows[2]


def test_a_later_snapshot_moves_nobody_across_the_split(sqlite_store: Store, tmp_path: Path) -> None:
    served, pressed = make_history(30)
    fill(
        sqlite_store,
        served[:30],
        [vote for vote in pressed if int(vote.user_key[1:]) < 10 and vote.created_us < 2 * DAY_US],
    )
    first = freeze_store(sqlite_store, tmp_path / "first")
    fill(sqlite_store, served[30:], [vote for vote in pressed if int(vote.user_key[1:]) >= 10])
    later = freeze_store(sqlite_store, tmp_path / "later")

    def find_voters(path: Path | None) -> set[str]:
        assert path is not None
        return {row["user_key"] for row in read_columns(path, ["user_key"])}

    assert find_voters(first.held_out)
    assert not find_voters(first.held_out) & find_voters(later.train)
    assert find_voters(first.train) & find_voters(later.train)


def test_an_erasure_names_snapshot_and_model_and_no_later_snapshot_holds_the_user(
    store: Store,
    tmp_path: Path,
) -> None:
    fill(store, *make_history())
    snapshot = freeze_store(store, tmp_path / "x")
    enter_snapshot(store, snapshot)
    user = next(read_columns(snapshot.train, ["user_key"]))["user_key"]
    with store.write() as connection:
        connection.execute(
            insert(model_versions).values(
                version="adapter-1",
                kind="adapter",
                location="x",
                snapshot=read_rows(snapshot.train).digest,
                config={},
                metrics={},
                created_us=0,
            )
        )
    erasure = erase_user(store, user, actor="test")
    assert (erasure.snapshots, erasure.versions) == ([snapshot.digest], ["adapter-1"])
    later = freeze_store(store, tmp_path / "later")
    person = user[1:]
    for path in (later.train, later.held_out):
        for row in read_columns(path):
            assert row["user_key"] != user
            assert f"Answer c{person}-" not in json.dumps(row)
            assert not row["completion_id"].startswith(f"c{person}-")
    assert later.digest != snapshot.digest


@pytest.mark.parametrize("who", ["asker", "voter"])
def test_an_erasure_between_reading_and_entering_is_noticed(
    sqlite_store: Store, tmp_path: Path, who: str
) -> None:
    served = [make_completion(f"c{i}", user_key="asker") for i in range(3)]
    fill(sqlite_store, served, [make_vote(f"c{i}", user_key="voter") for i in range(3)])
    snapshot = freeze_store(sqlite_store, tmp_path / "x", CurationRules(held_out_share=0.0))
    erase_user(sqlite_store, who, actor="test")
    with pytest.raises(DataError, match="freeze anew"):
        enter_snapshot(sqlite_store, snapshot)


def test_a_snapshot_of_someone_erased_meanwhile_does_not_stay(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_store, *make_history())

    def freeze_slowly(*given: Any, **how: Any) -> Snapshot:
        frozen = freeze(*given, **how)
        erase_user(sqlite_store, "u0", actor="test")
        return frozen

    monkeypatch.setattr("thumbtune.loop.snapshot.freeze", freeze_slowly)
    with pytest.raises(DataError, match="freeze anew"):
        take_snapshot(sqlite_store, RULES, tmp_path / "x")
    monkeypatch.undo()
    (tmp_path / ".x.staged").mkdir()
    (tmp_path / ".x.part").mkdir()
    (tmp_path / ".x.part/left").write_text("by a killed run")
    assert take_snapshot(sqlite_store, RULES, tmp_path / "x").n_rows > 0
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"x"}


def test_an_edit_is_two_rows_and_every_vote_is_explained(sqlite_store: Store, tmp_path: Path) -> None:
    served = [
        make_completion("edited", messages=[{"role": "user", "content": "Başkent?"}], tools=[TOOL]),
        make_completion("call", completion={"role": "assistant", "content": None, "tool_calls": [CALL]}),
        make_completion("cut", finish_reason="length"),
        make_completion("blank", completion={"role": "assistant", "content": " \n"}),
    ]
    pressed = [
        make_vote("edited", False, kind="edit", correction="Ankara.", created_us=1),
        make_vote("call", True, created_us=2),
        make_vote("cut", True, strength=0.5, created_us=11 * DAY_US),
        make_vote("blank", False, created_us=4),
    ]
    fill(sqlite_store, served, pressed)
    rules = CurationRules(kinds=("explicit", "edit"), held_out_share=0.0, half_life_days=11)
    snapshot = freeze_store(sqlite_store, tmp_path / "x", rules)
    rows = read_rows(snapshot.train)
    assert rows.digest == snapshot.digest
    found = {(row.completion[0].get("content"), row.label, row.finished, row.weight) for row in rows.examples}
    assert found == {
        ("Answer edited.", False, True, 0.5),
        ("Ankara.", True, True, 0.5),
        (None, True, True, 0.5),
        ("Answer cut.", True, False, 0.5),
    }
    assert snapshot.n_rows == 4
    assert snapshot.held_out is None
    assert [explain_vote(snapshot.folder, vote) for vote in (1, 2, 3, 4)] == [TRAINING] * 3 + [
        "empty completion"
    ]
    with pytest.raises(DataError, match="no vote 5"):
        explain_vote(snapshot.folder, 5)


def test_a_snapshot_is_refused_where_it_would_overwrite_or_hold_nothing(
    sqlite_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="holds no vote"):
        stage_votes(sqlite_store, tmp_path / "empty")
    fill(sqlite_store, *make_history(3))
    staged = stage_votes(sqlite_store, tmp_path / "staged")
    assert read_staged(tmp_path / "staged") == staged
    with pytest.raises(ConfigError, match="in use"):
        stage_votes(sqlite_store, tmp_path / "staged")
    (tmp_path / "there").mkdir()
    for folder, says in ((tmp_path / "there", "exists"), (tmp_path / "no/x", "make it first")):
        with pytest.raises(ConfigError, match=says):
            freeze(staged, RULES, folder)
    with pytest.raises(DataError, match=r"no vote is left to train on .*not asked for"):
        freeze(staged, CurationRules(kinds=("copy",)), tmp_path / "none")
    with pytest.raises(DataError, match="no snapshot"):
        explain_vote(tmp_path, 1)
    assert not list(tmp_path.glob(".*"))


def test_texts_that_look_the_same_are_the_same() -> None:
    composed, apart = "\u00e9 \u0130", "e\u0301 I\u0307"
    assert digest_text(composed) == digest_text(apart)
    assert digest_text("I") != digest_text("ı") != digest_text("i")


def test_near_duplicates_are_dropped_within_a_label_and_counted(sqlite_store: Store, tmp_path: Path) -> None:
    long = " ".join(f"word{i}" for i in range(80))
    texts = {"a": long, "b": f"{long} more", "c": long.replace("word4", "Word4"), "d": f"{long} other"}
    served = [
        make_completion(
            name,
            messages=[{"role": "user", "content": f"{name} ask"}],
            completion={"role": "assistant", "content": text},
        )
        for name, text in texts.items()
    ]
    fill(sqlite_store, served, [make_vote(name, name != "d", created_us=i) for i, name in enumerate(texts)])
    rules = CurationRules(held_out_share=0.0, near_duplicates=0.8)
    snapshot = freeze_store(sqlite_store, tmp_path / "x", rules)
    # a and b have 80 and 81 word triples with their prompts, and 79 in common: 79 / 82; c has 11 other words; d is a 👎
    assert snapshot.outcomes == {"near duplicate": 1, TRAINING: 3}
    assert sorted(explain_vote(snapshot.folder, vote) for vote in (1, 2)) == [TRAINING, "near duplicate"]
    off = freeze_store(sqlite_store, tmp_path / "y", replace(rules, near_duplicates=None))
    assert off.n_rows == 4
    assert "near duplicates" not in off.seconds


def test_training_holds_nothing_nearly_the_same_as_the_hold_out_whatever_its_label(
    sqlite_store: Store, tmp_path: Path
) -> None:
    long = " ".join(f"word{i}" for i in range(80))
    served = [
        make_completion(
            name,
            user_key=f"u{name}",
            conversation_key=name,
            messages=[{"role": "user", "content": f"{name} ask"}],
            completion={
                "role": "assistant",
                "content": f"{long} {name}" if int(name) < 20 else f"{name} else",
            },
        )
        for name in map(str, range(40))
    ]
    pressed = [make_vote(c.id, int(c.id) % 2 == 0, user_key=c.user_key, created_us=1) for c in served]
    fill(sqlite_store, served, pressed)
    snapshot = freeze_store(
        sqlite_store, tmp_path / "x", CurationRules(held_out_share=0.3, near_duplicates=0.8)
    )
    held, trained = (
        {row["completion_id"] for row in read_columns(path)} for path in (snapshot.held_out, snapshot.train)
    )
    assert any(int(name) < 20 for name in held)
    assert not any(int(name) < 20 for name in trained)
    assert snapshot.outcomes["near duplicate"] == 20 - sum(int(name) < 20 for name in held)


def test_near_duplicates_are_those_that_exact_similarity_finds_away_from_the_threshold() -> None:
    chance = random.Random(0)
    rows: list[tuple[int, bool, str]] = []
    for number in range(300):
        words = [f"w{chance.randrange(5_000)}" for _ in range(60)]
        rows.append((2 * number, True, " ".join(words)))
        if number % 3 == 0:  # 57 of 59 triples remain: 0.966
            rows.append((2 * number + 1, True, " ".join([*words[:-1], "end"])))
        elif number % 3 == 1:  # 15 words changed: far below
            rows.append((2 * number + 1, True, " ".join([*words[:30], *"abcdefghijklmno", *words[45:]])))
    dropped = find_near_duplicates(rows, 0.85)
    assert dropped == [2 * number + 1 for number in range(0, 300, 3)]
    assert find_near_duplicates(rows, 0.85) == dropped


def test_rows_with_ever_new_keys_fit_one_table_and_rows_that_fit_none_are_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": str(i)}],
            "completion": [{"role": "assistant", "content": "x"}],
            "label": True,
        }
        for i in range(10_000)
    ]
    rows[9_000]["completion"] = [{"role": "assistant", "tool_calls": [CALL]}]
    written = write_rows(lambda: iter(rows), tmp_path / "a.parquet")
    assert written == tmp_path / "a.parquet"
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(written).digest == read_rows(plain).digest
    rows[9_500]["prompt"] = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    written = write_rows(lambda: iter(rows), tmp_path / "b.parquet")
    assert written == tmp_path / "b.jsonl"
    assert read_rows(written).digest != read_rows(plain).digest
    assert not (tmp_path / "b.parquet").exists()
    assert write_rows(lambda: iter([]), tmp_path / "c.parquet") is None


@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="PySpark or Java is missing: make test-spark",
)
@pytest.mark.filterwarnings("ignore")
def test_spark_freezes_the_same_digest(sqlite_store: Store, tmp_path: Path) -> None:
    served, pressed = make_history(40)
    fill(sqlite_store, served, pressed)
    staged = stage_votes(sqlite_store, tmp_path / "staged")
    rules = CurationRules(held_out_share=0.2, half_life_days=3, most_votes_of_one=3, max_age_days=20)
    duckdb, spark = (
        freeze(staged, rules, tmp_path / backend, backend=backend, memory_limit="1GB")
        for backend in ("duckdb", "spark")
    )
    assert (spark.digest, spark.held_out_digest) == (duckdb.digest, duckdb.held_out_digest)
    assert spark.outcomes == duckdb.outcomes
    for vote in range(1, 161):
        assert explain_vote(spark.folder, vote) == explain_vote(duckdb.folder, vote)
