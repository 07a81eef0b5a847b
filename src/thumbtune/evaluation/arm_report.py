"""What `compare.json` says of each arm and of the whole, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from thumbtune.data.synth.users import SimulatedUsers
from thumbtune.evaluation.arms import ArmPlan
from thumbtune.evaluation.judges import Judge
from thumbtune.evaluation.measures import (
    ArmScores,
    Votes,
    count_outcomes,
    count_rewards,
    estimate_at_base_length,
    estimate_kl_per_token,
    estimate_length,
    estimate_negative_flips,
    join_seeds,
    judged,
    mean,
)
from thumbtune.evaluation.statistics import (
    Estimate,
    estimate_auc,
    estimate_mean,
    estimate_share,
    paired_p_value,
)
from thumbtune.evaluation.verdict import find_best, list_caveats, write_verdict
from thumbtune.records import text_key
from thumbtune.training.manifest import describe_hardware, git_commit, now, package_versions
from thumbtune.training.methods import METHODS
from thumbtune.training.run import RunResult

if TYPE_CHECKING:
    from thumbtune.evaluation.compare import Request

CURVE_NAMES = {
    "step": "step",
    "loss": "loss",
    "z0": "z0",
    "rewards/chosen": "reward_desirable",
    "rewards/rejected": "reward_undesirable",
    "auc": "auc",
    "saturated_share": "saturated_share",
}


def join_liked(scores: Sequence[ArmScores]) -> list[list[float]]:
    """Judged outcomes by prompt, all seeds together."""
    return judged(join_seeds([score.liked for score in scores]))


def estimate_liked(scores: Sequence[ArmScores]) -> Estimate:
    """Up-rate of an arm over all its seeds, prompts resampled."""
    return estimate_share(join_liked(scores))


def estimate_gain(scores: Sequence[ArmScores], base: ArmScores) -> dict[str, float]:
    """Up-rate above the base's, paired by prompt, with its p-value."""
    gain = _subtract(join_liked(scores), join_liked([base for _ in scores]))
    return estimate_mean(gain).as_dict() | {"p_value": paired_p_value(gain)}


def report_base(base: ArmScores) -> dict[str, Any]:
    return {
        "name": "Base",
        "method": None,
        "up_rate": estimate_liked([base]).as_dict() if any(base.samples) else None,
        "auc": None,
        "kl_per_token": None,
        "length": estimate_length([base]) if any(base.samples) else None,
        "seconds": 0.0,
        "peak_rss_mb": None,
        "spent": None,
        "curve": [],
        "reward_histogram": None,
        "config": {},
    }


def report_arm(
    request: Request,
    plan: ArmPlan,
    runs: list[RunResult],
    scores: list[ArmScores],
    base: ArmScores,
    votes: Votes,
) -> dict[str, Any]:
    manifest = json.loads((runs[0].folder / "manifest.json").read_text())
    config = manifest["config"]
    ratios = [[score.vote_log_ratios[i][k] for i, k in votes.places] for score in scores]
    auc = estimate_auc(ratios, votes.labels, votes.prompts)
    return {
        "name": plan.name,
        "method": plan.method,
        **(_measure_samples(scores, base) if any(base.samples) else dict.fromkeys(OF_SAMPLES)),
        "auc": auc.as_dict() if auc else None,
        "seconds": sum(run.seconds for run in runs) / len(runs),
        "peak_rss_mb": max(run.peak_rss_mb for run in runs),
        "spent": {
            "labels": len(request.rows.examples),
            "rows": runs[0].data["rows"],
            "pairs": runs[0].data["rows"] if METHODS[plan.method].paired else 0,
            "left_over": {name: n for name, n in runs[0].data["counts"].items() if n},
            **plan.bought,
        },
        "alarms": [alarm for run in runs for alarm in run.alarms],
        "adjustments": runs[0].adjustments,
        "curve": [
            {ours: entry[theirs] for theirs, ours in CURVE_NAMES.items() if theirs in entry}
            for entry in runs[0].curve
            if "loss" in entry
        ],
        "reward_histogram": count_rewards(
            [config["beta"] * ratio for run in ratios for ratio in run], list(votes.labels) * len(scores)
        ),
        "config": {
            name: config[name]
            for name in ("learning_rate", "beta", "num_train_epochs", "per_device_train_batch_size",
                         "gradient_accumulation_steps", "desirable_weight", "undesirable_weight", "loss_type")
            if name in config
        } | {"lora": dict(request.lora), "steps": runs[0].steps},
    }  # fmt: skip


