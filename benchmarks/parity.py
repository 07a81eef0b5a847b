"""Claim: thumbtune and TRL take the same steps. In float32, on the same rows, order and pairing, losses agree to 1e-4.

TRL takes rows in order and lends each the completion of the row before it in its batch; ours is told to do the same.
Both train the packaged model (or, by --tiny, a random one), and the learning rate is high enough for losses to move.
Prints the loss of each step of both, and z0; exits with 1 where two losses differ by more than one part in 10,000.

    python benchmarks/parity.py [--tiny] [--steps 10] [--shape full] [--workload short]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from arms import (
    Job,
    build_trainer,
    check_nothing_is_cut,
    follow_trls_order,
    list_branches,
    run_in_child,
    save_tiny_model,
)
from result_tables import format_table
from workloads import WORKLOADS, make_rows

from thumbtune.engine.loading import PACKAGED_MODEL
from thumbtune.engine.logprobs import Branch

TOLERANCE = 1e-4
BATCH, MAX_LENGTH = 4, 4096
LEARNING_RATES = {("full", False): 5e-5, ("lora", False): 1e-3, ("full", True): 1e-3, ("lora", True): 1e-2}
"""By shape, and whether the model is the tiny one."""


class Course(NamedTuple):
    """How a run went, step by step."""

    losses: list[float]
    reference_points: list[float]
    branches: list[tuple[list[int], list[int]]]
    """Token ids of each row."""


def train_in_trls_order(job: Job) -> Course:
    """Train either library on the rows as they stand. Runs in a child."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(job, Path(folder))
        check_nothing_is_cut(trainer, MAX_LENGTH)
        if job.library == "thumbtune":
            follow_trls_order(trainer)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    name = "z0" if job.library == "thumbtune" else "kl"
    branches = [_to_lists(branch) for branch in list_branches(trainer)]
    return Course(trainer.step_losses, [entry[name] for entry in logs], branches)


def _to_lists(branch: Branch) -> tuple[list[int], list[int]]:
    return list(map(int, branch.prompt_ids)), list(map(int, branch.completion_ids))


def run_both(arguments: argparse.Namespace, model: str) -> tuple[Course, Course]:
    """(ours, TRL's)."""
    rows = make_rows(WORKLOADS[arguments.workload], BATCH * arguments.steps, arguments.seed)
    rate = arguments.learning_rate or LEARNING_RATES[arguments.shape, arguments.tiny]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": rate,
        "max_length": MAX_LENGTH,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    ours = Job("thumbtune", rows, {**settings, "engine": arguments.engine}, arguments.shape, model)
    theirs = Job("trl", rows, settings, arguments.shape, model)
    return run_in_child(train_in_trls_order, ours), run_in_child(train_in_trls_order, theirs)


def tabulate(ours: Course, theirs: Course) -> tuple[str, float]:
    """The table of all steps, and the largest relative difference of two losses."""
    differences = [abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    columns = (ours.losses, theirs.losses, differences, ours.reference_points, theirs.reference_points)
    rows = [
        [step, f"{a:.7f}", f"{b:.7f}", f"{difference:.1e}", f"{z0:.5f}", f"{kl:.5f}"]
        for step, (a, b, difference, z0, kl) in enumerate(zip(*columns, strict=True), start=1)
    ]
    header = ["step", "thumbtune", "TRL", "relative difference", "z0, thumbtune", "z0, TRL"]
    return format_table(header, rows), max(differences)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a random llama of two layers")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--shape", choices=("full", "lora"), default="full")
    parser.add_argument("--workload", choices=WORKLOADS, default="short")
    parser.add_argument("--engine", choices=("auto", "packed", "padded"), default="auto")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder)) if arguments.tiny else PACKAGED_MODEL
        ours, theirs = run_both(arguments, model)
    n_unequal = sum(a != b for a, b in zip(ours.branches, theirs.branches, strict=True))
    table, largest = tabulate(ours, theirs)
    print(table)
    print(f"\nlargest relative difference {largest:.1e}; rows tokenized otherwise: {n_unequal}")
    sys.exit(largest > TOLERANCE or n_unequal > 0)


if __name__ == "__main__":
    main()
