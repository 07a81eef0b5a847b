"""Question: how far does low precision move the log ratios that KTO learns from?

The same rows in the same order and pairing are trained in float32 and in each other mode. Then the log ratio
log π(y|x) − log π_ref(y|x) of held-out completions is taken twice: as the mode itself computes it, its own reference
from before training subtracted, and in float32 arithmetic on the weights it ended with. Printed for each shape and
learning rate: mean and largest absolute difference to float32 training, in nats per completion token, each way; the
mean log ratio in nats; z0 of the last step.

A step of AdamW is far below bf16's spacing at small learning rates, so weights that are rounded to bf16 move in few
jumps or not at all, and a log ratio sums that over all tokens of a completion.

    python benchmarks/precision.py [--steps 50] [--shapes full,lora] [--modes bf16,trl_bf16] [--tiny]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from arms import Job, build_trainer, follow_trls_order, run_in_child, save_tiny_model, tokenize
from result_tables import format_table
from torch import Tensor
from workloads import WORKLOADS, make_rows

from thumbtune.engine.loading import PACKAGED_MODEL, load_model
from thumbtune.engine.logprobs import Branch, completion_log_probs, evaluating, pad_branches
from thumbtune.training.adapters import lora_config
from thumbtune.training.config import cpu_has_fast_bf16

BATCH, MAX_LENGTH, ROWS_AT_ONCE = 4, 4096, 8
LEARNING_RATES = {"full": (5e-7, 5e-6), "lora": (2e-5, 2e-4)}


@dataclass(frozen=True)
class Mode:
    """A library and its precision."""

    library: Literal["thumbtune", "trl"]
    settings: dict[str, Any]


_TRL = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
MODES = {
    "float32": Mode("thumbtune", {"bf16": False}),
    "bf16": Mode("thumbtune", {"bf16": True}),
    "trl_bf16": Mode("trl", {"bf16": True, **_TRL}),
    "trl_float32": Mode("trl", {"bf16": False, **_TRL}),
}


class Ratios(NamedTuple):
    """Log ratios of the held-out completions after training, nats, and how many tokens each has."""

    own: Tensor  # (N,) as the mode computes them
    in_float32: Tensor  # (N,) in float32 arithmetic on the trained weights
    n_tokens: Tensor  # (N,)
    reference_point: float


def train_and_measure(job: Job, n_held_out: int) -> Ratios:
    """Train on all rows but the last ones, and measure on those. Runs in a child."""
    held_out = tokenize(job.rows[-n_held_out:], job.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(replace(job, rows=job.rows[:-n_held_out]), Path(folder))
        if job.library == "thumbtune":
            follow_trls_order(trainer)
        own_before = own_log_probs(trainer, held_out)
        trainer.train()
        own_after = own_log_probs(trainer, held_out)
    plain_before, plain_after = _compare_in_float32(trainer, job, held_out)
    name = "z0" if job.library == "thumbtune" else "kl"
    return Ratios(
        own=own_after - own_before,
        in_float32=plain_after - plain_before,
        n_tokens=torch.tensor([len(branch.completion_ids) for branch in held_out]),
        reference_point=[entry[name] for entry in trainer.state.log_history if name in entry][-1],
    )


@torch.no_grad()
def own_log_probs(trainer: Any, branches: Sequence[Branch]) -> Tensor:  # (N,) float32, nats
    """log π(y|x) as the trainer computes it while it trains: its path, its precision."""
    with evaluating(trainer.model):
        chunks = [branches[i : i + ROWS_AT_ONCE] for i in range(0, len(branches), ROWS_AT_ONCE)]
        return torch.cat([_score_own(trainer, chunk) for chunk in chunks]).float()


def _score_own(trainer: Any, branches: Sequence[Branch]) -> Tensor:
    if hasattr(trainer, "data_collator") and not hasattr(trainer.train_dataset, "rows"):
        return _score_as_trl(trainer, branches)
    with trainer.compute_loss_context_manager():
        if hasattr(trainer, "path"):
            return trainer.path.log_probs(trainer.model, branches)
        return completion_log_probs(trainer.model, pad_branches(branches, trainer.pad_token_id))


def _score_as_trl(trainer: Any, branches: Sequence[Branch]) -> Tensor:
    rows = [{"prompt_ids": list(x), "completion_ids": list(y), "label": True} for x, y in branches]
    batch = trainer.data_collator(rows)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with trainer.accelerator.autocast():
        return trainer.model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum(-1)


def _compare_in_float32(trainer: Any, job: Job, branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
    """Log-probs in float32 by a plain model: of the weights before training and of those after."""
    plain = load_model(job.model)
    before = _score_plainly(plain, branches)
    if job.shape == "lora":
        from peft import get_peft_model

        plain = get_peft_model(plain, lora_config(r=16, alpha=32))
    plain.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
    return before, _score_plainly(plain, branches)


@torch.no_grad()
def _score_plainly(model: Any, branches: Sequence[Branch]) -> Tensor:
    pad_token_id = model.config.pad_token_id or 0
    chunks = [branches[i : i + ROWS_AT_ONCE] for i in range(0, len(branches), ROWS_AT_ONCE)]
    with evaluating(model):
        return torch.cat([completion_log_probs(model, pad_branches(chunk, pad_token_id)) for chunk in chunks])


def describe(mode: str, ratios: Ratios, right: Ratios) -> list[Any]:
    """A line of the table: a mode against float32 training."""
    errors = [(found - right.in_float32).abs() / right.n_tokens for found in (ratios.own, ratios.in_float32)]
    return [
        mode,
        *(float(number) for error in errors for number in (error.mean(), error.max())),
        float(ratios.own.mean()),
        float(ratios.in_float32.mean()),
        ratios.reference_point,
    ]


def run_settings(arguments: argparse.Namespace, model: str) -> list[list[Any]]:
    """The lines of the table: each shape, learning rate and mode."""
    rows = make_rows(WORKLOADS["short"], arguments.rows + arguments.held_out, arguments.seed)
    modes = ["float32", *(mode for mode in arguments.modes.split(",") if mode != "float32")]
    lines = []
    for shape in arguments.shapes.split(","):
        for rate in arguments.learning_rates or LEARNING_RATES[shape]:
            measured = {}
            for mode in modes:
                job = _make_job(mode, rows, rate, shape, arguments.steps, model)
                measured[mode] = run_in_child(train_and_measure, job, arguments.held_out)
                line = [shape, f"{rate:.0e}", *describe(mode, measured[mode], measured["float32"])]
                print(*line, file=sys.stderr, flush=True)
                lines.append(line)
    return lines


def _make_job(mode: str, rows: list[Any], rate: float, shape: Any, steps: int, model: str) -> Job:
    settings = {
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "max_length": MAX_LENGTH,
        **MODES[mode].settings,
    }
    return Job(MODES[mode].library, rows, settings, shape, model)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, default=32, help="rows trained, again and again")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--shapes", default="full,lora")
    parser.add_argument("--modes", default="bf16,trl_bf16", help=f"with commas, of {', '.join(MODES)}")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", help="for both shapes; by default two each"
    )
    parser.add_argument("--tiny", action="store_true", help="a random llama of two layers")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    if "bf16" in arguments.modes and not cpu_has_fast_bf16():
        sys.exit("this CPU has no AVX512-BF16 and no AMX: thumbtune trains in float32 here")
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder)) if arguments.tiny else PACKAGED_MODEL
        lines = run_settings(arguments, model)
    error = "error in nats per token, {}: {}"
    header = [
        "shape",
        "learning rate",
        "mode",
        *(
            error.format(way, what)
            for way in ("as computed", "of the weights")
            for what in ("mean", "largest")
        ),
        "mean log ratio, as computed",
        "mean log ratio, of the weights",
        "z0 at the end",
    ]
    print(
        f"{arguments.steps} steps of {BATCH} of {arguments.rows} short rows; {arguments.held_out} held out\n"
    )
    print(format_table(header, lines))


if __name__ == "__main__":
    main()
