"""The pairs that the annotation budget would buy, if pairs were collected instead of thumbs.

A pair costs as much as `pair_cost` labels: people read two completions and weigh them. The simulated user is shown
two completions of one prompt from the same pool that the thumbs came from, and prefers one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thumbtune.data.synth.simulate import as_messages
from thumbtune.data.synth.users import Sample, SimulatedUsers
from thumbtune.evaluation.arms import ArmPlan
from thumbtune.evaluation.conditions import rows_of
from thumbtune.records import Pair

if TYPE_CHECKING:
    from thumbtune.evaluation.compare import Request


def count_pairs(pool: Sequence[Sequence[Sample]]) -> int:
    """How many pairs can be bought, each completion used once at most."""
    return sum(sum(bool(sample.text.strip()) for sample in samples) // 2 for samples in pool)


def buy_pairs(
    pool: Sequence[Sequence[Sample]], users: SimulatedUsers, *, labels: int, pair_cost: float, seed: int
) -> tuple[list[Pair], dict[str, int]]:
    """`labels / pair_cost` pairs from a pool of samples by prompt, each completion used once at most.

    Also counts what happened: `bought`, `tied` (paid for, but no preference), `missing` (the pool ran out).
    """
    budget = int(labels // pair_cost)
    rng = random.Random(seed)
    shown: list[tuple[int, Sample, Sample]] = []
    for number, samples in enumerate(pool):
        usable = [sample for sample in samples if sample.text.strip()]
        rng.shuffle(usable)
        shown += [(number, a, b) for a, b in zip(usable[::2], usable[1::2], strict=False)]
    rng.shuffle(shown)
    pairs, tied = [], 0
    for number, a, b in shown[:budget]:
        preferred = users.prefer(a, b, key=f"pair/{number}/{a.text}/{b.text}")
        if preferred is None:
            tied += 1
            continue
        chosen, rejected = (a, b) if preferred == 0 else (b, a)
        pairs.append(
            Pair(
                prompt=as_messages(a.prompt),
                chosen=[{"role": "assistant", "content": chosen.text}],
                rejected=[{"role": "assistant", "content": rejected.text}],
                where=f"bought pair of prompt {number}",
                chosen_finished=chosen.finished,
                rejected_finished=rejected.finished,
            )
        )
    return pairs, {"bought": len(pairs), "tied": tied, "missing": max(0, budget - len(shown))}


def count_affordable(request: Request) -> int:
    """Pairs that the labels of the thumbs would have bought."""
    return int(len(request.rows.examples) // request.pair_cost)


def plan_bought(request: Request, n_pairs: int, name: str) -> list[ArmPlan]:
    """DPO's arm of so many bought pairs; none where all of them are ties."""
    assert request.users is not None
    pairs, counts = buy_pairs(request.pool, request.users, labels=n_pairs, pair_cost=1, seed=request.seeds[0])
    if not pairs:
        return []
    settings = request.settings.get(name_bought(n_pairs), request.settings.get("dpo", {}))
    return [ArmPlan("dpo_bought", name, "dpo", rows_of(pairs, "bought pairs"), settings, counts)]


def name_bought(n_pairs: int) -> str:
    """What the settings for so many bought pairs are kept under, since a search finds some for each number."""
    return f"dpo, {n_pairs} pairs bought"
