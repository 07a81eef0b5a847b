"""`thumbtune snapshot` and `snapshot-explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from store.conftest import make_completion, make_vote
from thumbtune.errors import ConfigError, DataError
from thumbtune.store.database import Store
from thumbtune.store.votes import Press, write_completions, write_votes


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    """A store with four votes of one person."""
    opened = Store(str(tmp_path / "votes.db"))
    with opened.write() as connection:
        write_completions(connection, [make_completion(f"c{i}", created_us=i) for i in range(4)])
        write_votes(connection, [Press(make_vote(f"c{i}", i > 0, created_us=i)) for i in range(4)])
    opened.close()
    return tmp_path / "votes.db"


def run(*arguments: object) -> None:
    from thumbtune.cli.app import app

    app([str(argument) for argument in arguments], standalone_mode=False)


def test_votes_are_frozen_counted_and_explained(votes: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "one"
    run("snapshot", "--store", votes, "--out", out, "--most-votes-of-one", 3, "--held-out", 0)
    said = capsys.readouterr().out
    assert "3 rows, 3 👍 and 0 👎" in said
    assert "left out: 1 votes, voter's share is full" in said
    assert f"thumbtune train {out / 'train.parquet'}" in said
    run("snapshot-explain", out, 1)
    assert capsys.readouterr().out == "voter's share is full\n"
    run("snapshot-explain", out, 2, "--json")
    assert json.loads(capsys.readouterr().out) == {"vote_id": 2, "outcome": "kept: training"}
    assert {path.name for path in tmp_path.iterdir() if path.suffix not in (".db-wal", ".db-shm")} == {
        "votes.db",
        "one",
    }


def test_rules_are_switched_off_by_name_and_nonsense_is_refused(
    votes: Path, tmp_path: Path, capsys: Any
) -> None:
    off = [part for name in ("quorum", "near-duplicates", "burst-votes") for part in (f"--{name}", "off")]
    run("snapshot", "--store", votes, "--out", tmp_path / "x", *off, "--held-out", 0, "--json")
    rules = json.loads(capsys.readouterr().out)["rules"]
    assert rules["quorum"] is rules["near_duplicates"] is rules["burst_votes"] is None
    assert rules["most_votes_of_one"] == 20
    for option, value in (("--quorum", "most"), ("--kinds", "thumb"), ("--memory-limit", "plenty")):
        with pytest.raises(ConfigError):
            run("snapshot", "--store", votes, "--out", tmp_path / "y", option, value)
    with pytest.raises(DataError, match="no snapshot"):
        run("snapshot-explain", tmp_path, 1)
    assert not list(tmp_path.glob(".*"))