OF_SAMPLES = (
    "up_rate",
    "by_seed",
    "gain",
    "outcomes",
    "negative_flips",
    "at_base_length",
    "kl_per_token",
    "length",
)
"""What is not known where held-out votes alone judge."""


def _measure_samples(scores: list[ArmScores], base: ArmScores) -> dict[str, Any]:
    liked, of_base = join_seeds([score.liked for score in scores]), join_seeds([base.liked for _ in scores])
    measured = (
        estimate_liked(scores).as_dict(),
        [estimate_liked([score]).mean for score in scores],
        estimate_gain(scores, base),
        count_outcomes(liked, of_base),
        estimate_negative_flips(liked, of_base),
        estimate_at_base_length(scores, base),
        estimate_kl_per_token(scores),
        estimate_length(scores),
    )
    return dict(zip(OF_SAMPLES, measured, strict=True))


def add_leads(arms: dict[str, Any], scores: Mapping[str, list[ArmScores]]) -> None:
    """KTO's lead over each other arm, and that of the best arm, paired by prompt."""
    if not any(scores["base"][0].samples):
        return
    for name, leader in (("kto_lead", "kto"), ("best_lead", find_best(arms))):
        for key, arm_scores in scores.items():
            if leader is not None and leader in scores and key not in ("base", leader):
                lead = _subtract(join_liked(scores[leader]), join_liked(arm_scores))
                arms[key][name] = estimate_mean(lead).as_dict() | {"p_value": paired_p_value(lead)}


def _subtract(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
    """Difference of the means, prompt by prompt, where both were judged."""
    return [mean(a) - mean(b) for a, b in zip(ours, theirs, strict=True) if a and b]


def report_comparison(
    request: Request,
    judge: Judge,
    arms: dict[str, Any],
    votes: Votes,
    *,
    search: Mapping[str, Any],
    sweeps: Sequence[Mapping[str, Any]],
    crossing: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The whole content of `compare.json`."""
    examples = request.rows.examples
    return {
        "title": request.title,
        "created_at": now(),
        "git_commit": git_commit(),
        "seeds": list(request.seeds),
        "model": request.model_name,
        "data": {
            "source": request.rows.source,
            "digest": request.rows.digest,
            "rows": len(examples),
            "desirable": sum(example.label for example in examples),
            "undesirable": sum(not example.label for example in examples),
            "prompts": len({text_key(example.prompt) for example in examples}),
            "held_out_prompts": len(request.held_out),
            "held_out_votes": len(votes.labels),
            "refused": request.rows.refusals.as_dict(),
        },
        "budget": {"labels": len(examples), "pair_cost_labels": request.pair_cost},
        "judge": {
            "description": judge.description,
            "relative": judge.is_relative,
            **_describe_users(request.users),
        },
        "sampling": asdict(request.sampling),
        "verdict": write_verdict(
            arms, len(examples), noise=request.users.noise if request.users else 0.0, crossing=crossing
        ),
        "caveats": list_caveats(
            seeds=request.seeds,
            judge=judge.description,
            judge_caveat=judge.caveat,
            trials=request.trials,
            n_prompts=len(request.held_out) or len(set(votes.prompts)),
            temperature=request.sampling.temperature,
            arms=arms,
        ),
        "hardware": describe_hardware(),
        "versions": package_versions(),
        "arms": arms,
        "search": dict(search),
        "sweeps": list(sweeps),
        "crossing": crossing,
    }


def _describe_users(users: SimulatedUsers | None) -> dict[str, Any]:
    if users is None:
        return {}
    return {
        "taste_of_the_voters": users.taste.name,
        "noise": users.noise,
        "silence": users.silence,
        "seed": users.seed,
    }


def write_completions(request: Request, scores: Mapping[str, list[ArmScores]]) -> None:
    path = request.out / "completions.jsonl"
    if request.voted:
        path.unlink(missing_ok=True)
        return
    with path.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(request.held_out):
            arms = {
                key: [
                    {
                        "text": s.text,
                        "label": liked if liked in (None, 0.5) else bool(liked),
                        "n_tokens": len(s.token_ids),
                        "finished": s.finished,
                    }
                    for s, liked in zip(arm[0].samples[i], arm[0].liked[i], strict=True)
                ]
                for key, arm in scores.items()
            }
            shown = prompt if isinstance(prompt, str) else list(prompt)
            file.write(json.dumps({"prompt": shown, "arms": arms}, ensure_ascii=False) + "\n")
