"""Votes out, as rows that training reads; and the copy of a whole store."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from postgres import find_programs
from store.conftest import make_completion, make_vote
from thumbtune.data.formats import read_rows
from thumbtune.errors import ConfigError, DataError
from thumbtune.store.backup import back_up
from thumbtune.store.database import Store
from thumbtune.store.export import Weighing, export_votes
from thumbtune.store.reading import VoteFilter, list_votes
from thumbtune.store.votes import Press, write_completions, write_votes


@pytest.fixture
def filled(store: Store) -> Store:
    """Six completions; 👍, 👎, an edit, a vote on an empty, on a cut and on a cancelled one."""
    with store.write() as connection:
        write_completions(
            connection,
            [
                make_completion("up"),
                make_completion(
                    "down",
                    messages=[{"role": "system", "content": "Kısa."}, {"role": "user", "content": "?"}],
                ),
                make_completion("empty", completion={"role": "assistant", "content": ""}),
                make_completion("cut", finish_reason="length"),
                make_completion("left", finish_reason="cancelled"),
                make_completion(
                    "call", completion={"role": "assistant", "content": "", "tool_calls": [CALL]}
                ),
            ],
        )
        presses = [
            make_vote("up", True),
            make_vote("down", False),
            make_vote("down", False, kind="edit", correction="Doğrusu."),
            make_vote("empty", False),
            make_vote("cut", True),
            make_vote("left", False),
            make_vote("call", True),
            make_vote("up", False, kind="retry", strength=0.5),
        ]
        write_votes(connection, [Press(vote) for vote in presses])
    return store


CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Ankara"}}}


@pytest.mark.parametrize("name", ["thumbs.jsonl", "thumbs.parquet", "thumbs"])
def test_an_export_is_read_by_training_with_the_digest_that_it_was_entered_under(
    filled: Store, tmp_path: Path, name: str
) -> None:
    export = export_votes(filled, tmp_path / name)
    rows = read_rows(tmp_path / name)
    assert rows.digest == export.digest
    assert rows.refusals.total == 0
    assert [(row.completion[0]["content"], row.label, row.finished) for row in rows.examples] == [
        ("Answer up.", True, True),
        ("Answer down.", False, True),
        ("Answer cut.", True, False),
        ("", True, True),
    ]
    assert (export.n_rows, export.n_up) == (4, 3)
    assert dict(export.left_out) == {"empty completion": 1, "broken off before its end": 1}
    assert not list(tmp_path.glob(".*"))


def test_an_edit_is_two_rows_and_a_hint_weighs_less(filled: Store, tmp_path: Path) -> None:
    export_votes(filled, tmp_path / "x.jsonl", wanted=VoteFilter(kinds=("edit", "retry")))
    rows = read_rows(tmp_path / "x.jsonl").examples
    assert [(row.completion[0]["content"], row.label, row.weight) for row in rows] == [
        ("Answer down.", False, 1.0),
        ("Doğrusu.", True, 1.0),
        ("Answer up.", False, 0.5),
    ]


def test_an_export_is_refused_where_it_would_overwrite_or_hold_nothing(filled: Store, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    for path, says in (
        (tmp_path / "there.jsonl", "exists"),
        (tmp_path / "no/x.jsonl", "folder"),
        (tmp_path / "x.csv", "ends in"),
    ):
        with pytest.raises(ConfigError, match=says):
            export_votes(filled, path)
    with pytest.raises(DataError, match="no vote to export"):
        export_votes(filled, tmp_path / "x.jsonl", wanted=VoteFilter(model_version="typo"))
    assert {path.name for path in tmp_path.iterdir()} - {"votes.db", "votes.db-wal", "votes.db-shm"} == {
        "there.jsonl"
    }


def test_the_same_votes_give_the_same_digest_on_both_databases(
    tmp_path: Path, make_postgres_database: object
) -> None:
    digests = []
    for url in (str(tmp_path / "a.db"), make_postgres_database()):  # type: ignore[operator]
        store = Store(url)
        with store.write() as connection:
            write_completions(connection, [make_completion(f"c{i}", created_us=i) for i in range(5)])
            write_votes(connection, [Press(make_vote(f"c{i}", i % 2 == 0, created_us=i)) for i in range(5)])
        digests.append(export_votes(store, tmp_path / f"{len(digests)}.jsonl").digest)
        store.close()
    assert digests[0] == digests[1]
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()


def test_a_back_up_opens_again_with_every_vote(
    filled: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = tmp_path / "copy"
    back_up(filled, copy)
    if filled.is_sqlite:
        url = str(copy)
    else:
        url = request.getfixturevalue("make_postgres_database")()
        restore = shutil.which("pg_restore") or str(find_programs() / "pg_restore")
        subprocess.run([restore, "--no-owner", f"--dbname={url}", str(copy)], check=True)
    restored = Store(url)
    assert [row["id"] for row in list_votes(restored)] == [row["id"] for row in list_votes(filled)]
    restored.close()
    with pytest.raises(ConfigError, match="overwritten"):
        back_up(filled, copy)
    assert copy.stat().st_mode & 0o077 == 0


def test_old_votes_and_those_of_a_busy_voter_weigh_less(store: Store, tmp_path: Path) -> None:
    """Half-life 10 days, at most 2 votes of one: u1 pressed 4 times (each counts 2/4), u2 once."""
    day = 86_400_000_000
    with store.write() as connection:
        write_completions(connection, [make_completion(f"c{i}", created_us=1) for i in range(5)])
        ages = [(0, "u1"), (10, "u1"), (20, "u1"), (5, "u1"), (10, "u2")]
        presses = [
            make_vote(f"c{i}", user_key=user, created_us=(30 - age) * day)
            for i, (age, user) in enumerate(ages)
        ]
        write_votes(connection, [Press(vote) for vote in presses])
    weighing = Weighing(half_life_days=10, most_votes_of_one=2)
    export_votes(store, tmp_path / "x.jsonl", weighing=weighing)
    weights = [row.weight for row in read_rows(tmp_path / "x.jsonl").examples]
    assert weights == [0.5, 0.25, 0.125, 0.353553, 0.5]
    export_votes(store, tmp_path / "plain.jsonl")
    assert {row.weight for row in read_rows(tmp_path / "plain.jsonl").examples} == {1.0}
