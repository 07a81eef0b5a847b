"""The answer in words: sure leads, arms told apart, a crossing with its ends."""

from __future__ import annotations

from typing import Any

from thumbtune.evaluation.verdict import _is_sure, describe_crossing, write_verdict


def test_leads_are_sure_where_neither_interval_nor_number_of_looks_speaks_against_it() -> None:
    def between(low: float, high: float, p_value: float) -> dict[str, float]:
        return {"mean": (low + high) / 2, "low": low, "high": high, "p_value": p_value}

    # Holm at 0.05 for three: 0.0167, 0.025, 0.05. 0.02 is above the second's bound once 0.001 has passed? No: 0.025.
    assert _is_sure([between(0.1, 0.3, 0.02), between(0.1, 0.3, 0.001), between(0.1, 0.3, 0.06)]) == [
        True,
        True,
        False,
    ]
    assert _is_sure([between(0.1, 0.3, 0.02), between(0.1, 0.3, 0.03), between(0.1, 0.3, 0.04)]) == [
        False,
        False,
        False,
    ]
    assert _is_sure([between(-0.1, 0.3, 0.001)]) == [False]


def make_arm(name: str, gain: float, low: float, high: float, p_value: float, **leads: Any) -> dict[str, Any]:
    return {
        "name": name,
        "up_rate": {"mean": 0.3 + gain, "low": 0.1, "high": 0.9, "n": 48},
        "gain": {"mean": gain, "low": low, "high": high, "p_value": p_value},
        "spent": {"pairs": 0, "rows": 100},
        **leads,
    }


BASE_ARM = {"name": "Base", "up_rate": {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 48}}


def test_many_arms_are_told_in_groups_and_few_one_by_one() -> None:
    arms = {
        "a": make_arm("A", 0.3, 0.2, 0.4, 0.001),
        "b": make_arm("B", 0.2, 0.1, 0.3, 0.2),  # a narrow bootstrap, and a test that does not agree
        "c": make_arm("C", -0.2, -0.3, -0.1, 0.001),
        "d": make_arm("D", 0.0, -0.1, 0.1, 0.9),
        "e": make_arm("E", 0.25, 0.1, 0.4, 0.01),
    }
    few = write_verdict({"base": BASE_ARM, "a": arms["a"], "c": arms["c"]}, 100)
    assert few[1].startswith("A is better than the base: up-rate 60%")
    assert few[2].startswith("C is worse than the base: up-rate 10%")
    many = write_verdict({"base": BASE_ARM, **arms}, 100)
    assert many == [
        "With 100 thumbs, A.",
        "Better than the base (up-rate 30% (20% to 40%, n = 48), on held-out prompts): A 60%, E 55%.",
        "Not to be told from the base (up-rate 30% (20% to 40%, n = 48), on held-out prompts): B 50%, D 30%.",
        "Worse than the base (up-rate 30% (20% to 40%, n = 48), on held-out prompts): C 10%.",
    ]


def lead(mean: float, p_value: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "p_value": p_value}


def test_the_answer_is_the_best_arm_whichever_it_is_and_names_those_that_may_be_as_good() -> None:
    kto = make_arm("KTO", 0.2, 0.1, 0.3, 0.001, best_lead=lead(0.2, 0.001))
    dpo = make_arm("DPO", 0.4, 0.3, 0.5, 0.001, kto_lead=lead(-0.2, 0.001))
    said = write_verdict({"base": BASE_ARM, "kto": kto, "dpo": dpo}, 1_200)
    assert said[0] == "With 1,200 thumbs, DPO."
    assert said[-1].startswith("For 1200 labels, DPO beats KTO by 20 points (-25 to -15 points)")
    # the interval alone is without zero, Holm's p-value is not small enough: neither sentence calls it beaten
    close = {
        "kto": make_arm("KTO", 0.4, 0.3, 0.5, 0.001),
        "dpo": make_arm(
            "DPO", 0.33, 0.2, 0.4, 0.001, kto_lead=lead(0.07, 0.053), best_lead=lead(0.07, 0.053)
        ),
    }
    said = write_verdict({"base": BASE_ARM, **close}, 240)
    assert said[0] == "With 240 thumbs, KTO. It cannot be told from DPO at this n."
    assert "KTO and DPO cannot be told apart" in said[-1]
    poor = {
        "kto": make_arm("KTO", 0.05, -0.1, 0.2, 0.6),
        "dpo": make_arm("DPO", -0.05, -0.1, 0.1, 0.5, kto_lead=lead(0.1, 0.2)),
    }
    said = write_verdict({"base": BASE_ARM, **poor}, 240, noise=0.1)
    assert said[0] == "With 240 thumbs, 10% of them wrong, none of these is better than the base at this n."


def test_a_crossing_in_words_keeps_both_ends_and_says_where_there_is_nothing_to_reach() -> None:
    def level(labels: int, gain: float, mean: float | None, low: float, high: float | None) -> dict[str, Any]:
        times = {"mean": mean, "low": low, "high": high}
        return {"labels": labels, "gain": lead(gain, 0.001), "times_the_labels": times}

    crossing = {
        "pair_cost": 5,
        "fewest": 12,
        "most": 192,
        "levels": [
            level(30, 0.02, 2.0, 0.0, 4.0),
            level(60, 0.3, 0.0, 0.0, 1.4),
            level(120, 0.3, 1.25, 0.0, None),
            level(240, 0.3, None, 3.1, None),
        ],
    }
    # 192 pairs cost 960 labels: 8 times 120, 4 times 240; 12 pairs cost 60: 1 times 60, half of 120
    assert describe_crossing(crossing) == (
        "At 5 labels a pair, DPO on bought pairs has nothing to reach in KTO on 30 thumbs, which is not better than "
        "the base; does as well as KTO on 60 thumbs with 1.0 times their labels or less (less than 1.0 to 1.4); needs "
        "1.2 times the labels of KTO on 120 thumbs (less than 0.5 to more than 8.0); does not reach KTO on 240 "
        "thumbs within 4.0 times their labels (3.1 to more than 4.0)."
    )


def test_more_pairs_that_did_worse_are_told_where_the_intervals_are_apart() -> None:
    def point(pairs: int, mean: float) -> dict[str, Any]:
        up_rate = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 144}
        return {"pairs_bought": pairs, "labels": 5 * pairs, "up_rate": up_rate}

    level = {
        "labels": 120,
        "gain": lead(0.3, 0.001),
        "times_the_labels": {"mean": 1.0, "low": 0.5, "high": 2.0},
    }
    crossing = {"pair_cost": 5, "fewest": 12, "most": 96, "levels": [level]}
    rising = [point(12, 0.5), point(24, 0.8), {"pairs_bought": 36, "error": "ties"}, point(48, 0.75)]
    assert describe_crossing(crossing | {"points": rising}).endswith("(0.5 to 2.0).")
    assert describe_crossing(crossing | {"points": [*rising, point(96, 0.4)]}).endswith(
        "(0.5 to 2.0). 96 pairs did worse than 24, 40% (35% to 45%, n = 144) after 80% (75% to 85%, n = 144): the "
        "crossing takes the curve for one that never falls, so look at the points."
    )
