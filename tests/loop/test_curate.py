"""Which votes are learned from: every outcome by hand, then against a slow reference, then laws."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.errors import ConfigError
from thumbtune.loop.curate import HELD_OUT, OUTCOMES, TRAINING, CurationRules, curate
from thumbtune.loop.staging import PRESSES

Press = dict[str, Any]

DAY_US = 86_400_000_000
MINUTE_US = 60_000_000
NOBODY = CurationRules(held_out_share=0.0)
"""Rules that hold nobody out."""

SCHEMA = pyarrow.schema(PRESSES.items())


def press(
    vote_id: int, completion: str = "a", user: str = "u1", label: bool | None = True, **changes: Any
) -> Press:
    """A press of `user` on a completion whose prompt and text are its own, a minute after the one before it."""
    made = {
        "vote_id": vote_id,
        "completion_id": completion,
        "user_key": user,
        "kind": "explicit",
        "label": label,
        "strength": 1.0,
        "reason": None,
        "created_us": vote_id * MINUTE_US,
        "conversation_key": f"talk of {completion}",
        "asked_by": "asker",
        "model_version": "base-1",
        "finish_reason": "stop",
        "erased": False,
        "has_text": True,
        "prompt_digest": f"prompt of {completion}",
        "completion_digest": f"text of {completion}",
        "correction_digest": "",
    }
    assert changes.keys() <= made.keys()
    return made | changes


@pytest.fixture(scope="module")
def database() -> Any:
    connection = ibis.duckdb.connect(threads=1)
    yield connection
    connection.disconnect()


def judge(database: Any, presses: Sequence[Press], rules: CurationRules = NOBODY) -> dict[int, str]:
    """The outcome of each press, by number."""
    table = database.create_table(
        "presses", pyarrow.Table.from_pylist(presses, schema=SCHEMA), overwrite=True
    )
    newest_us = max(row["created_us"] for row in presses)
    rows = database.to_pyarrow(curate(table, rules, newest_us)).to_pylist()
    assert len(rows) == len(presses)
    return {row["vote_id"]: row["outcome"] for row in rows}


def is_held_out(key: str, rules: CurationRules) -> bool:
    """In Python's own words: the first 32 bits of the hash lie in the share."""
    number = int(hashlib.sha256(f"{rules.salt}:{key}".encode()).hexdigest()[:8], 16)
    return number < int(rules.held_out_share * 2**32)


def find_people(rules: CurationRules, wanted: bool, n: int = 3) -> list[str]:
    return [key for key in (f"person {i}" for i in range(999)) if is_held_out(key, rules) is wanted][:n]


def test_the_newest_press_of_a_kind_counts_and_may_take_back(database: Any) -> None:
    outcomes = judge(
        database,
        [
            press(1, "a", label=True),
            press(2, "a", label=False),
            press(3, "b", label=True),
            press(4, "b", label=None),
            press(5, "a", user="u2", label=False),
        ],
    )
    assert outcomes == {
        1: "superseded by a newer press",
        2: "exact duplicate",  # u2 said the same of the same, later
        3: "superseded by a newer press",
        4: "taken back",
        5: TRAINING,
    }


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"erased": True, "has_text": False}, "text erased"),
        ({"has_text": False}, "empty completion"),
        ({"finish_reason": "cancelled"}, "broken off before its end"),
        ({"finish_reason": "error"}, "broken off before its end"),
        ({"finish_reason": "length"}, TRAINING),
        ({"kind": "retry"}, "kind not asked for"),
        ({"kind": "retry", "finish_reason": "error"}, "broken off before its end"),
        ({"created_us": 30 * DAY_US - 1}, "too old"),
        ({"created_us": 30 * DAY_US}, TRAINING),
    ],
)
def test_a_press_is_judged_alone_by_the_first_reason(database: Any, changes: Press, outcome: str) -> None:
    rules = CurationRules(held_out_share=0.0, max_age_days=10)
    fresh = press(2, "b", user="u2", created_us=40 * DAY_US)
    assert judge(database, [press(1, **{"created_us": 35 * DAY_US} | changes), fresh], rules)[1] == outcome


