"""Claim: thumbtune trains KTO at several times TRL's speed, in less memory, on the same rows and model.

Each arm runs in a process of its own, in turn (A B C, A B C, …), several rounds. A child first trains a throwaway
trainer of its arm for one step on the first batch's rows: libraries, kernels and thread pools are warm when the clock
starts. The clock then counts our whole `train()` (reference pass, fingerprints and manifest included), and TRL's
reference pass and `train()`. Loading the model and tokenizing are not counted. Nothing is scored or cached from
before. TRL's best `precompute_ref_batch_size` is found beforehand, off the clock.

Prints seconds, speeds, peak memory, ratios by round, the loss of each step, and the share of the machine's matmul peak:
the arithmetic that thumbtune's schedule needs (`flops.count_flops`, for each arm's own batches), by the seconds of
the whole run, and by those of the policy's steps alone without the first one. In `trl_default` these hold the
reference too. Losses are of each library's own batches, ours shuffled; `parity.py` compares like with like.

    python benchmarks/kto_step.py [--workload mixed] [--shape full] [--rows 64] [--epochs 2] [--rounds 3] [--out …]
    python benchmarks/kto_step.py --device cuda --model HuggingFaceTB/SmolLM2-1.7B-Instruct
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from arms import (
    LEARNING_RATES,
    Job,
    StepClock,
    build_trainer,
    check_nothing_is_cut,
    keep_freed_memory,
    list_branches,
    read_plan,
    read_resident_mb,
    release_memory,
    run_in_child,
    save_tiny_model,
)
from flops import count_flops, finish_work, measure_matmul_peak, read_model_size
from result_tables import format_table
from workloads import WORKLOADS, make_rows

from thumbtune.engine.loading import PACKAGED_MODEL
from thumbtune.training.config import cpu_has_fast_bf16
from thumbtune.training.peak_memory import PeakMemory


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    library: Literal["thumbtune", "trl"]
    settings: dict[str, Any] = field(default_factory=dict)
    keeps_freed_memory: bool = False
    """Whether thumbtune's allocator settings are given to a library that does not know them."""


_TUNED = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
ARMS = {
    "trl_default": Arm("trl"),
    "trl_tuned": Arm("trl", _TUNED),
    "trl_tuned_malloc": Arm("trl", _TUNED, keeps_freed_memory=True),
    "thumbtune": Arm("thumbtune"),
    "thumbtune_together": Arm("thumbtune", {"siblings_together": True}),
    "thumbtune_small": Arm("thumbtune", {"max_tokens_per_microbatch": 512}),
    "thumbtune_checkpointed": Arm("thumbtune", {"gradient_checkpointing": True}),
}
DEFAULT_ARMS = "trl_default,trl_tuned,trl_tuned_malloc,thumbtune,thumbtune_small"


@dataclass(frozen=True)
class Outcome:
    """What one run of an arm took and gave."""

    seconds: float
    """Of the whole run, all epochs."""
    step_seconds: list[float]
    losses: list[float]
    peak_mb: float
    """Resident memory on a CPU, what was allocated on a GPU."""
    imported_mb: float
    """Resident memory before a model was loaded."""
    warm_mb: float
    """Resident memory after the warm-up, the model let go: what the allocator kept counts to the peak."""
    weights_mb: float
    n_tokens: int
    """Prompts and completions of the rows, no padding."""
    flops: float
    flops_of_steps: list[float]

    @property
    def seconds_before_steps(self) -> float:
        """Of the reference pass, and what else is no step."""
        return self.seconds - sum(self.step_seconds)

    @property
    def steady_flops_per_second(self) -> float | None:
        seconds = sum(self.step_seconds[1:])
        return sum(self.flops_of_steps[1:]) / seconds if seconds else None


