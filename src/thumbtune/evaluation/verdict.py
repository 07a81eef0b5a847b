"""The comparison in words: what can be told from the numbers, and what cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def write_verdict(arms: Mapping[str, Mapping[str, Any]], labels: int) -> list[str]:
    """A few sentences, the answer first. Arms are as in `compare.json`; failed ones are named as such."""
    base = arms["base"]
    trained = {key: arm for key, arm in arms.items() if key != "base" and not arm.get("error")}
    sentences = []
    for arm in sorted(trained.values(), key=lambda arm: -(arm["up_rate"] or {"mean": 0})["mean"]):
        if arm["up_rate"] is None or base["up_rate"] is None:
            sentences.append(f"{arm['name']}: {describe_auc(arm)}.")
        else:
            sentences.append(_compare_with_base(arm, base))
    sentences += _compare_with_kto(trained, labels)
    sentences += [f"{arm['name']} failed: {arm['error']}" for arm in arms.values() if arm.get("error")]
    return sentences


def describe_estimate(estimate: Mapping[str, float]) -> str:
    """`69% (55% to 80%, n = 48)`."""
    return (
        f"{100 * estimate['mean']:.0f}% "
        f"({100 * estimate['low']:.0f}% to {100 * estimate['high']:.0f}%, n = {estimate['n']})"
    )


def describe_auc(arm: Mapping[str, Any]) -> str:
    auc = arm.get("auc")
    if not auc:
        return "not measured"
    return (
        f"its implicit reward ranks held-out 👍 above 👎 with an AUC of {auc['mean']:.2f} "
        f"({auc['low']:.2f} to {auc['high']:.2f}, n = {auc['n']})"
    )


def _compare_with_base(arm: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    numbers = (
        f"up-rate {describe_estimate(arm['up_rate'])}, base {describe_estimate(base['up_rate'])} "
        "on held-out prompts"
    )
    gain = arm["gain"]
    if gain["low"] > 0:
        return f"{arm['name']} is better than the base: {numbers}."
    if gain["high"] < 0:
        return f"{arm['name']} is worse than the base: {numbers}."
    return f"{arm['name']} cannot be told from the base at this n: {numbers}."


def _compare_with_kto(trained: Mapping[str, Mapping[str, Any]], labels: int) -> list[str]:
    sentences: list[str] = []
    kto = trained.get("kto")
    for key, arm in trained.items():
        gap = arm.get("kto_lead")
        if kto is None or key == "kto" or gap is None:
            continue
        interval = f"{100 * gap['low']:+.0f} to {100 * gap['high']:+.0f} points"
        if gap["low"] > 0:
            outcome = f"KTO beats {arm['name']} by {100 * gap['mean']:.0f} points ({interval})"
        elif gap["high"] < 0:
            outcome = f"{arm['name']} beats KTO by {-100 * gap['mean']:.0f} points ({interval})"
        else:
            outcome = f"KTO and {arm['name']} cannot be told apart (KTO's lead is {interval})"
        sentences.append(f"For {labels} labels, {outcome}; {arm['name']} had {arm['spent']['pairs']} pairs.")
    return sentences


def list_caveats(
    *,
    seeds: Sequence[int],
    judge: str,
    n_prompts: int,
    temperature: float,
    arms: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """What these numbers do not show."""
    steps = {arm["name"]: arm["config"]["steps"] for arm in arms.values() if arm.get("config")}
    caveats = [
        "Arms share the annotation budget and the number of epochs, not the number of optimizer steps: "
        + ", ".join(f"{name} took {n}" for name, n in steps.items())
        + ".",
        f"The judge is a {judge}: it tells whether the hidden taste was learned, not whether people agree.",
        f"{n_prompts} held-out prompts of the same kind as the training prompts; other kinds may differ.",
        "Learning rate and β were not searched per method; a method may do better with settings of its own.",
        "On clean pairs, published comparisons find DPO and SimPO ahead of KTO; KTO's case is single, imbalanced, "
        "noisy thumbs.",
    ]
    if len(seeds) == 1:
        caveats.insert(
            0, "One seed: the intervals cover the choice of prompts, not the luck of the training run."
        )
    if temperature != 1:
        caveats.append(
            f"Samples were drawn at temperature {temperature}: the gain in log-prob per token is then no KL of the "
            "policy itself."
        )
    return caveats
