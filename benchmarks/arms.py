"""What the benchmarks share: both libraries' KTO trainers built from one record, in a fresh process each.

Either library gets the same rows, the same float32 weights of the same model and the same adapter, on the same device.
A `Job` says the rest. `run_in_child` gives each piece of work a process of its own, so that
peak memory is that work's alone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from workloads import Row

from thumbtune.engine.loading import PACKAGED_MODEL, load_model, load_tokenizer
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.plan import BatchPlan, cut_batches
from thumbtune.training.adapters import lora_config

LEARNING_RATES = {"full": 5e-6, "lora": 2e-4}
_QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
_MAY_BE_MISSING = {"engine", "max_tokens_per_microbatch"}
_SPEAKS_TO_NOBODY = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Job:
    """One training run, of either library."""

    library: Literal["thumbtune", "trl"]
    rows: list[Row]
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the library's `KTOConfig`."""
    shape: Literal["full", "lora"] = "full"
    model: str = PACKAGED_MODEL
    device: Literal["cpu", "cuda"] = "cpu"


class InTrlsOrder(BatchPlan):
    """Rows in order; each is lent the completion of the row before it in its batch, the first that of the last."""

    def arrange(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        rows = np.arange(len(self))
        sizes = cut_batches(len(self), self.batch_size)
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        lenders = starts + (rows - starts - 1) % np.repeat(sizes, sizes)
        return rows, lenders if self.mismatched else None


class StepClock(TrainerCallback):
    """Seconds of each optimizer step, from the end of the one before; the first from its own begin."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.seconds:
            self._since = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._since)
        self._since = now


def run_in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` gives in a fresh process; its exceptions are raised here."""
    for name, value in _SPEAKS_TO_NOBODY.items():
        os.environ.setdefault(name, value)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_be_quiet) as pool:
        return pool.submit(work, *arguments).result()


def _be_quiet() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)


def build_trainer(job: Job, folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> Any:
    """The library's KTO trainer, its weights loaded and its rows tokenized.

    It notes what it computes: `step_losses`, unrounded, and with TRL `precompute_seconds`, since TRL scores the
    reference while the trainer is made.
    """
    kind, config, train_dataset = _import_library(job)
    settings = {"output_dir": str(folder), "use_cpu": job.device == "cpu", **_QUIET, **job.settings}
    if job.library == "thumbtune":
        settings["reference_cache"] = str(folder / "reference")  # empty: nothing was scored before
    trainer = _recording(kind)(
        model=load_model(job.model),
        args=config(**_drop_missing(settings, config)),
        train_dataset=train_dataset,
        processing_class=load_tokenizer(job.model),
        peft_config=lora_config(r=16, alpha=32) if job.shape == "lora" else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _import_library(job: Job) -> tuple[Any, Any, Any]:
    """(trainer class, config class, the rows as the library takes them)."""
    if job.library == "thumbtune":
        from thumbtune import KTOConfig, KTOTrainer

        return KTOTrainer, KTOConfig, job.rows
    import trl
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    return trl.KTOTrainer, trl.KTOConfig, Dataset.from_list(job.rows)


def _drop_missing(settings: dict[str, Any], config: Any) -> dict[str, Any]:
    known = {one.name for one in fields(config)}
    return {name: value for name, value in settings.items() if name in known or name not in _MAY_BE_MISSING}


def _recording(kind: Any) -> Any:
    """The trainer class, noting the loss of each step and the seconds of TRL's reference pass."""

    class Recording(kind):
        precompute_seconds = 0.0

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.__dict__.setdefault("step_losses", []).append(float(loss))
            return loss

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            scored = super()._precompute_ref_logps(*args, **kwargs)
            self.precompute_seconds += time.perf_counter() - started
            return scored

    return Recording


def list_branches(trainer: Any) -> list[Branch]:
    """Prompt and completion of each row as the trainer tokenized them."""
    rows = getattr(trainer.train_dataset, "rows", None)
    if rows is not None:
        return [row[0] for row in rows.branches]
    return [Branch(row["prompt_ids"], row["completion_ids"]) for row in trainer.train_dataset]


def follow_trls_order(trainer: Any) -> None:
    """Have our trainer take rows in TRL's order and pairing."""
    plan = trainer.plan
    trainer.plan = InTrlsOrder(plan.labels, plan.prompt_keys, plan.batch_size, plan.seed, plan.mismatched)


def tokenize(rows: Sequence[Row], model: str) -> list[Branch]:
    """Prompt and completion of each row through the model's chat template, as both libraries do."""
    render = load_tokenizer(model).apply_chat_template
    branches = []
    for row in rows:
        prompt = render(row["prompt"], add_generation_prompt=True, return_dict=False)
        whole = render(row["prompt"] + row["completion"], return_dict=False)
        branches.append(Branch(prompt, whole[len(prompt) :]))
    return branches


def read_plan(trainer: Any, batch_size: int) -> BatchPlan:
    """Which rows meet which: our trainer's plan, or what TRL does."""
    plan = getattr(trainer, "plan", None)
    if plan is not None:
        return plan
    prompts = [tuple(branch.prompt_ids) for branch in list_branches(trainer)]
    return InTrlsOrder(None, prompts, batch_size, seed=0, mismatched=True)


def check_nothing_is_cut(trainer: Any, max_length: int) -> None:
    """Raise where a row, or a prompt with a lent completion, could be longer than `max_length`."""
    branches = list_branches(trainer)
    longest = sum(max(len(branch[part]) for branch in branches) for part in (0, 1))
    if longest > max_length:
        raise SystemExit(f"--max-length {max_length} cuts rows: {longest} tokens may meet")


def read_resident_mb() -> float:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss / 1e6


def keep_freed_memory() -> bool:
    """Use thumbtune's allocator settings in this process, where it has any; False where it has none."""
    try:
        module = importlib.import_module("thumbtune.engine.allocator")
    except ModuleNotFoundError:
        return False
    return bool(module.keep_freed_memory())


def release_memory() -> None:
    """Free what a finished trainer held, back to the system where the C library can."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def save_tiny_model(folder: Path, *, n_vocabulary: int | None = None, hidden: int = 256) -> str:
    """A random llama of two layers with the packaged tokenizer, in a folder that both libraries load from."""
    tokenizer = load_tokenizer(PACKAGED_MODEL)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=n_vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