def test_more_votes_than_allowed_in_one_minute_of_the_clock_are_all_out(database: Any) -> None:
    rules = CurationRules(held_out_share=0.0, burst_votes=2)
    inside = [press(i, f"c{i}", created_us=5 * MINUTE_US + i) for i in range(3)]
    next_minute = [press(i, f"c{i}", created_us=6 * MINUTE_US + i) for i in (3, 4)]
    another = [press(5, "c5", user="u2", created_us=5 * MINUTE_US)]
    outcomes = judge(database, inside + next_minute + another, rules)
    assert outcomes == dict.fromkeys((0, 1, 2), "voter pressed too fast") | dict.fromkeys((3, 4, 5), TRAINING)


def test_of_each_voter_the_newest_votes_are_kept(database: Any) -> None:
    rules = CurationRules(held_out_share=0.0, most_votes_of_one=2)
    outcomes = judge(database, [press(i, f"c{i}", user=f"u{i % 2}") for i in range(6)], rules)
    assert outcomes == dict.fromkeys((0, 1), "voter's share is full") | dict.fromkeys((2, 3, 4, 5), TRAINING)


def test_two_of_three_voters_outvote_the_third_and_one_of_two_nobody(database: Any) -> None:
    same = {"prompt_digest": "p", "completion_digest": "t"}  # one text, served three times
    outcomes = judge(
        database,
        [
            press(1, "a", "u1", True, **same),
            press(2, "b", "u2", False, **same),
            press(3, "c", "u3", True, **same),
            press(4, "d", "u1", True),
            press(5, "d", "u2", False),
        ],
    )
    assert outcomes == {1: "exact duplicate", 2: "outvoted", 3: TRAINING, 4: "no quorum", 5: "no quorum"}


def test_one_voter_is_one_voice_however_often_the_same_answer_was_served(database: Any) -> None:
    """u1 says 👍 on three servings, u2 and u3 say 👎 on one: two of three voters, not two of five votes."""
    same = {"prompt_digest": "p", "completion_digest": "t"}
    loud = [press(i, f"c{i}", "u1", True, **same) for i in (1, 2, 3)]
    others = [press(4, "c1", "u2", False, **same), press(5, "c1", "u3", False, **same)]
    outcomes = judge(database, loud + others)
    assert outcomes == dict.fromkeys((1, 2, 3), "outvoted") | {4: "exact duplicate", 5: TRAINING}


def test_corrections_of_one_answer_are_no_duplicates_unless_they_say_the_same(database: Any) -> None:
    edits = [
        press(i, "a", user, False, kind="edit", correction_digest=text)
        for i, (user, text) in enumerate([("u1", "x"), ("u2", "y"), ("u3", "x")])
    ]
    outcomes = judge(database, edits, CurationRules(kinds=("explicit", "edit"), held_out_share=0.0))
    assert outcomes == {0: "exact duplicate", 1: TRAINING, 2: TRAINING}


def test_a_row_is_held_out_if_the_one_who_asked_or_the_one_who_voted_is(database: Any) -> None:
    rules = CurationRules(held_out_share=0.3)
    out, other = find_people(rules, True)[0], find_people(rules, False)[0]
    people = [(out, out), (other, out), (out, other), (other, other)]
    presses = [press(i, f"c{i}", user, asked_by=asker) for i, (asker, user) in enumerate(people)]
    assert judge(database, presses, rules) == {0: HELD_OUT, 1: HELD_OUT, 2: HELD_OUT, 3: TRAINING}


def test_training_shares_no_prompt_and_no_conversation_with_the_hold_out(database: Any) -> None:
    rules = CurationRules(held_out_share=0.3)
    out, other = find_people(rules, True)[0], find_people(rules, False)[0]
    presses = [
        press(1, "a", out, asked_by=out, prompt_digest="p", conversation_key="k"),
        press(2, "b", other, asked_by=other, prompt_digest="p"),
        press(3, "c", other, asked_by=other, conversation_key="k"),
        press(4, "d", other, asked_by=other),
    ]
    assert judge(database, presses, rules) == {
        1: HELD_OUT,
        2: "prompt is in the hold-out",
        3: "conversation is in the hold-out",
        4: TRAINING,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": ()},
        {"kinds": ("thumb",)},
        {"held_out_share": 1.0},
        {"quorum": 0.0},
        {"near_duplicates": 1.5},
        {"most_votes_of_one": 0},
        {"burst_minutes": 0},
        {"half_life_days": -1.0},
    ],
)
def test_rules_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        CurationRules(**changes)


