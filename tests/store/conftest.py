"""Every store test runs twice: on a SQLite file, and on a PostgreSQL server that the session starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thumbtune.records import Completion, Vote
from thumbtune.store.database import Store, now_us


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store."""
    if request.param == "sqlite":
        return str(tmp_path / "votes.db")
    make: Callable[[], str] = request.getfixturevalue("make_postgres_database")
    return make()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open, empty store."""
    opened = Store(store_url)
    yield opened
    opened.close()


def make_completion(name: str, **changes: Any) -> Completion:
    """A completion served to user u1."""
    settings = {
        "id": name,
        "user_key": "u1",
        "conversation_key": "c1",
        "messages": [{"role": "user", "content": f"Question {name}?"}],
        "completion": {"role": "assistant", "content": f"Answer {name}."},
        "finish_reason": "stop",
        "model_version": "base-1",
        "arm": "champion",
        "created_us": now_us(),
    }
    return Completion(**{**settings, **changes})


def make_vote(completion_id: str, label: bool | None = True, **changes: Any) -> Vote:
    """A press of user u1."""
    settings = {"completion_id": completion_id, "user_key": "u1", "label": label, "created_us": now_us()}
    return Vote(**{**settings, **changes})
