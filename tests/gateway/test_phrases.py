"""What loop, gate and canary say reaches a Turkish reader in Turkish: every sentence that they can say today."""

from __future__ import annotations

import re
from typing import Any

import pytest

from thumbtune.gateway.page.numbers import write_evidence, write_number, write_points, write_share, write_span
from thumbtune.gateway.page.phrases import TURKISH, say_again, write_sentence
from thumbtune.gateway.page.words import Words
from thumbtune.loop.canary import CanaryRules, Seen, conclude
from thumbtune.loop.gate import Answer, Evidence, GateRules, Measured, decide

TR, EN = Words("tr"), Words("en")

ENGLISH_LEFT = re.compile(r"\b(the|its?|of|are|is|was|votes|answers|users|champion|on|and)\b")


def see(votes: str, **changes: Any) -> Seen:
    return Seen(**{"stage": 0, "votes": votes, "vote_stages": "0" * len(votes), **changes})


HALF = CanaryRules(stages=(0.5,))
BETTER = "HChc" + "Ch" * 60
WORSE = "HChc" + "cH" * 60


@pytest.mark.parametrize(
    ("seen", "rules", "action"),
    [
        (see(""), HALF, "wait"),
        (see("CHch"), HALF, "wait"),
        (see("CHch" * 6), CanaryRules(stages=(0.25, 0.5), votes_per_stage=5), "widen"),
        (see(BETTER), HALF, "promote"),
        (see(BETTER * 20), HALF, "promote"),
        (see("CH" * 300), CanaryRules(stages=(0.5,), promote_on="not_worse", margin=0.3), "promote"),
        (see(WORSE), HALF, "roll back"),
        (see("CH", users=(90, 100)), HALF, "roll back"),
        (see("CH", answers={"canary": [40, 30], "champion": [40, 1]}), HALF, "roll back"),
        (see("CH", days=29.5), HALF, "stop"),
    ],
)
def test_each_verdict_of_a_canary(seen: Seen, rules: CanaryRules, action: str) -> None:
    verdict = conclude(seen, rules)
    assert verdict.action == action
    (reason,) = verdict.reasons
    said = say_again(reason, TR)
    assert said is not None, reason
    assert not ENGLISH_LEFT.search(said), said
    assert write_sentence(reason, EN).startswith(reason[:1].upper())
    by_hand = say_again(f"ended by hand while the votes said {verdict.action}: {reason}", TR)
    assert by_hand == f"elle sonlandırıldı; oylara göre o anki karar “{TR.find(action, 'action')}”: {said}"


def measure(
    log_prob: float = -20.0, *, flattery: float = 0.0, passes: bool = True, liked: float = 1.0
) -> Measured:
    return Measured(
        answers=[Answer(20 + i, i % 9 == 0, 0.1, log_prob - i, -25.0 - i, liked) for i in range(30)],
        vote_log_ratios=[float(i % 7) for i in range(60)],
        flattery=[flattery + 0.01 * i for i in range(8)],
        must_pass={"greets": passes, "counts": True},
    )


EVIDENCES = {
    "all is well": (measure(), measure(), 60),
    "all is ill": (measure(-900.0, flattery=3.0, passes=False, liked=0.0), measure(), 60),
    "no numbers": (measure(float("nan")), measure(), 60),
    "few votes": (measure(), measure(), 6),
}


@pytest.mark.parametrize("name", EVIDENCES)
def test_each_check_of_the_gate(name: str) -> None:
    candidate, champion, n_votes = EVIDENCES[name]
    votes = {"vote_log_ratios": candidate.vote_log_ratios[:n_votes]}
    sides = [
        Measured(side.answers, votes["vote_log_ratios"], side.flattery, side.must_pass)
        for side in (champion, candidate)
    ]
    evidence = Evidence(
        *sides,
        base_entropy=1.0,
        labels=[i % 3 > 0 for i in range(n_votes)],
        vote_prompts=list(range(n_votes)),
    )
    decision = decide(evidence, GateRules(fewest_prompts=40))
    for check in decision.checks:
        said = say_again(check.told, TR)
        assert said is not None, check.told
        assert not ENGLISH_LEFT.search(said), said
        assert TR.find(check.name, "check") != check.name
        assert TR.find(check.outcome, "verdict") != check.outcome
    outcome = f"the gate refused kto-1.5-ab: {'; '.join(check.told for check in decision.checks)}"
    said = say_again(outcome, TR)
    assert said is not None
    assert said.startswith("eşik denetimi kto-1.5-ab sürümünü geri çevirdi: ")
    assert not ENGLISH_LEFT.search(said), said


@pytest.mark.parametrize(
    ("english", "turkish"),
    [
        ("not enough new votes: 12 of 100", "yeni oy yetersiz: gereken 100, gelen 12"),
        ("canary of kto-1.5-ab began", "kanarya başladı: kto-1.5-ab"),
        (
            "the champion is no longer base-1.5, which kto-2.0 was trained from",
            "şampiyon artık base-1.5 değil; kto-2.0 ondan eğitilmişti",
        ),
        (
            "somebody whom kto-2.0 learned from was erased meanwhile: the next turn is without them",
            "bu arada kto-2.0 sürümünün öğrendiği biri silindi: sonraki tur onsuz yapılır",
        ),
        ("stopped from the command line", "komut satırından durduruldu"),
        ("it could not be loaded by a gateway", "sunucuya yüklenemedi"),
    ],
)
def test_how_turns_and_canaries_end(english: str, turkish: str) -> None:
    assert say_again(english, TR) == turkish
    assert say_again(english, EN) == english


def test_what_is_not_known_is_shown_as_it_stands_and_marked_as_english() -> None:
    assert say_again("the moon is full", TR) is None
    assert write_sentence("<b>the moon</b>", TR) == '<span lang="en">&lt;b&gt;the moon&lt;/b&gt;</span>'
    mixed = say_again("canary of a began; the moon is full", TR)
    assert mixed == "kanarya başladı: a; the moon is full"
    assert write_sentence("it could not be loaded by a gateway", TR).startswith("Sunucuya")


def test_every_form_has_what_it_fills_in() -> None:
    for form, said in TURKISH.items():
        named = set(re.compile(form).groupindex)
        assert named == set(re.findall(r"\{(\w+)\}", said)), form


def test_numbers_are_written_as_the_language_writes_them() -> None:
    assert (write_number(1_234.5, 1, words=EN), write_number(1_234.5, 1, words=TR)) == ("1,234.5", "1.234,5")
    assert (write_share(0.25, EN), write_share(0.25, TR), write_share(0.015, TR)) == ("25 %", "%25", "%1,5")
    assert (write_points(-0.2, EN), write_points(0.05, TR)) == ("−20 points", "+5 puan")
    assert [write_evidence(value, EN) for value in (0.0, 2.995732, -9.0, 99.0)] == [
        "1",
        "20",
        "< 0.01",
        "> 1,000,000",
    ]
    assert [write_span(n, EN) for n in (0.04, 33.1, 600, 7_200 * 3, 86_400 * 28)] == [
        "0.0 s",
        "33 s",
        "10 min",
        "6 h",
        "28 days",
    ]
