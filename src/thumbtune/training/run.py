"""One training run in one folder: start it, continue it, or find it finished.

A run folder holds `manifest.json` (written before step 1), checkpoints, `metrics.jsonl` (a line per log), the adapter
or the model, and `run.json` once it is finished. Called again with the same rows, model and settings, a finished run
is read, an interrupted one goes on from its last whole checkpoint. A folder with another run in it is refused.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from thumbtune.errors import ConfigError
from thumbtune.training.checkpoints import last_checkpoint
from thumbtune.training.manifest import write_json
from thumbtune.training.peak_memory import PeakMemory
from thumbtune.training.trainer import PreferenceTrainer

OnProgress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with (stage, done, total, latest metrics); stages are "reference" (branches) and "train" (steps)."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run."""

    folder: Path
    identity: str
    """Digest of the rows, model, plan and settings: equal for runs that must give the same weights."""
    finished: bool
    """False where it was interrupted; call again to go on."""
    steps: int
    seconds: float
    """Reference pass and training, all calls together."""
    peak_rss_mb: float
    """The process's peak memory while it ran, model included; of several processes the first one's."""
    data: Mapping[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    """A record per log: step, loss, z0, rewards, margins, AUC …"""
    alarms: list[str] = field(default_factory=list)
    adjustments: list[str] = field(default_factory=list)


def run_training(trainer: PreferenceTrainer, *, on_progress: OnProgress | None = None) -> RunResult:
    """Train, or go on training, in the trainer's `output_dir`, and save the result there.

    Raises `ConfigError` where the folder holds another run.
    """
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
    folder = Path(trainer.args.output_dir)
    manifest = trainer.build_manifest()
    ranks = trainer.ranks
    finished = ranks.decide(lambda: find_run(folder, manifest["identity"]))
    if finished is not None:
        return finished
    checkpoint = ranks.decide(lambda: last_checkpoint(folder))
    spent_before = ranks.decide(lambda: _seconds_spent(folder)) if checkpoint else 0.0
    if on_progress is not None:
        trainer.on_reference_progress = lambda done, total: on_progress("reference", done, total, {})
        if ranks.is_main:
            trainer.add_callback(_ReportProgress(on_progress))
    started = time.monotonic()
    with PeakMemory() as memory:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    result = RunResult(
        folder=folder,
        identity=manifest["identity"],
        finished=not trainer.interrupted,
        steps=trainer.state.global_step,
        seconds=spent_before + time.monotonic() - started,
        peak_rss_mb=memory.peak_mb,
        data=manifest["data"] | {"plan": manifest["plan"]},
        curve=[dict(entry) for entry in trainer.state.log_history],
        alarms=trainer.alarms,
        adjustments=list(trainer.args.adjustments),
    )
    if result.finished:
        trainer.save_model(str(folder))
    return ranks.decide(lambda: _write_result(result))


def evaluate_run(trainer: PreferenceTrainer, result: RunResult) -> dict[str, float]:
    """The trainer's held-out rows with the weights that a run ended with, in this call or in an earlier one.

    Raises `ConfigError` where an earlier one's cannot be taken up again.
    """
    if trainer.state.global_step != result.steps:
        trainer.load_trained(result.folder)
    return trainer.evaluate()


def find_run(folder: Path, identity: str) -> RunResult | None:
    """The finished run with this identity in a folder; None if it is new or may be continued.

    Raises `ConfigError` where the folder holds another run.
    """
    manifest_path, result_path = folder / "manifest.json", folder / "run.json"
    if not manifest_path.is_file():
        return None
    held = json.loads(manifest_path.read_text())
    if held.get("identity") != identity:
        raise ConfigError(
            f"{folder} holds another run ({held.get('method', 'unknown')}, started {held['run']['started_at']}), with "
            "other rows, model or settings: name another --out, or add --overwrite to start anew here"
        )
    if not result_path.is_file():
        return None
    content = json.loads(result_path.read_text())
    return RunResult(**content | {"folder": folder}) if content["finished"] else None


def remove_run(folder: Path) -> None:
    """Delete what runs leave in a folder, and nothing else."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    for name in ("manifest.json", "run.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)


def _seconds_spent(folder: Path) -> float:
    path = folder / "run.json"
    return json.loads(path.read_text())["seconds"] if path.is_file() else 0.0


def _write_result(result: RunResult) -> RunResult:
    lines = [json.dumps(entry, sort_keys=True) for entry in result.curve]
    (result.folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    write_json(asdict(result), result.folder / "run.json")
    return result


class _ReportProgress(TrainerCallback):
    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress = on_progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        latest = state.log_history[-1] if state.log_history else {}
        self.on_progress("train", state.global_step, state.max_steps, latest)