def test_a_weight_is_strength_times_recency_in_six_digits_and_never_0() -> None:
    rules = CurationRules(half_life_days=10)
    assert rules.weigh(0.5, 10 * DAY_US) == 0.25
    assert rules.weigh(1.0, 5 * DAY_US) == 0.707107
    assert rules.weigh(1.0, 10_000 * DAY_US) == 1e-6
    assert CurationRules().weigh(1.0, 10_000 * DAY_US) == 1.0


def judge_slowly(presses: Sequence[Press], rules: CurationRules) -> dict[int, str]:
    """The same rules, in plain loops."""
    outcomes: dict[int, str] = {}
    newest_us = max(row["created_us"] for row in presses)

    def place(row: Press) -> tuple[str, str, str]:
        return row["completion_id"], row["user_key"], row["kind"]

    def text(row: Press) -> tuple[str, str]:
        return row["prompt_digest"], row["completion_digest"]

    def left() -> list[Press]:
        return [row for row in presses if row["vote_id"] not in outcomes]

    for row in presses:
        if any(place(other) == place(row) and other["vote_id"] > row["vote_id"] for other in presses):
            outcomes[row["vote_id"]] = "superseded by a newer press"
        elif row["label"] is None:
            outcomes[row["vote_id"]] = "taken back"
        elif row["erased"]:
            outcomes[row["vote_id"]] = "text erased"
        elif not row["has_text"]:
            outcomes[row["vote_id"]] = "empty completion"
        elif row["finish_reason"] in ("cancelled", "error"):
            outcomes[row["vote_id"]] = "broken off before its end"
        elif row["kind"] not in rules.kinds:
            outcomes[row["vote_id"]] = "kind not asked for"
        elif rules.max_age_days is not None and row["created_us"] < newest_us - rules.max_age_days * DAY_US:
            outcomes[row["vote_id"]] = "too old"
    if rules.burst_votes is not None:
        length = rules.burst_minutes * MINUTE_US
        windows = Counter((row["user_key"], row["created_us"] // length) for row in left())
        for row in left():
            if windows[row["user_key"], row["created_us"] // length] > rules.burst_votes:
                outcomes[row["vote_id"]] = "voter pressed too fast"
    if rules.most_votes_of_one is not None:
        said = Counter[str]()
        for row in sorted(left(), key=lambda row: (-row["created_us"], row["completion_id"], row["kind"])):
            said[row["user_key"]] += 1
            if said[row["user_key"]] > rules.most_votes_of_one:
                outcomes[row["vote_id"]] = "voter's share is full"
    if rules.quorum is not None:
        voters: dict[Any, set[str]] = defaultdict(set)
        for row in left():
            voters[text(row), row["label"]].add(row["user_key"])
        for row in left():
            for_it, against = (len(voters[text(row), label]) for label in (row["label"], not row["label"]))
            larger = max(for_it, against) / (for_it + against)
            if larger < rules.quorum or for_it == against:
                outcomes[row["vote_id"]] = "no quorum"
            elif for_it < against:
                outcomes[row["vote_id"]] = "outvoted"
    held = {
        row["vote_id"]: is_held_out(row["asked_by"], rules) or is_held_out(row["user_key"], rules)
        for row in left()
    }
    measured = [row for row in left() if held[row["vote_id"]]]
    for row in left():
        if held[row["vote_id"]]:
            continue
        if row["prompt_digest"] in {other["prompt_digest"] for other in measured}:
            outcomes[row["vote_id"]] = "prompt is in the hold-out"
        elif row["conversation_key"] in {other["conversation_key"] for other in measured}:
            outcomes[row["vote_id"]] = "conversation is in the hold-out"
    seen = set()
    by_age = sorted(left(), key=lambda row: (row["completion_id"], row["user_key"], row["kind"]))
    for row in sorted(by_age, key=lambda row: -row["created_us"]):
        content = (*text(row), row["correction_digest"], row["label"])
        if content in seen:
            outcomes[row["vote_id"]] = "exact duplicate"
        else:
            outcomes[row["vote_id"]] = HELD_OUT if held[row["vote_id"]] else TRAINING
        seen.add(content)
    return outcomes


@st.composite
def tables(draw: st.DrawFn) -> list[Press]:
    """Few people on few completions within few minutes, so that everything happens."""
    n = draw(st.integers(1, 40))
    n_people, n_completions, n_texts = (
        draw(st.integers(1, 6)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 4)),
    )
    rows = []
    for vote_id in draw(st.permutations(range(1, n + 1))):
        c = draw(st.integers(0, n_completions - 1))
        kind = draw(st.sampled_from(["explicit", "explicit", "explicit", "edit", "retry"]))
        rows.append(
            press(
                vote_id,
                f"c{c}",
                f"person {draw(st.integers(0, n_people - 1))}",
                draw(st.sampled_from([True, True, False, None])),
                kind=kind,
                created_us=draw(st.integers(0, 6)) * MINUTE_US // 2 + draw(st.integers(0, 1)) * 3 * DAY_US,
                conversation_key=f"k{c // 2}",
                asked_by=f"person {c % n_people}",
                finish_reason="error" if c == 8 else "stop",
                erased=c == 10,
                has_text=c < 9,
                prompt_digest=f"p{c % n_texts}",
                completion_digest=f"t{c % n_texts % 2}",
                correction_digest=draw(st.sampled_from(["x", "y"])) if kind == "edit" else "",
            )
        )
    return rows


SALTS = st.sampled_from("adegh")
"""Each holds out two or three of the first six people, of three in ten."""

ALL_RULES = st.builds(
    CurationRules,
    kinds=st.sampled_from([("explicit",), ("explicit", "edit"), ("explicit", "edit", "retry")]),
    max_age_days=st.sampled_from([None, 1.5]),
    burst_votes=st.sampled_from([None, 1, 3]),
    burst_minutes=st.sampled_from([1, 2]),
    most_votes_of_one=st.sampled_from([None, 1, 4]),
    quorum=st.sampled_from([None, 0.4, 0.5, 2 / 3, 1.0]),
    held_out_share=st.sampled_from([0.0, 0.3, 0.3]),
    salt=SALTS,
)


@settings(max_examples=60, deadline=None)
@given(tables(), ALL_RULES)
def test_the_expression_says_what_plain_loops_say(
    database: Any, presses: list[Press], rules: CurationRules
) -> None:
    found = judge(database, presses, rules)
    assert found == judge_slowly(presses, rules)
    assert set(found.values()) <= set(OUTCOMES)


@settings(max_examples=15, deadline=None)
@given(tables(), ALL_RULES, st.randoms())
def test_the_order_of_rows_changes_nothing(
    database: Any, presses: list[Press], rules: CurationRules, chance: Any
) -> None:
    found = judge(database, presses, rules)
    assert judge(database, chance.sample(presses, len(presses)), rules) == found


@settings(max_examples=15, deadline=None)
@given(tables(), tables(), SALTS)
def test_nobody_who_is_held_out_is_trained_on_whatever_others_press(
    database: Any, presses: list[Press], more: list[Press], salt: str
) -> None:
    rules = CurationRules(held_out_share=0.3, kinds=("explicit", "edit"), burst_votes=None, salt=salt)
    later = [row | {"vote_id": row["vote_id"] + 100} for row in more]
    for known in (presses, presses + later):
        by_id = {row["vote_id"]: row for row in known}
        for vote_id, outcome in judge(database, known, rules).items():
            people = {by_id[vote_id]["asked_by"], by_id[vote_id]["user_key"]}
            if outcome == TRAINING:
                assert not any(is_held_out(person, rules) for person in people)
            if outcome == HELD_OUT:
                assert any(is_held_out(person, rules) for person in people)


def test_the_share_of_people_held_out_is_what_was_asked_for_and_another_salt_holds_out_others() -> None:
    people = [f"u{i}" for i in range(20_000)]
    first, second = (
        {key for key in people if is_held_out(key, CurationRules(salt=salt))}
        for salt in ("thumbtune", "other")
    )
    assert abs(len(first) / len(people) - 0.1) < 0.01
    assert abs(len(first & second) / len(people) - 0.01) < 0.005


def test_an_expression_whose_steps_are_kept_says_the_same(database: Any, tmp_path: Path) -> None:
    presses = [press(i, f"c{i % 7}", f"u{i % 3}", i % 4 > 0) for i in range(40)]
    table = database.create_table("kept", pyarrow.Table.from_pylist(presses, schema=SCHEMA), overwrite=True)
    names = []

    def keep(judged: ibis.Table, number: int) -> ibis.Table:
        names.append(str(tmp_path / f"{number}.parquet"))
        database.to_parquet(judged, names[-1])
        return database.read_parquet(names[-1])

    newest_us = presses[-1]["created_us"]
    plain, kept = (
        database.to_pyarrow(curate(table, NOBODY, newest_us, *how).order_by("vote_id"))
        for how in ((), (keep,))
    )
    assert plain.equals(kept)
    assert len(names) == len(set(names)) == 6
