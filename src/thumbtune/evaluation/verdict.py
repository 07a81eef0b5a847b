"""The comparison in words: what can be told from the numbers, and what cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def write_verdict(
    arms: Mapping[str, Mapping[str, Any]],
    labels: int,
    *,
    noise: float = 0.0,
    crossing: Mapping[str, Any] | None = None,
) -> list[str]:
    """A few sentences, the answer first. Arms are as in `compare.json`; failed ones are named as such.

    `noise` is the share of wrong thumbs, where it is known.
    """
    base = arms["base"]
    trained = {key: arm for key, arm in arms.items() if key != "base" and not arm.get("error")}
    sentences = _answer(
        trained, f"With {labels:,} thumbs{f', {100 * noise:g}% of them wrong' if noise else ''}"
    )
    if crossing and crossing["levels"]:
        sentences.append(describe_crossing(crossing))
    ranked = sorted(trained.values(), key=_rank)
    if len(ranked) > MOST_SENTENCES and base["up_rate"] and all(arm["up_rate"] for arm in ranked):
        sentences += _group_by_gain(ranked, base)
    else:
        for arm in ranked:
            if arm["up_rate"] is None or base["up_rate"] is None:
                sentences.append(f"{arm['name']}: {describe_auc(arm)}.")
            else:
                sentences.append(_compare_with_base(arm, base))
        sentences += _compare_with_kto(trained, labels)
    sentences += [f"{arm['name']} failed: {arm['error']}" for arm in arms.values() if arm.get("error")]
    return sentences


MOST_SENTENCES = 4
"""Trained arms that get a sentence each; of more, the tables tell."""


def _group_by_gain(ranked: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> list[str]:
    """Who is better than the base, who is worse, and who cannot be told from it."""
    groups: dict[str, list[str]] = {}
    for arm in ranked:
        groups.setdefault(_relate(arm["gain"]), []).append(
            f"{arm['name']} {100 * arm['up_rate']['mean']:.0f}%"
        )
    of_base = f"the base (up-rate {describe_estimate(base['up_rate'])}, on held-out prompts)"
    return [f"{relation} {of_base}: {', '.join(names)}." for relation, names in groups.items()]


def _relate(gain: Mapping[str, Any]) -> str:
    is_told = gain.get("p_value", 0.0) < 0.05
    if gain["low"] > 0 and is_told:
        return "Better than"
    return "Worse than" if gain["high"] < 0 and is_told else "Not to be told from"


def _is_sure(leads: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which of several differences are none of luck's: interval without zero, and Holm's p-value below 0.05."""
    order = sorted(range(len(leads)), key=lambda place: leads[place].get("p_value", 1.0))
    sure = [False] * len(leads)
    for rank, place in enumerate(order):
        lead = leads[place]
        if lead.get("p_value", 1.0) > 0.05 / (len(leads) - rank) or lead["low"] <= 0 <= lead["high"]:
            break
        sure[place] = True
    return sure


def _rank(arm: Mapping[str, Any]) -> float:
    """The best first: by up-rate, or by AUC where nothing was sampled."""
    return -(arm["up_rate"] or arm["auc"] or {"mean": 0.0})["mean"]