def run_arm(arm: Arm, job: Job) -> Outcome:
    """Warm up, then train under the clock. Runs in a child."""
    if arm.keeps_freed_memory and not keep_freed_memory():
        raise SystemExit("thumbtune has no allocator settings here: leave the arm out")
    imported_mb = read_resident_mb()
    _warm_up(job)
    warm_mb, clock = read_resident_mb(), StepClock()
    if job.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        trainer = build_trainer(job, Path(folder), [clock])
        check_nothing_is_cut(trainer, job.settings["max_length"])
        started = time.perf_counter()
        trainer.train()
        finish_work(job.device)
        seconds = time.perf_counter() - started + trainer.precompute_seconds
    branches = list_branches(trainer)
    plan = read_plan(trainer, _count("per_device_train_batch_size", job))
    size, epochs = read_model_size(trainer.model), _count("num_train_epochs", job)
    flops = count_flops(size, branches, plan, epochs)
    return Outcome(
        seconds=seconds,
        step_seconds=clock.seconds,
        losses=trainer.step_losses,
        peak_mb=memory.peak_mb if job.device == "cpu" else torch.cuda.max_memory_allocated() / 1e6,
        imported_mb=imported_mb,
        warm_mb=warm_mb,
        weights_mb=sum(p.numel() * p.element_size() for p in trainer.model.parameters()) / 1e6,
        n_tokens=sum(len(ids) for branch in branches for ids in branch),
        flops=flops.total,
        flops_of_steps=flops.steps,
    )


def _count(name: str, job: Job) -> int:
    return int(job.settings[name])


def _warm_up(job: Job) -> None:
    """One step of the same arm on the first batch's rows, with a trainer that is thrown away."""
    rows = job.rows[: _count("per_device_train_batch_size", job)]
    short = dataclasses.replace(job, rows=rows, settings={**job.settings, "num_train_epochs": 1})
    with tempfile.TemporaryDirectory() as folder:
        build_trainer(short, Path(folder)).train()
    release_memory()


def find_precompute_batch(job: Job, sizes: list[int]) -> int:
    """The batch size at which TRL scores the reference fastest, on the first rows. Runs in a child."""
    job = dataclasses.replace(job, rows=job.rows[:16])
    seconds = {}
    for size in [sizes[0], *sizes]:  # the first is the slow one
        settings = {**job.settings, "precompute_ref_batch_size": size}
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(dataclasses.replace(job, settings=settings), Path(folder))
        seconds[size] = trainer.precompute_seconds
    _tell("TRL's reference pass: " + ", ".join(f"{s:.1f} s by {size}" for size, s in seconds.items()))
    return min(seconds, key=lambda size: seconds[size])


