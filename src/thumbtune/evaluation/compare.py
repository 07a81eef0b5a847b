"""Methods compared on one base model, the same thumbs and the same annotation budget.

Each arm is trained from the same base with the same seeds, and judged on held-out prompts: up-rate of fresh samples,
AUC of the implicit reward on held-out votes, KL to the base per token, length, seconds, memory. Every stage is kept in
the comparison's folder; started again, it goes on where it stopped.

DPO gets two lines: the pairs that these very thumbs contain, and the pairs that the same budget would have bought.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from thumbtune.data.formats import Rows, describe_row
from thumbtune.data.refusals import Refusals
from thumbtune.data.synth.users import Sample, SimulatedUsers
from thumbtune.engine.reference import fingerprint_weights
from thumbtune.errors import ConfigError, ThumbtuneError
from thumbtune.evaluation.judge import (
    Sampling,
    judge_samples,
    sample_with_cache,
    score_samples,
)
from thumbtune.evaluation.measures import (
    ArmScores,
    Votes,
    collect_held_out_votes,
    count_rewards,
    estimate_kl_per_token,
    estimate_length,
    join_seeds,
    mean,
)
from thumbtune.evaluation.pairs_bought import buy_pairs
from thumbtune.evaluation.statistics import estimate_auc, estimate_mean, estimate_share
from thumbtune.evaluation.verdict import list_caveats, write_verdict
from thumbtune.records import Pair, Text, text_key
from thumbtune.training.adapters import lora_config
from thumbtune.training.manifest import describe_hardware, git_commit, now, package_versions, write_json
from thumbtune.training.methods import METHODS
from thumbtune.training.run import RunResult, run_training
from thumbtune.training.settings import build_config
from thumbtune.training.trainers import TRAINERS

OnStage = Callable[[str], Any]
"""Called with a stage's name; gives a context manager that yields a progress callback (done, total, note)."""