def find_best(arms: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The arm with the highest up-rate among those better than the base; None where none is."""
    better = [
        key
        for key, arm in arms.items()
        if key != "base" and arm.get("up_rate") and _relate(arm["gain"]) == "Better than"
    ]
    return max(better, key=lambda key: arms[key]["up_rate"]["mean"], default=None)


def _answer(trained: Mapping[str, Mapping[str, Any]], with_thumbs: str) -> list[str]:
    """Which method for these thumbs, and which others may be as good for all that is known."""
    if not any(arm["up_rate"] for arm in trained.values()):
        return []
    best = find_best(trained)
    if best is None:
        return [f"{with_thumbs}, none of these is better than the base at this n."]
    others = [arm for key, arm in trained.items() if key != best and arm.get("best_lead")]
    is_sure = _is_sure([arm["best_lead"] for arm in others])
    level = [arm["name"] for arm, sure in zip(others, is_sure, strict=True) if not sure]
    rest = f" It cannot be told from {_list_names(level)} at this n." if level else ""
    return [f"{with_thumbs}, {trained[best]['name']}.{rest}"]


def describe_crossing(crossing: Mapping[str, Any]) -> str:
    """How much more DPO's pairs cost than the thumbs that do as well, for each number of thumbs."""
    found = [_describe_level(level, crossing) for level in crossing.get("levels") or ()]
    return (
        f"At {crossing['pair_cost']:g} labels a pair, DPO on bought pairs {'; '.join(found)}."
        f"{_describe_fall(crossing.get('points') or ())}"
        if found
        else ""
    )


def _describe_fall(points: Sequence[Mapping[str, Any]]) -> str:
    """Where more pairs did worse than fewer, intervals apart: the crossing takes the curve for one that never falls."""
    known = [point for point in points if point.get("up_rate")]
    for place, more in enumerate(known):
        best = max(known[: place + 1], key=lambda point: point["up_rate"]["mean"])
        if more["up_rate"]["high"] < best["up_rate"]["low"]:
            return (
                f" {more['pairs_bought']} pairs did worse than {best['pairs_bought']}, "
                f"{describe_estimate(more['up_rate'])} after {describe_estimate(best['up_rate'])}: the crossing takes "
                "the curve for one that never falls, so look at the points."
            )
    return ""


def _describe_level(level: Mapping[str, Any], crossing: Mapping[str, Any]) -> str:
    thumbs, times = f"KTO on {level['labels']:,} thumbs", level["times_the_labels"]
    if _relate(level["gain"]) != "Better than":
        return f"has nothing to reach in {thumbs}, which is not better than the base"
    fewest, most = (crossing[end] * crossing["pair_cost"] / level["labels"] for end in ("fewest", "most"))

    def say(value: float | None) -> str:
        if value is None:
            return f"more than {most:.1f}"
        return f"{value:.1f}" if value else f"less than {fewest:.1f}"

    if times["mean"] is None:
        found = f"does not reach {thumbs} within {most:.1f} times their labels"
    elif times["mean"] == 0:
        found = f"does as well as {thumbs} with {fewest:.1f} times their labels or less"
    else:
        found = f"needs {times['mean']:.1f} times the labels of {thumbs}"
    return f"{found} ({say(times['low'])} to {say(times['high'])})"


def _list_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def describe_estimate(estimate: Mapping[str, float]) -> str:
    """`69% (55% to 80%, n = 48)`."""
    return (
        f"{100 * estimate['mean']:.0f}% "
        f"({100 * estimate['low']:.0f}% to {100 * estimate['high']:.0f}%, n = {estimate['n']})"
    )


def describe_rows(spent: Mapping[str, Any]) -> str:
    """What an arm was trained on."""
    return f"{spent['pairs']} pairs" if spent["pairs"] else f"{spent['rows']} thumbs"


def describe_auc(arm: Mapping[str, Any]) -> str:
    auc = arm.get("auc")
    if not auc:
        return "not measured"
    return (
        f"its log ratio to the base ranks held-out 👍 above 👎 with an AUC of {auc['mean']:.2f} "
        f"({auc['low']:.2f} to {auc['high']:.2f}, n = {auc['n']})"
    )


def _compare_with_base(arm: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    numbers = (
        f"up-rate {describe_estimate(arm['up_rate'])}, base {describe_estimate(base['up_rate'])} "
        "on held-out prompts"
    )
    relation = _relate(arm["gain"])
    if relation == "Not to be told from":
        return f"{arm['name']} cannot be told from the base at this n: {numbers}."
    return f"{arm['name']} is {relation.lower()} the base: {numbers}."


def _compare_with_kto(trained: Mapping[str, Mapping[str, Any]], labels: int) -> list[str]:
    sentences: list[str] = []
    others = [arm for arm in trained.values() if arm.get("kto_lead")]
    is_sure = _is_sure([arm["kto_lead"] for arm in others])
    for arm, sure in zip(others, is_sure, strict=True):
        lead = arm["kto_lead"]
        interval = f"{100 * lead['low']:+.0f} to {100 * lead['high']:+.0f} points"
        if not sure:
            outcome = f"KTO and {arm['name']} cannot be told apart (KTO's lead is {interval})"
        elif lead["mean"] > 0:
            outcome = f"KTO beats {arm['name']} by {100 * lead['mean']:.0f} points ({interval})"
        else:
            outcome = f"{arm['name']} beats KTO by {-100 * lead['mean']:.0f} points ({interval})"
        sentences.append(f"For {labels} labels, {outcome}; {arm['name']} had {describe_rows(arm['spent'])}.")
    return sentences


def list_caveats(
    *,
    seeds: Sequence[int],
    judge: str,
    judge_caveat: str,
    n_prompts: int,
    temperature: float,
    trials: int,
    arms: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """What these numbers do not show."""
    steps = {arm["name"]: arm["config"]["steps"] for arm in arms.values() if arm.get("config")}
    caveats = [
        "Arms share the annotation budget and the number of epochs, not the number of optimizer steps: "
        + ", ".join(f"{name} took {n}" for name, n in steps.items())
        + ".",
        f"Judged by {judge}: {judge_caveat}.",
        f"{n_prompts} held-out prompts; other kinds of prompts may differ.",
        "Learning rate and β were not searched per method; a method may do better with settings of its own."
        if trials == 1
        else f"Of each method, and of each number of bought pairs, {trials} settings were tried, on other prompts with "
        "one seed: a finer search may differ. Sweeps take the settings found on all thumbs, which may suit fewer or "
        "wrong ones less; so does KTO on fewer thumbs where pairs are held against it.",
        "On clean pairs, published comparisons find DPO and SimPO ahead of KTO; KTO's case is single, imbalanced, "
        "noisy thumbs.",
    ]
    n_seeds = "One seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    caveats.insert(
        0, f"{n_seeds}: the intervals cover the choice of prompts, not the luck of the training run."
    )
    if len(arms) > 3:
        caveats.append(
            f"{len(arms) - 1} arms were compared: the best of several is partly the luckiest. Where a sentence says "
            "that one beats another, or cannot be told from it, it corrects for their number (Holm); intervals do not."
        )
    if temperature != 1:
        caveats.append(
            f"Samples were drawn at temperature {temperature}: the gain in log-prob per token is then no KL of the "
            "policy itself."
        )
    return caveats
