"""What a press does to the store."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from store.conftest import make_completion, make_vote
from thumbtune.store.database import Store
from thumbtune.store.reading import VoteFilter, count_by_version, list_history, list_votes
from thumbtune.store.schema import completions, votes
from thumbtune.store.votes import Press, write_completions, write_votes


def put(store: Store, *names: str, **changes: Any) -> None:
    with store.write() as connection:
        write_completions(connection, [make_completion(name, **changes) for name in names])


def press(store: Store, *wanted: Any) -> list[str]:
    presses = [vote if isinstance(vote, Press) else Press(vote) for vote in wanted]
    with store.write() as connection:
        return list(write_votes(connection, presses))


def current(store: Store, **wanted: Any) -> list[tuple[str, str, str, bool]]:
    rows = list_votes(store, VoteFilter(**wanted))
    return [(row["completion_id"], row["user_key"], row["kind"], row["label"]) for row in reversed(rows)]


def test_a_press_is_kept_beside_its_completion(store: Store) -> None:
    put(store, "a")
    vote = make_vote(
        "a", False, reason="wrong", comment="ışık 😀 'x'; DROP TABLE votes", correction="<b>better</b>"
    )
    assert press(store, vote) == ["recorded"]
    (row,) = list_votes(store)
    assert row["label"] is False
    assert (row["reason"], row["comment"], row["correction"]) == (vote.reason, vote.comment, vote.correction)
    assert row["messages"] == [{"role": "user", "content": "Question a?"}]
    assert row["completion"] == {"role": "assistant", "content": "Answer a."}
    assert row["model_version"] == "base-1"


def test_the_newest_press_counts_and_every_one_is_kept(store: Store) -> None:
    put(store, "a")
    assert press(store, make_vote("a", True)) == ["recorded"]
    assert press(store, make_vote("a", False)) == ["changed"]
    assert press(store, make_vote("a", False, reason="wrong")) == ["changed"]
    assert current(store) == [("a", "u1", "explicit", False)]
    assert [row["label"] for row in list_history(store, "a")] == [True, False, False]


def test_a_vote_can_be_taken_back_and_given_again(store: Store) -> None:
    put(store, "a")
    assert press(store, make_vote("a", None)) == ["unchanged"]
    assert press(store, make_vote("a", True)) == ["recorded"]
    assert press(store, make_vote("a", None)) == ["retracted"]
    assert current(store) == []
    assert press(store, make_vote("a", None)) == ["unchanged"]
    assert press(store, make_vote("a", False)) == ["recorded"]
    assert current(store) == [("a", "u1", "explicit", False)]


def test_the_same_request_twice_is_one_vote(store: Store) -> None:
    put(store, "a", "b")
    first = make_vote("a", True, idempotency_key="k1", comment="fine")
    assert press(store, first) == ["recorded"]
    assert press(store, make_vote("a", False)) == ["changed"]
    assert press(store, first) == ["repeated"], (
        "an old request that arrives late does not overturn the newest press"
    )
    assert current(store) == [("a", "u1", "explicit", False)]
    assert press(store, make_vote("b", True, idempotency_key="k1")) == ["conflict"]
    assert press(store, make_vote("a", True, idempotency_key="k1", user_key="u2", comment="fine")) == [
        "recorded"
    ]


def test_a_press_that_says_what_stands_changes_nothing(store: Store) -> None:
    put(store, "a")
    assert press(store, make_vote("a", True)) == ["recorded"]
    assert press(store, make_vote("a", True)) == ["unchanged"]
    assert len(list_history(store, "a")) == 1


def test_a_batch_is_settled_in_the_order_of_its_presses(store: Store) -> None:
    put(store, "a")
    batch = [make_vote("a", True), make_vote("a", False), make_vote("a", False), make_vote("a", None)]
    keyed = [make_vote("a", True, idempotency_key="k"), make_vote("a", True, idempotency_key="k")]
    assert press(store, *batch, *keyed) == [
        "recorded",
        "changed",
        "unchanged",
        "retracted",
        "recorded",
        "repeated",
    ]
    assert current(store) == [("a", "u1", "explicit", True)]


def test_votes_of_several_users_and_kinds_stand_side_by_side(store: Store) -> None:
    put(store, "a")
    press(
        store,
        make_vote("a", True),
        make_vote("a", False, user_key="u2"),
        make_vote("a", False, kind="retry", strength=0.5),
        make_vote("a", False, kind="edit", correction="Better."),
    )
    assert len(current(store)) == 4
    assert current(store, kinds=("explicit",)) == [
        ("a", "u1", "explicit", True),
        ("a", "u2", "explicit", False),
    ]
    assert current(store, kinds=("explicit",), label=False) == [("a", "u2", "explicit", False)]
    assert count_by_version(store) == [
        {"model_version": "base-1", "n_completions": 1, "n_up": 1, "n_down": 1}
    ]


def test_an_unknown_completion_and_a_strangers_one_are_told_apart_inside(store: Store) -> None:
    put(store, "a")
    assert press(store, make_vote("nowhere")) == ["unknown_completion"]
    assert press(store, Press(make_vote("a", user_key="u2"), own_only=True)) == ["not_yours"]
    assert press(store, Press(make_vote("a"), own_only=True)) == ["recorded"]


def test_rows_from_elsewhere_come_in_once(store: Store) -> None:
    batch = [
        make_completion("a", source="webui", source_id="m1"),
        make_completion("b", source="webui", source_id="m2"),
    ]
    with store.write() as connection:
        assert write_completions(connection, batch) == 2
    with store.write() as connection:
        assert (
            write_completions(connection, [*batch, make_completion("c", source="webui", source_id="m2")]) == 0
        )
    vote = make_vote("a", source="webui", source_id="v1")
    assert press(store, vote, vote) == ["recorded", "repeated"]
    assert press(store, make_vote("a", False, source="webui", source_id="v1")) == ["repeated"]
    assert press(store, make_vote("a", False, source="langfuse", source_id="v1")) == ["changed"]


def test_filters_find_what_they_ask_for_and_nothing_else(store: Store) -> None:
    put(store, "a", "b", "c")
    put(store, "d", model_version="adapter-2")
    press(
        store,
        make_vote("a", True, comment="100% right_"),
        make_vote("b", False, reason="wrong", comment="1000 times"),
    )
    press(store, make_vote("c", True, user_key="u2", created_us=5), make_vote("d", True))
    assert {row[0] for row in current(store, text="100%")} == {"a"}, "% and _ are text"
    assert {row[0] for row in current(store, text="RIGHT_")} == {"a"}
    assert {row[0] for row in current(store, reason="wrong")} == {"b"}
    assert {row[0] for row in current(store, user_key="u2")} == {"c"}
    assert {row[0] for row in current(store, until_us=6)} == {"c"}
    assert {row[0] for row in current(store, since_us=6)} == {"a", "b", "d"}
    assert {row[0] for row in current(store, model_version="adapter-2")} == {"d"}


def test_the_page_turns_without_gap_or_double(store: Store) -> None:
    names = [f"n{place}" for place in range(7)]
    put(store, *names)
    press(store, *(make_vote(name) for name in names))
    first = list_votes(store, limit=4)
    rest = list_votes(store, limit=4, before_id=first[-1]["id"])
    assert [row["completion_id"] for row in first + rest] == names[::-1]


PRESSES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "nowhere"]),
        st.sampled_from(["u1", "u2"]),
        st.sampled_from(["explicit", "copy"]),
        st.sampled_from([True, False, None]),
        st.sampled_from([None, None, "k1", "k2"]),
    ),
    max_size=12,
)


@given(presses=PRESSES, cuts=st.sets(st.integers(1, 11)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_presses_are_cut_into_batches_the_store_says_what_a_plain_dict_says(
    store: Store, presses: list, cuts: set[int]
) -> None:
    with store.write() as connection:
        connection.execute(delete(votes))
        connection.execute(delete(completions))
    put(store, "a", "b")
    batch: list[Any] = []
    for place, (name, user, kind, label, key) in enumerate(presses):
        if place in cuts:
            press(store, *batch)
            batch = []
        batch.append(make_vote(name, label, user_key=user, kind=kind, idempotency_key=key))
    press(store, *batch)

    expected: dict[tuple, bool] = {}
    used: set[tuple] = set()
    for name, user, kind, label, key in presses:
        place_of = (name, user, kind)
        if name == "nowhere" or (key is not None and (user, key) in used):
            continue
        before = expected.get(place_of)
        used.add((user, key))
        if before == label:
            continue
        if label is None:
            del expected[place_of]
        else:
            expected[place_of] = label
    assert {row[:3]: row[3] for row in current(store)} == expected


def test_votes_need_their_completion(store: Store) -> None:
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError), store.write() as connection:
        connection.execute(
            votes.insert().values(
                completion_id="nowhere",
                user_key="u",
                kind="explicit",
                label=True,
                strength=1,
                source="x",
                created_us=1,
            )
        )
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(votes)) == 0


def test_a_late_repetition_of_a_press_that_changed_nothing_changes_nothing_either(store: Store) -> None:
    put(store, "a")
    keys = [
        make_vote("a", label, idempotency_key=key)
        for label, key in ((True, "k1"), (True, "k2"), (False, "k3"))
    ]
    assert press(store, *keys) == ["recorded", "unchanged", "changed"]
    assert press(store, keys[1]) == ["repeated"]
    imported = [
        make_vote("a", label, source="x", source_id=key) for label, key in ((False, "s1"), (True, "s2"))
    ]
    assert press(store, *imported) == ["unchanged", "changed"]
    assert press(store, *imported) == ["repeated", "repeated"]
    assert current(store) == [("a", "u1", "explicit", True)]


def test_what_was_erased_does_not_come_back_by_an_import(store: Store) -> None:
    from thumbtune.store.erasure import erase_user

    batch = [make_completion("a", source="webui", source_id="m1")]
    with store.write() as connection:
        write_completions(connection, batch)
    erase_user(store, "u1", actor="an admin")
    with store.write() as connection:
        assert write_completions(connection, batch) == 0
    assert press(store, make_vote("a", source="webui", source_id="v1", comment="again")) == [
        "unknown_completion"
    ]


def test_postgresql_never_reads_all_votes_to_take_a_few(store: Store) -> None:
    if store.is_sqlite:
        pytest.skip("SQLite takes the index as it is")
    names = [f"c{i}" for i in range(3_000)]
    put(store, *names)
    press(store, *(make_vote(name, idempotency_key=name) for name in names[:-16]))
    scans = "SELECT sum(seq_scan) FROM pg_stat_xact_user_tables WHERE relname IN ('votes', 'completions')"
    with store.write() as connection:  # nobody has analysed the tables; what came before on it counts as well
        before = connection.exec_driver_sql(scans).scalar_one()
        write_votes(connection, [Press(make_vote(name, idempotency_key=name)) for name in names[-16:]])
        assert connection.exec_driver_sql(scans).scalar_one() == before
