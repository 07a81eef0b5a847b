"""Looks at a canary in a store: what is read, and that an act is done once."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from loop.conftest import press
from thumbtune.errors import ConfigError
from thumbtune.loop.canary import CanaryRules, read_rules, replay
from thumbtune.loop.look import gather, look_at_canary, stage_canary
from thumbtune.records import Vote
from thumbtune.store.canaries import Canary, end_canary, find_canary, find_running_canary, widen_canary
from thumbtune.store.database import Store
from thumbtune.store.keys import list_audit
from thumbtune.store.models import ModelVersion, find_pointer, point, register_version
from thumbtune.store.votes import Press, write_votes

HALF = CanaryRules(stages=(0.5,))


@pytest.fixture
def canary(store: Store) -> Canary:
    for name in ("base-1", "adapter-2"):
        register_version(store, ModelVersion(name, "base", "here"))
    point(store, "base-1", actor="test")
    return stage_canary(store, "adapter-2", HALF, actor="test")


def crowd(
    store: Store, canary: Canary, ours: tuple[int, int], theirs: tuple[int, int], tag: str = ""
) -> None:
    """(👍, 👎) on answers of the canary and of the champion, each of another person."""
    for arm, version, counts in (
        ("canary", canary.candidate, ours),
        ("champion", canary.champion, theirs),
    ):
        for up, n in zip((True, False), counts, strict=True):
            for i in range(n):
                person = f"{tag}{arm}{up}{i}"
                press(store, person, "hello", up, version=version, arm=arm)


def test_a_worse_one_is_rolled_back_once_and_can_be_replayed(store: Store, canary: Canary) -> None:
    crowd(store, canary, (2, 40), (40, 2))
    look = look_at_canary(store, actor="test")
    assert look is not None
    assert (look.verdict.action, look.acted) == ("roll back", True)
    assert look_at_canary(store, actor="test") is None
    ended = find_canary(store, canary.id)
    assert ended.state == "rolled_back"
    assert ended.record is not None
    assert replay(ended.record).reasons == look.verdict.reasons
    pointer = find_pointer(store)
    assert pointer is not None
    assert pointer.version == "base-1"


def test_a_better_one_is_promoted_with_its_pointer_in_one_transaction(store: Store, canary: Canary) -> None:
    crowd(store, canary, (40, 2), (2, 40))
    look = look_at_canary(store, actor="test")
    assert look is not None
    assert look.verdict.action == "promote"
    pointer = find_pointer(store)
    assert pointer is not None
    assert (pointer.version, pointer.previous) == ("adapter-2", "base-1")
    assert find_canary(store, canary.id).state == "promoted"
    assert {"point", "canary promoted"} <= {row["act"] for row in list_audit(store, 10)}


def test_of_one_person_the_first_vote_counts_as_it_was_pressed(store: Store, canary: Canary) -> None:
    name = press(store, "loud", "hello", False, version="adapter-2", arm="canary")
    with store.write() as connection:
        write_votes(connection, [Press(Vote(name, "loud", True, 1))])  # thought better of it
    for _ in range(30):
        press(store, "loud", "hello", False, version="adapter-2", arm="canary")
    press(store, "quiet", "hello", True)
    seen = gather(store, canary, HALF)
    assert seen.votes == "cH"
    assert gather(store, canary, CanaryRules(stages=(0.5,), votes_of_one_user=3)).votes == "cccH"


def test_what_is_not_of_this_trial_does_not_count(store: Store, canary: Canary) -> None:
    press(store, "asked by name", "hello", True, version="adapter-2", arm="named")
    press(store, "older", "hello", True, created_us=canary.started_us - 1)
    press(store, "another version", "hello", True, version="adapter-9", arm="canary")
    press(store, "silent", "hello", None, version="adapter-2", arm="canary")
    name = press(store, "owner", "hello", None)
    with store.write() as connection:
        write_votes(connection, [Press(Vote(name, "passer-by", True, 1))])  # a vote on another one's answer
    seen = gather(store, canary, HALF)
    assert seen.votes == ""
    assert seen.answers == {"canary": [1, 0], "champion": [1, 0]}
    assert tuple(seen.users) == (1, 2)


def test_what_comes_after_its_end_does_not_count(store: Store, canary: Canary) -> None:
    press(store, "before", "hello", True)
    end_canary(store, canary, "inconclusive", None, actor="test")
    time.sleep(0.001)
    press(store, "after", "hello", False)
    seen = gather(store, find_canary(store, canary.id), HALF)
    assert (seen.votes, tuple(seen.users)) == ("H", (0, 1))


def test_errors_are_counted(store: Store, canary: Canary) -> None:
    for i in range(12):
        press(store, f"p{i}", "", None, version="adapter-2", arm="canary", finish_reason="error")
    look = look_at_canary(store, actor="test")
    assert look is not None
    assert look.verdict.action == "roll back"
    assert "12 of its 12 answers broke off" in look.verdict.reasons[0]


def test_a_stage_is_known_by_when_the_answer_was_served(store: Store) -> None:
    for name in ("base-1", "adapter-2"):
        register_version(store, ModelVersion(name, "base", "here"))
    point(store, "base-1", actor="test")
    rules = CanaryRules(stages=(0.05, 0.5), votes_per_stage=2)
    canary = stage_canary(store, "adapter-2", rules, actor="test")
    for i in range(2):
        press(store, f"a{i}", "hello", True, version="adapter-2", arm="canary")
    look = look_at_canary(store, actor="test")
    assert look is not None
    assert (look.verdict.action, look.acted) == ("widen", True)
    time.sleep(0.001)
    press(store, "b", "hello", False, version="adapter-2", arm="canary")
    wider = find_canary(store, canary.id)
    assert wider.share == 0.5
    assert gather(store, wider, rules).vote_stages == "001"
    assert not widen_canary(store, canary, 0.5, actor="test")  # somebody else had done it


def test_users_stay_where_they_were_when_the_share_grows(canary: Canary) -> None:
    from dataclasses import replace

    people = [f"user {i}" for i in range(4_000)]
    shares = [replace(canary, stages=[[share, 0]]) for share in (0.01, 0.05, 0.25, 0.5)]
    groups = [{person for person in people if one.answers(person)} for one in shares]
    for smaller, larger in pairwise(groups):
        assert smaller < larger
    assert [len(group) / 4_000 for group in groups] == pytest.approx(
        [0.01, 0.05, 0.25, 0.5], abs=0.04
    )  # five standard errors of a half
    other = replace(canary, id="canary-other")
    assert {person for person in people if other.answers(person)} != groups[
        -1
    ]  # other people for another one


def test_one_canary_at_a_time(store: Store, canary: Canary) -> None:
    register_version(store, ModelVersion("adapter-3", "base", "here"))
    with pytest.raises(ConfigError, match="runs already"):
        stage_canary(store, "adapter-3", HALF, actor="test")
    with pytest.raises(ConfigError, match="is the champion already"):
        stage_canary(store, "base-1", HALF, actor="test")
    assert end_canary(store, canary, "withdrawn", None, actor="test")
    assert not end_canary(store, canary, "promoted", None, actor="test")  # too late
    with pytest.raises(ConfigError, match="no model version"):
        stage_canary(store, "nobody", HALF, actor="test")
    begun = stage_canary(store, "adapter-3", HALF, actor="test")
    assert find_running_canary(store) == begun
    assert read_rules(begun.rules) == HALF


def test_a_champion_by_hand_ends_the_trial(store: Store, canary: Canary) -> None:
    register_version(store, ModelVersion("adapter-3", "base", "here"))
    point(store, "adapter-3", actor="test")
    assert find_canary(store, canary.id).state == "withdrawn"
