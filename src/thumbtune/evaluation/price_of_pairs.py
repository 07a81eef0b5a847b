"""The crossing of a comparison: DPO on ever more bought pairs, held against KTO on the thumbs and on fewer of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from thumbtune.evaluation.arm_report import estimate_gain, estimate_liked, join_liked
from thumbtune.evaluation.arms import ArmError
from thumbtune.evaluation.conditions import Condition
from thumbtune.evaluation.crossing import find_crossing
from thumbtune.evaluation.measures import ArmScores, mean
from thumbtune.evaluation.pairs_bought import plan_bought

if TYPE_CHECKING:
    from thumbtune.evaluation.compare import Comparison


def run_crossing(comparison: Comparison, scores: Mapping[str, list[ArmScores]]) -> dict[str, Any] | None:
    """DPO on more and more bought pairs, against KTO on the thumbs and on fewer of them, where a sweep drew fewer.

    None where KTO or nearly all points failed.
    """
    request = comparison.request
    points: list[dict[str, Any]] = []
    curves = []
    for n_shown in request.pair_counts:
        point: dict[str, Any] = {"pairs_bought": n_shown, "labels": n_shown * request.pair_cost}
        plans = plan_bought(request, n_shown, f"DPO ({n_shown} pairs bought)")
        if not plans:
            points.append(point | {"error": "all of these pairs are ties"})
            continue
        try:
            _, arm = comparison.run(plans[0])
        except ArmError as error:
            points.append(point | {"error": str(error)})
            continue
        curves.append((n_shown, join_liked(arm)))
        pairs, tied = len(plans[0].rows.pairs), plans[0].bought["tied"]
        points.append(point | {"pairs": pairs, "tied": tied, "up_rate": estimate_liked(arm).as_dict()})
    if "kto" not in scores or len(curves) < 2:
        return None
    levels = _run_fewer_thumbs(comparison) | {len(request.rows.examples): scores["kto"]}
    return {
        "pair_cost": request.pair_cost,
        "points": points,
        "levels": [
            _describe_level(labels, arm, comparison.base, curves, request.pair_cost)
            for labels, arm in sorted(levels.items())
        ],
        "fewest": curves[0][0],
        "most": curves[-1][0],
    }


def _run_fewer_thumbs(comparison: Comparison) -> dict[int, list[ArmScores]]:
    """KTO by number of thumbs, of the sweeps' conditions that change nothing else."""
    levels: dict[int, list[ArmScores]] = {}
    for condition in (one for _, conditions in comparison.request.sweeps for one in conditions):
        if condition.rows is None or condition != Condition(rows=condition.rows):
            continue
        if "kto" in comparison.request.sweep_methods:
            with suppress(ArmError):  # the sweep tells it
                levels[condition.rows] = comparison.run_under(condition, "kto")[1]
    return levels


def _describe_level(
    labels: int,
    arm: Sequence[ArmScores],
    base: ArmScores,
    curves: Sequence[tuple[int, list[list[float]]]],
    pair_cost: float,
) -> dict[str, Any]:
    """KTO on so many thumbs, and where the curve of bought pairs crosses it."""
    level = join_liked(arm)
    judged_by_all = [i for i, row in enumerate(level) if row and all(rows[i] for _, rows in curves)]
    found = find_crossing(
        [n for n, _ in curves],
        [[mean(rows[i]) for i in judged_by_all] for _, rows in curves],
        [mean(level[i]) for i in judged_by_all],
    )
    return {
        "labels": labels,
        "up_rate": estimate_liked(arm).as_dict(),
        "gain": estimate_gain(arm, base),
        "pairs": _finite(found.pairs),
        "low": _finite(found.low),
        "high": _finite(found.high),
        "share_beyond": found.share_beyond,
        "times_the_labels": {
            name: _finite(value * pair_cost / labels)
            for name, value in (("mean", found.pairs), ("low", found.low), ("high", found.high))
        },
    }


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value
