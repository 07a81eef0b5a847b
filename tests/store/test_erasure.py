"""Erasure and retention: text goes, counts stay, and what had learned from it is named."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from store.conftest import make_completion, make_vote
from thumbtune.store.database import Store, now_us
from thumbtune.store.erasure import apply_retention, erase_user
from thumbtune.store.export import export_votes
from thumbtune.store.keys import list_audit
from thumbtune.store.models import ModelVersion, register_version
from thumbtune.store.reading import list_votes
from thumbtune.store.schema import completions, erasures, metadata, votes
from thumbtune.store.votes import Press, write_completions, write_votes

DAY = 86_400_000_000


def put(store: Store, *rows: object) -> None:
    with store.write() as connection:
        write_completions(connection, [row for row in rows if type(row).__name__ == "Completion"])  # type: ignore[misc]
        write_votes(connection, [Press(row) for row in rows if type(row).__name__ == "Vote"])  # type: ignore[arg-type]


def dump(store: Store) -> str:
    with store.read() as connection:
        return "\n".join(
            str(row) for table in metadata.sorted_tables for row in connection.execute(select(table))
        )


def test_an_erased_user_leaves_counts_and_no_text(store: Store, tmp_path: Path) -> None:
    secret = [{"role": "user", "content": "SECRET question"}]
    answer = {"role": "assistant", "content": "SECRET answer"}
    put(
        store,
        make_completion("a", messages=secret, completion=answer, tools=[{"name": "SECRET"}]),
        make_completion("b", user_key="u2"),
        make_vote("a", False, comment="SECRET comment"),
        make_vote("a", True, user_key="u2", correction="quotes SECRET"),
        make_vote("b", True, comment="SECRET on another's"),
        make_vote("b", True, user_key="u2"),
    )
    with_both = export_votes(store, tmp_path / "both.jsonl")
    register_version(store, ModelVersion("adapter-2", "adapter", "x", snapshot=with_both.digest))
    register_version(store, ModelVersion("adapter-3", "adapter", "x", snapshot="another"))

    erasure = erase_user(store, "u1", actor="an admin")

    assert (erasure.n_completions, erasure.n_votes) == (1, 2)
    assert erasure.snapshots == [with_both.digest]
    assert erasure.versions == ["adapter-2"]
    assert "SECRET" not in dump(store)
    left = {(row["completion_id"], row["user_key"], row["label"]) for row in list_votes(store)}
    assert left == {("a", "u2", True), ("b", "u2", True)}
    with store.read() as connection:
        row = connection.execute(select(completions).where(completions.c.id == "a")).one()
        assert connection.execute(select(erasures)).one().n_votes == 2
    assert (row.user_key, row.messages, row.completion, row.tools) == ("erased", None, None, None)
    assert row.model_version == "base-1"
    assert list_audit(store)[0]["actor"] == "an admin"


def test_a_snapshot_that_holds_only_the_users_vote_is_named_too(store: Store, tmp_path: Path) -> None:
    put(store, make_completion("b", user_key="u2"), make_vote("b", True, user_key="u1"))
    export = export_votes(store, tmp_path / "x.jsonl")
    assert erase_user(store, "u1", actor="a").snapshots == [export.digest]


def test_erasing_a_stranger_changes_nothing(store: Store) -> None:
    put(store, make_completion("a"), make_vote("a"))
    erasure = erase_user(store, "nobody", actor="a")
    assert (erasure.n_completions, erasure.n_votes, erasure.snapshots, erasure.versions) == (0, 0, [], [])
    with store.read() as connection:
        kept = select(completions.c.id).where(completions.c.erased_us.is_(None))
        assert len(list(connection.scalars(kept))) == 1


def test_texts_without_a_vote_may_go_sooner(store: Store) -> None:
    now = now_us()
    ages = {"voted old": 100, "voted new": 10, "bare old": 40, "bare new": 5}
    put(
        store,
        *(make_completion(name, created_us=now - days * DAY) for name, days in ages.items()),
        make_vote("voted old", comment="a word"),
        make_vote("voted new", comment="another word"),
    )
    assert apply_retention(store, voted_days=90, unvoted_days=30, actor="cron") == {"voted": 1, "unvoted": 1}
    with store.read() as connection:
        erased = select(completions.c.id).where(completions.c.erased_us.is_not(None))
        assert set(connection.scalars(erased)) == {"voted old", "bare old"}
        assert set(connection.scalars(select(votes.c.comment))) == {None, "another word"}
    assert apply_retention(store, voted_days=90, unvoted_days=None, actor="cron") == {
        "voted": 0,
        "unvoted": 0,
    }
