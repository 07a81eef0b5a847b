"""Saving: checkpoints that are whole or not there, with what transformers does not know of, and the model card."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput

from thumbtune.engine.ranks import Ranks, local_part
from thumbtune.errors import ConfigError, TrainingError
from thumbtune.training.checkpoints import rotate_checkpoints, staged_checkpoint
from thumbtune.training.model_card import finish_card, list_tags
from thumbtune.training.ranks import saving_whole

OWN_STATE_FILE = "thumbtune.json"


class SavesWhole(Trainer):
    """The part of the trainer that writes to the disk."""

    args: Any
    config: Any
    dataset_name: str | None
    model: Any
    planned_steps: Any
    ranks: Ranks
    reference: Any
    _is_moving: bool
    _is_sharded: bool
    _moving_point: Any
    _score_references: Any

    _staging: Path | None = None
    _n_tokens: int = 0
    """Tokens that this rank has trained, padding not counted."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter or the model, unless a weight is not a number."""
        error = None
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(local_part(parameter)).all():
                error = TrainingError(
                    f"weights of {name} are not numbers after step {self.state.global_step}: nothing was saved. "
                    "Continue from an earlier checkpoint with a lower learning_rate"
                )
                break
        self.ranks.fail_together(error)
        with contextlib.nullcontext() if _internal_call else saving_whole(self.accelerator):
            super().save_model(output_dir, _internal_call)
        if not _internal_call and self._moving_point is not None and self.args.should_save:
            self._write_state(Path(output_dir or self.args.output_dir), self._n_tokens)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """transformers' card with thumbtune's tags, and how the model was trained. Takes transformers' arguments."""
        if not self.is_world_process_zero():
            return
        tags = kwargs.get("tags") or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        kwargs["tags"] = list(dict.fromkeys([*tags, *list_tags(self.config.method)]))
        if kwargs.get("dataset") is None and self.dataset_name is not None:
            kwargs |= {
                "dataset": self.dataset_name,
                "dataset_tags": kwargs.get("dataset_tags") or self.dataset_name,
            }
        super().create_model_card(*args, **kwargs)
        finish_card(
            Path(self.args.output_dir) / "README.md",
            config=self.config,
            tags=kwargs["tags"],
            adapted=hasattr(self.model, "peft_config"),
            manifest=getattr(self, "manifest", None),
        )

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, name = Path(super()._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        n_tokens = sum(self.ranks.gather(self._n_tokens))
        with staged_checkpoint(folder, name, ranks=self.ranks) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
                self._name_best_checkpoint(folder, name)
                self._save_own_state(self._staging / name, n_tokens)
            finally:
                self._staging = None
        if self.args.should_save and self.args.save_total_limit:
            best = self.state.best_model_checkpoint
            protected = {name, Path(best).name} if best else {name}
            rotate_checkpoints(folder, keep=self.args.save_total_limit, protected=protected)

    def _name_best_checkpoint(self, folder: Path, name: str) -> None:
        """Let the saved state name the best checkpoint where it will stand, not where it was staged."""
        assert self._staging is not None
        best = f"checkpoint-{self.state.best_global_step}"
        is_saved = best == name or (folder / best).is_dir()
        if not is_saved:  # an earlier best stays
            return
        self.state.best_model_checkpoint = str(folder / best)
        path = self._staging / name / "trainer_state.json"
        if self.args.should_save and path.is_file():
            state = json.loads(path.read_text())
            state["best_model_checkpoint"] = self.state.best_model_checkpoint
            path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")

    def load_trained(self, folder: str | Path) -> None:
        """Take the weights that a run with these settings saved, to be evaluated against the reference of before it.

        Raises `ConfigError` where reference or weights are more than the folder holds.
        """
        if self._is_moving or self._is_sharded:
            why = "its reference moved along with it" if self._is_moving else "the weights are sharded"
            raise ConfigError(
                f"the run in {folder} is finished, and cannot be taken up again to be evaluated: {why}. Give its "
                "held-out rows when it is trained"
            )
        self._score_references()
        self._load_from_checkpoint(str(folder))

    def take_up_finished(self, checkpoint: Path) -> TrainOutput | None:
        """The weights and the record of a run that was killed behind its last step; None where steps are left.

        transformers would take one step more than `max_steps` there.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self._is_sharded or state.global_step < self.planned_steps:
            return None
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        return TrainOutput(state.global_step, 0.0, {})

    def _save_own_state(self, checkpoint: Path, n_tokens: int) -> None:
        if not self.args.should_save:
            return
        self._write_state(checkpoint, n_tokens)
        if self._is_moving:
            self.reference.save(checkpoint)

    def _write_state(self, folder: Path, n_tokens: int) -> None:
        point = None if self._moving_point is None else self._moving_point.state()
        state = {"num_tokens": n_tokens, "reference_point": point}
        (folder / OWN_STATE_FILE).write_text(json.dumps(state) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoint = Path(resume_from_checkpoint)
        path = checkpoint / OWN_STATE_FILE
        if path.is_file():
            state = json.loads(path.read_text())
            self._n_tokens = int(state["num_tokens"]) if self.ranks.is_main else 0
            if self._moving_point is not None:
                self._moving_point.restore(state.get("reference_point"))
        if self._is_moving:
            self.reference.load(checkpoint)
