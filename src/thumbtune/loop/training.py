"""From a snapshot and the champion to a candidate: one run, one adapter, within its budget.

A candidate goes on from the champion's adapter, and its reference is the champion as it stands. So a generation moves
a bounded step from the one before, and the gate's budget of nats to the original base bounds all of them together.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

from thumbtune.data.formats import Rows, rows_from_dataset
from thumbtune.engine.loading import load_model_and_tokenizer
from thumbtune.errors import TrainingError
from thumbtune.loop.row_files import read_columns
from thumbtune.loop.settings import LoopSettings
from thumbtune.loop.versions import describe_adapter, is_base
from thumbtune.store.models import ModelVersion
from thumbtune.training.adapters import lora_config
from thumbtune.training.config import PreferenceConfig
from thumbtune.training.run import run_training
from thumbtune.training.settings import build_config, default_settings
from thumbtune.training.trainers import TRAINERS


@dataclass(frozen=True, slots=True)
class Candidate:
    """What came of a run."""

    version: ModelVersion | None
    """None where a person stopped it."""
    told: Mapping[str, Any]
    """For the record."""


def build_training_config(settings: LoopSettings, folder: Path, *, seed: int) -> PreferenceConfig:
    """What `[training]` asks for, with the method's defaults. Raises `ConfigError` for what cannot be."""
    asked = {**default_settings(settings.method), **settings.training}
    return build_config(settings.method, {**asked, "seed": seed, "output_dir": str(folder)})


def train_candidate(
    settings: LoopSettings,
    champion: ModelVersion,
    *,
    base: ModelVersion | None = None,
    rows: Path,
    seen_before_us: int | None,
    folder: Path,
    seed: int,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Candidate:
    """Train on a snapshot's rows, from the champion, whose original base is `base`, where that is known.

    Raises `TrainingError` on NaN, over budget, and where the settings' model is not that base.
    """
    from peft import PeftModel

    chosen, counts = choose_rows(rows, settings, seen_before_us)
    model, tokenizer = load_model_and_tokenizer(settings.model)
    if base is not None and base.kind == "base" and not is_base(model, base):
        raise TrainingError(
            f"what is in service stands on {base.version} (from {base.location}), and {settings.model} is another "
            "model: name that one as the model"
        )
    goes_on = champion.kind == "adapter"
    if goes_on:
        model = PeftModel.from_pretrained(model, champion.location, is_trainable=True)
    config = build_training_config(settings, folder, seed=seed)
    trainer = TRAINERS[settings.method](
        model=model,
        args=config,
        train_dataset=chosen,
        processing_class=tokenizer,
        peft_config=None if goes_on else lora_config(r=settings.lora_r, targets=settings.lora_targets),
    )
    trainer.add_callback(_Budget(settings.max_minutes, settings.max_memory_gib))

    def report(stage: str, done: int, total: int, latest: Mapping[str, float]) -> None:
        if on_progress is not None:
            on_progress(done, total, "reference pass" if stage == "reference" else "")

    result = run_training(trainer, on_progress=report)
    if not result.finished:
        return Candidate(None, counts)
    version = describe_adapter(folder, champion.version)
    told = {
        **counts,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "peak_memory_mb": round(result.peak_rss_mb),
        "alarms": result.alarms,
    }
    return Candidate(replace(version, metrics={"training": told}), told)


def choose_rows(
    path: Path, settings: LoopSettings, seen_before_us: int | None
) -> tuple[Rows, dict[str, int]]:
    """The snapshot's new rows, and so many of its old ones for each; which ones is drawn by their completions' ids."""
    table = list(read_columns(path))
    drawn = sorted(table, key=lambda row: hashlib.sha256(row["completion_id"].encode()).hexdigest())
    new = [row for row in drawn if seen_before_us is None or row["created_us"] >= seen_before_us]
    old = [row for row in drawn if seen_before_us is not None and row["created_us"] < seen_before_us]
    new_kept = new[: settings.most_rows]
    n_old = len(old)
    if settings.old_rows_for_a_new_one is not None and new_kept:
        n_old = min(n_old, round(settings.old_rows_for_a_new_one * len(new_kept)))
    if settings.most_rows is not None:
        n_old = min(n_old, settings.most_rows - len(new_kept))
    counts = {
        "new_rows": len(new_kept),
        "new_rows_left_out": len(new) - len(new_kept),
        "old_rows": n_old,
        "old_rows_left_out": len(old) - n_old,
    }
    return rows_from_dataset([*new_kept, *old[:n_old]], source=str(path)), counts


class _Budget(TrainerCallback):
    """Ends a run that takes too long or too much. Raises `TrainingError`."""

    def __init__(self, max_minutes: float | None, max_memory_gib: float | None) -> None:
        self._started = time.monotonic()
        self._max_minutes, self._max_memory_gib = max_minutes, max_memory_gib

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        minutes = (time.monotonic() - self._started) / 60
        gib = psutil.Process().memory_info().rss / 2**30
        step = f"at step {state.global_step} of {state.max_steps}"
        if self._max_minutes is not None and minutes > self._max_minutes:
            raise TrainingError(
                f"training took over {self._max_minutes:g} minutes {step}: raise max_minutes, or fewer rows"
            )
        if self._max_memory_gib is not None and gib > self._max_memory_gib:
            raise TrainingError(
                f"training took {gib:.1f} GiB {step}: raise max_memory_gib, or lower the token budget"
            )