def run_rounds(
    jobs: dict[str, tuple[Arm, Job]], rounds: int, dtype: torch.dtype, device: str
) -> tuple[dict[str, list[Outcome]], float]:
    """The outcomes of each arm, round by round, and the matmul peak in FLOP/s."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in jobs}
    peaks = []
    for number in range(1, rounds + 1):
        peaks.append(run_in_child(measure_matmul_peak, dtype, device))
        for name, (arm, job) in jobs.items():
            outcome = run_in_child(run_arm, arm, job)
            outcomes[name].append(outcome)
            _tell(f"round {number}, {name}: {outcome.seconds:.1f} s, {outcome.peak_mb:.0f} MB")
    return outcomes, max(peaks)


def tabulate(outcomes: dict[str, list[Outcome]], peak: float, n_rows: int, epochs: int) -> str:
    """The tables that are printed: medians over rounds; ratios by rounds; losses of the last round."""
    header = ["arm", "s/epoch", "s before steps", "rows/s", "tokens/s", "peak MB"]
    header += ["share of peak", "steady GFLOP/s", "steady share"]
    rows = [[name, *_summarize(runs, peak, n_rows, epochs)] for name, runs in outcomes.items()]
    losses = [[name, ", ".join(f"{loss:.4f}" for loss in runs[-1].losses)] for name, runs in outcomes.items()]
    tables = [
        format_table(header, rows),
        _describe_memory(outcomes),
        _tabulate_ratios(outcomes),
        format_table(["arm", "loss of each step"], losses),
    ]
    return "\n\n".join(table for table in tables if table)


def _summarize(runs: list[Outcome], peak: float, n_rows: int, epochs: int) -> list[Any]:
    seconds = median(run.seconds for run in runs)
    steady = [run.steady_flops_per_second for run in runs if run.steady_flops_per_second]
    return [
        seconds / epochs,
        median(run.seconds_before_steps for run in runs),
        n_rows * epochs / seconds,
        runs[0].n_tokens * epochs / seconds,
        round(median(run.peak_mb for run in runs)),
        f"{runs[0].flops / seconds / peak:.1%}",
        median(steady) / 1e9 if steady else None,
        f"{median(steady) / peak:.1%}" if steady else None,
    ]


def _describe_memory(outcomes: dict[str, list[Outcome]]) -> str:
    runs = [run for runs in outcomes.values() for run in runs]
    imported, weights = median(run.imported_mb for run in runs), median(run.weights_mb for run in runs)
    warm = "; ".join(f"{name} {median(run.warm_mb for run in runs):.0f}" for name, runs in outcomes.items())
    return (
        f"Of the peak, {imported:.0f} MB are imports, and {weights:.0f} MB the policy's weights. "
        f"Held after the warm-up, with the model let go (MB): {warm}."
    )


def _tabulate_ratios(outcomes: dict[str, list[Outcome]]) -> str:
    """How many times as fast as TRL each arm is; empty where no arm of TRL ran."""
    bases = [name for name in ("trl_default", "trl_tuned") if name in outcomes]
    rows = [[name, *(_compare(outcomes, name, base) for base in bases)] for name in outcomes]
    header = ["arm", *(f"times as fast as {base}: median (each round)" for base in bases)]
    return format_table(header, rows) if bases else ""


def _compare(outcomes: dict[str, list[Outcome]], name: str, base: str) -> str:
    ratios = [b.seconds / a.seconds for a, b in zip(outcomes[name], outcomes[base], strict=True)]
    return f"{median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"


def plan_jobs(arguments: argparse.Namespace, model: str) -> dict[str, tuple[Arm, Job]]:
    """What each arm that was asked for runs."""
    rows = make_rows(WORKLOADS[arguments.workload], arguments.rows, arguments.seed)
    shared = {
        "per_device_train_batch_size": arguments.batch,
        "num_train_epochs": arguments.epochs,
        "learning_rate": LEARNING_RATES[arguments.shape],
        "max_length": arguments.max_length,
        "seed": arguments.seed,
        "bf16": _has_fast_bf16(arguments.device),
    }
    jobs = {}
    for name in arguments.arms.split(","):
        arm = ARMS[name]
        jobs[name] = (
            arm,
            Job(arm.library, rows, {**shared, **arm.settings}, arguments.shape, model, arguments.device),
        )
    return _tune_precompute(jobs, [int(size) for size in arguments.precompute_batches.split(",")])


def _has_fast_bf16(device: str) -> bool:
    return device == "cuda" or cpu_has_fast_bf16()


def _tune_precompute(jobs: dict[str, tuple[Arm, Job]], sizes: list[int]) -> dict[str, tuple[Arm, Job]]:
    """The jobs, those that score TRL's reference beforehand with the fastest batch size for it."""
    tuned = {name: job for name, (arm, job) in jobs.items() if arm.settings.get("precompute_ref_log_probs")}
    if not tuned:
        return jobs
    job = next(iter(tuned.values()))
    best = {"precompute_ref_batch_size": run_in_child(find_precompute_batch, job, sizes)}
    print(f"TRL scores the reference fastest by {best['precompute_ref_batch_size']} rows.\n")
    return {
        name: (arm, dataclasses.replace(job, settings={**job.settings, **best}) if name in tuned else job)
        for name, (arm, job) in jobs.items()
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, default="mixed")
    parser.add_argument("--shape", choices=LEARNING_RATES, default="full")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--max-length", type=int, default=4096, help="checked to cut nothing")
    parser.add_argument("--arms", default=DEFAULT_ARMS, help=f"with commas, of {', '.join(ARMS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precompute-batches", default="1,4,16", help="sizes tried for TRL's reference pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", default=PACKAGED_MODEL, help="a folder or a hub's name")
    parser.add_argument("--tiny", action="store_true", help="a random llama of two layers")
    parser.add_argument("--out", type=Path, help="a JSON file for everything measured")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        jobs = plan_jobs(arguments, save_tiny_model(Path(folder)) if arguments.tiny else arguments.model)
        precision = "bf16" if _has_fast_bf16(arguments.device) else "float32"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        outcomes, peak = run_rounds(jobs, arguments.rounds, dtype, arguments.device)
    n_tokens = next(iter(outcomes.values()))[0].n_tokens
    print(
        f"{arguments.workload}, {arguments.shape}, {precision}: {arguments.rows} rows of {n_tokens:,} tokens, "
        f"{arguments.epochs} epochs, batch {arguments.batch}, {arguments.rounds} rounds; "
        f"matmul peak {peak / 1e9:.0f} GFLOP/s\n"
    )
    print(tabulate(outcomes, peak, arguments.rows, arguments.epochs))
    if arguments.out:
        content = {name: [dataclasses.asdict(run) for run in runs] for name, runs in outcomes.items()}
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.write_text(
            json.dumps({"settings": settings, "peak_flops": peak, "arms": content}, indent=1) + "\n"
        )


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