CURVE_NAMES = {
    "step": "step",
    "loss": "loss",
    "z0": "z0",
    "rewards/chosen": "reward_desirable",
    "rewards/rejected": "reward_undesirable",
    "auc": "auc",
    "saturated_share": "saturated_share",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare."""

    model_name: str
    rows: Rows
    """The thumbs; their number is the annotation budget, in labels."""
    held_out: Sequence[Text]
    """Prompts that no arm trains on."""
    users: SimulatedUsers
    """Who judges, and who voted."""
    out: Path
    pool: Sequence[Sequence[Sample]] = ()
    """Samples by training prompt, for the pairs that the budget would buy; without it that arm is left out."""
    methods: Sequence[str] = ("kto", "dpo")
    seeds: Sequence[int] = (0,)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings by method."""
    lora: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = Sampling()
    pair_cost: float = 5.0
    """Labels that one pair costs."""
    title: str = "Comparison"


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """One line of the comparison, before training."""

    key: str
    name: str
    method: str
    rows: Rows
    bought: Mapping[str, int] = field(default_factory=dict)


def compare(request: Request, model: Any, tokenizer: Any, on_stage: OnStage) -> dict[str, Any]:
    """Train and judge every arm; gives the content of `compare.json`, which is written with `completions.jsonl`.

    `model` is the base and is handed back as it was. An arm that is refused is reported as an error, not left out.
    """
    if len(request.held_out) < 2:
        raise ConfigError(
            f"{len(request.held_out)} held-out prompts: at least 2 are needed, 50 tell something"
        )
    base_identity = fingerprint_weights(model)
    with on_stage("Base: sampling") as progress:
        base = _score_base(request, model, tokenizer, base_identity, progress)
    votes = collect_held_out_votes(request.users, request.held_out, base)
    arms: dict[str, Any] = {"base": _report_base(base)}
    scores: dict[str, list[ArmScores]] = {"base": [base]}
    for plan in plan_arms(request):
        try:
            runs, scores[plan.key] = _run_arm(request, plan, model, tokenizer, base, on_stage)
        except ThumbtuneError as error:
            arms[plan.key] = {"name": plan.name, "method": plan.method, "error": str(error)}
            continue
        arms[plan.key] = _report_arm(request, plan, runs, scores[plan.key], base, votes)
    _add_leads(arms, scores)
    content = _report_comparison(request, arms, votes)
    write_json(content, request.out / "compare.json")
    _write_completions(request, scores)
    return content


def plan_arms(request: Request) -> list[ArmPlan]:
    """The arms in the order of the report."""
    plans = []
    for method in request.methods:
        if method not in TRAINERS:
            raise ConfigError(f"unknown method '{method}': {', '.join(TRAINERS)}")
        if not METHODS[method].paired:
            plans.append(ArmPlan(method, method.upper(), method, request.rows))
            continue
        plans.append(ArmPlan(method, f"{method.upper()} (pairs in the thumbs)", method, request.rows))
        if request.pool:
            pairs, counts = buy_pairs(
                request.pool,
                request.users,
                labels=len(request.rows.examples),
                pair_cost=request.pair_cost,
                seed=request.seeds[0],
            )
            if pairs:
                name = f"{method.upper()} (bought pairs)"
                plans.append(ArmPlan(f"{method}_bought", name, method, _rows_of_pairs(pairs), counts))
    return plans


def _rows_of_pairs(pairs: list[Pair]) -> Rows:
    lines = [json.dumps(describe_row(pair), sort_keys=True, ensure_ascii=False) for pair in pairs]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Rows([], pairs, Refusals(), digest, len(pairs), "bought pairs")


# ---- running


def _score_base(request: Request, model: Any, tokenizer: Any, identity: str, progress: Any) -> ArmScores:
    samples = sample_with_cache(
        model,
        tokenizer,
        request.held_out,
        request.sampling,
        request.out / "base" / "samples.json",
        identity,
        progress,
    )
    log_probs = score_samples(model, tokenizer, request.held_out, samples)
    liked = judge_samples(request.users, request.held_out, samples)
    return ArmScores(samples, liked, log_probs, [[0.0] * len(row) for row in samples])


def _run_arm(
    request: Request, plan: ArmPlan, model: Any, tokenizer: Any, base: ArmScores, on_stage: OnStage
) -> tuple[list[RunResult], list[ArmScores]]:
    runs, scores = [], []
    for seed in request.seeds:
        folder = request.out / "arms" / f"{plan.key}-seed{seed}"
        settings = {**request.settings.get(plan.method, {}), "seed": seed, "output_dir": str(folder)}
        label = plan.name if len(request.seeds) == 1 else f"{plan.name}, seed {seed}"
        with _adapter_on(model, tokenizer, plan, settings, request.lora) as trainer:
            with on_stage(f"{label}: training") as progress:
                run = run_training(trainer, on_progress=_report_to(progress))
            if not run.finished:
                raise KeyboardInterrupt
            if trainer.state.global_step == 0:  # it was finished before: take its weights
                _load_adapter(trainer.model, folder)
            with on_stage(f"{label}: judging") as progress:
                scores.append(_score_arm(request, trainer.model, tokenizer, base, run, folder, progress))
        runs.append(run)
    return runs, scores


@contextmanager
def _adapter_on(
    model: Any, tokenizer: Any, plan: ArmPlan, settings: Mapping[str, Any], lora: Mapping[str, Any]
) -> Iterator[Any]:
    """A trainer whose fresh adapter sits on the shared base, taken off again afterwards."""
    trainer = TRAINERS[plan.method](
        model=model,
        args=build_config(plan.method, settings),
        train_dataset=plan.rows,
        processing_class=tokenizer,
        peft_config=lora_config(**lora),
    )
    try:
        yield trainer
    finally:
        trainer.model.unload()
        model.requires_grad_(True)


def _load_adapter(model: Any, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def _score_arm(
    request: Request, model: Any, tokenizer: Any, base: ArmScores, run: RunResult, folder: Path, progress: Any
) -> ArmScores:
    samples = sample_with_cache(
        model, tokenizer, request.held_out, request.sampling, folder / "samples.json", run.identity, progress
    )
    held_log_probs = score_samples(model, tokenizer, request.held_out, base.samples)
    with model.disable_adapter():
        base_log_probs = score_samples(model, tokenizer, request.held_out, samples)
    ratios = (torch.tensor(held_log_probs) - torch.tensor(base.base_log_probs)).tolist()
    return ArmScores(samples, judge_samples(request.users, request.held_out, samples), base_log_probs, ratios)


def _report_to(progress: Any) -> Callable[[str, int, int, Mapping[str, float]], None]:
    def show(stage: str, done: int, total: int, latest: Mapping[str, float]) -> None:
        loss = f"loss {latest['loss']:.3f}" if "loss" in latest else ""
        progress(done, total, "reference pass" if stage == "reference" else loss)

    return show


# ---- reporting


def _report_base(base: ArmScores) -> dict[str, Any]:
    return {
        "name": "Base",
        "method": None,
        "up_rate": estimate_share(base.liked).as_dict(),
        "auc": None,
        "kl_per_token": None,
        "length": estimate_length([base]),
        "seconds": 0.0,
        "peak_rss_mb": None,
        "spent": None,
        "curve": [],
        "reward_histogram": None,
        "config": {},
    }


def _report_arm(
    request: Request,
    plan: ArmPlan,
    runs: list[RunResult],
    scores: list[ArmScores],
    base: ArmScores,
    votes: Votes,
) -> dict[str, Any]:
    manifest = json.loads((runs[0].folder / "manifest.json").read_text())
    config = manifest["config"]
    ratios = [score.vote_log_ratios[i][k] for score in scores for i, k in votes.places]
    labels, prompts = votes.labels * len(scores), votes.prompts * len(scores)
    auc = estimate_auc(ratios, labels, prompts)
    liked = join_seeds([score.liked for score in scores])
    gain = [mean(row) - mean(reference) for row, reference in zip(liked, base.liked, strict=True)]
    return {
        "name": plan.name,
        "method": plan.method,
        "up_rate": estimate_share(liked).as_dict(),
        "gain": estimate_mean(gain).as_dict(),
        "auc": auc.as_dict() if auc else None,
        "kl_per_token": estimate_kl_per_token(scores),
        "length": estimate_length(scores),
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
        "reward_histogram": count_rewards([config["beta"] * ratio for ratio in ratios], labels),
        "config": {
            name: config[name]
            for name in ("learning_rate", "beta", "num_train_epochs", "per_device_train_batch_size",
                         "gradient_accumulation_steps", "desirable_weight", "undesirable_weight", "loss_type")
            if name in config
        } | {"lora": dict(request.lora), "steps": runs[0].steps},
    }  # fmt: skip


def _add_leads(arms: dict[str, Any], scores: Mapping[str, list[ArmScores]]) -> None:
    """KTO's lead over each other arm, paired by prompt."""
    if "kto" not in scores:
        return
    kto = join_seeds([score.liked for score in scores["kto"]])
    for key, arm_scores in scores.items():
        if key not in ("base", "kto"):
            other = join_seeds([score.liked for score in arm_scores])
            lead = [mean(a) - mean(b) for a, b in zip(kto, other, strict=True)]
            arms[key]["kto_lead"] = estimate_mean(lead).as_dict()


def _report_comparison(request: Request, arms: dict[str, Any], votes: Votes) -> dict[str, Any]:
    examples = request.rows.examples
    judge = f"simulated user with the taste '{request.users.taste.name}'"
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
            "kind": "simulated user",
            "taste": request.users.taste.name,
            "noise": request.users.noise,
            "silence": request.users.silence,
            "seed": request.users.seed,
            "description": judge,
        },
        "sampling": asdict(request.sampling),
        "verdict": write_verdict(arms, len(examples)),
        "caveats": list_caveats(
            seeds=request.seeds,
            judge=judge,
            n_prompts=len(request.held_out),
            temperature=request.sampling.temperature,
            arms=arms,
        ),
        "hardware": describe_hardware(),
        "versions": package_versions(),
        "arms": arms,
    }


def _write_completions(request: Request, scores: Mapping[str, list[ArmScores]]) -> None:
    path = request.out / "completions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(request.held_out):
            arms = {
                key: [
                    {"text": s.text, "label": liked, "n_tokens": len(s.token_ids), "finished": s.finished}
                    for s, liked in zip(arm[0].samples[i], arm[0].liked[i], strict=True)
                ]
                for key, arm in scores.items()
            }
            shown = prompt if isinstance(prompt, str) else list(prompt)
            file.write(json.dumps({"prompt": shown, "arms": arms}, ensure_ascii=False) + "\n")
