"""One arm of a comparison: a method trained on some rows from the shared base, and what it says on held-out prompts.

Arms are kept by content: a folder's name is a digest of base, rows, method, settings, seed and adapter, and what is
said on some prompts is a file in it. So whatever asks for an arm again finds it, whichever table it was trained for,
and an interrupted one goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from thumbtune.data.formats import Rows
from thumbtune.engine.logprobs import Branch, score_branches
from thumbtune.errors import ThumbtuneError
from thumbtune.evaluation.generate import Sampled
from thumbtune.evaluation.judge import Sampling, sample_with_cache, score_samples
from thumbtune.evaluation.work import Clock
from thumbtune.records import Text, text_key
from thumbtune.training.adapters import lora_config
from thumbtune.training.manifest import digest_code, write_json
from thumbtune.training.run import RunResult, run_training
from thumbtune.training.settings import build_config
from thumbtune.training.trainers import TRAINERS

OnStage = Callable[[str], Any]
"""Called with a stage's name; gives a context manager that yields a progress callback (done, total, note)."""


class ArmError(Exception):
    """An arm cannot be trained or told anything of; the others go on."""


@contextmanager
def refusing_an_arm() -> Iterator[None]:
    """Errors of training as `ArmError`."""
    try:
        yield
    except ThumbtuneError as error:
        raise ArmError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Samples:
    """What one policy says on the held-out prompts; outer lists by prompt."""

    samples: list[list[Sampled]]
    base_log_probs: list[list[float]]
    """Of the policy's own samples, under the base."""
    vote_log_ratios: list[list[float]]
    """log ratio of the base's samples under the policy; zeros for the base."""


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """One line of a comparison, before training."""

    key: str
    name: str
    method: str
    rows: Rows
    settings: Mapping[str, Any] = field(default_factory=dict)
    bought: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """Where arms are trained and sampled: one base, one set of prompts."""

    model: Any
    tokenizer: Any
    identity: str
    """Digest of the base's weights and chat template."""
    prompts: Sequence[Text]
    sampling: Sampling
    lora: Mapping[str, Any]
    folder: Path
    on_stage: OnStage
    clock: Clock | None = None
    voted: Sequence[Branch] = ()
    """Completions with a vote, one for each prompt: then nothing is sampled, and an arm is known by its log ratios."""

    def sample_base(self) -> Samples:
        """The base itself."""
        if self.voted:
            log_probs = [[value] for value in self._score_voted(self.model)]
            return Samples([[] for _ in self.voted], log_probs, [[0.0] for _ in self.voted])
        with self.on_stage("Base: sampling") as progress:
            samples = sample_with_cache(
                self.model,
                self.tokenizer,
                self.prompts,
                self.sampling,
                self.folder / "base" / f"samples-{self._digest_questions()[:12]}.json",
                self.identity,
                progress,
            )
        log_probs = score_samples(self.model, self.tokenizer, self.prompts, samples)
        return Samples(samples, log_probs, [[0.0] * len(row) for row in samples])

    def run(self, plan: ArmPlan, seed: int, base: Samples, label: str = "") -> tuple[RunResult, Samples]:
        """Train an arm and sample it, or find it done. Raises `KeyboardInterrupt` where training was stopped."""
        folder = self.folder / "arms" / self.name_arm(plan, seed)
        held = _read_outcome(folder, self._outcome_file)
        if held is not None:
            return held
        if self.clock is not None:
            self.clock.begin()
        label = label or f"{plan.name}, seed {seed}"
        settings = {**plan.settings, "seed": seed, "output_dir": str(folder)}
        with _adapter_on(self.model, self.tokenizer, plan, settings, self.lora) as trainer:
            with self.on_stage(f"{label}: training") as progress:
                run = run_training(trainer, on_progress=_report_to(progress))
            if not run.finished:
                raise KeyboardInterrupt
            if trainer.state.global_step == 0:  # it was finished before: take its weights
                _load_adapter(trainer.model, folder)
            with self.on_stage(f"{label}: sampling") as progress:
                samples = self._sample(trainer.model, base, run, folder, progress)
        write_json(asdict(samples), folder / self._outcome_file)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if self.clock is not None:
            self.clock.end(run.data["rows"], self.n_completions)
        return run, samples

    def name_arm(self, plan: ArmPlan, seed: int) -> str:
        """The arm's folder: its method and seed, and the digest of all that makes it."""
        asked = [
            self.identity,
            plan.method,
            plan.rows.digest,
            sorted((name, str(value)) for name, value in plan.settings.items()),
            seed,
            sorted((name, str(value)) for name, value in self.lora.items()),
            _digest_training(),
        ]
        return f"{plan.method}-seed{seed}-{_digest(asked)[:16]}"

    @property
    def n_completions(self) -> int:
        """Completions that are sampled of each arm."""
        return 0 if self.voted else len(self.prompts) * self.sampling.samples_per_prompt

    def is_done(self, plan: ArmPlan, seed: int) -> bool:
        """Whether the arm needs no more work."""
        return (self.folder / "arms" / self.name_arm(plan, seed) / self._outcome_file).is_file()

    @property
    def _outcome_file(self) -> str:
        return f"outcome-{self._digest_questions()[:12]}.json"

    def _digest_questions(self) -> str:
        if self.voted:
            return _digest([list(map(list, branch)) for branch in self.voted])
        return _digest([[text_key(prompt) for prompt in self.prompts], asdict(self.sampling)])

    def _score_voted(self, model: Any) -> list[float]:
        pad_token_id = self.tokenizer.pad_token_id
        return score_branches(model, self.voted, pad_token_id=pad_token_id).tolist()

    def _sample(self, model: Any, base: Samples, run: RunResult, folder: Path, progress: Any) -> Samples:
        if self.voted:
            scores = zip(self._score_voted(model), base.base_log_probs, strict=True)
            nothing: list[list[Any]] = [[] for _ in self.voted]
            return Samples(nothing, nothing, [[ours - theirs] for ours, (theirs,) in scores])
        samples = sample_with_cache(
            model,
            self.tokenizer,
            self.prompts,
            self.sampling,
            folder / f"samples-{self._digest_questions()[:12]}.json",
            run.identity,
            progress,
        )
        held_log_probs = score_samples(model, self.tokenizer, self.prompts, base.samples)
        with model.disable_adapter():
            base_log_probs = score_samples(model, self.tokenizer, self.prompts, samples)
        ratios = [
            (torch.tensor(ours) - torch.tensor(theirs)).tolist()
            for ours, theirs in zip(held_log_probs, base.base_log_probs, strict=True)
        ]
        return Samples(samples, base_log_probs, ratios)


@functools.cache
def _digest_training() -> str:
    """Of the code that makes an arm from its rows, defaults of settings included."""
    return digest_code("data", "engine", "preference", "training")


def _read_outcome(folder: Path, name: str) -> tuple[RunResult, Samples] | None:
    if not (folder / name).is_file():
        return None
    content = json.loads((folder / name).read_text())
    run = RunResult(**json.loads((folder / "run.json").read_text()) | {"folder": folder})
    samples = [
        [Sampled(**one | {"token_ids": tuple(one["token_ids"])}) for one in row] for row in content["samples"]
    ]
    return run, Samples(samples, content["base_log_probs"], content["vote_log_ratios"])


@contextmanager
def _adapter_on(
    model: Any, tokenizer: Any, plan: ArmPlan, settings: Mapping[str, Any], lora: Mapping[str, Any]
) -> Iterator[Any]:
    """A trainer whose fresh adapter sits on the shared base, taken off again afterwards."""
    try:
        trainer = TRAINERS[plan.method](
            model=model,
            args=build_config(plan.method, settings),
            train_dataset=plan.rows,
            processing_class=tokenizer,
            peft_config=lora_config(**lora),
        )
        yield trainer
    finally:  # also where the trainer was refused with the adapter already on
        _take_adapter_off(model)
        model.requires_grad_(True)


def _take_adapter_off(model: Any) -> None:
    """Put the base's own layers back in their places."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _load_adapter(model: Any, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def _report_to(progress: Any) -> Callable[[str, int, int, Mapping[str, float]], None]:
    def show(stage: str, done: int, total: int, latest: Mapping[str, float]) -> None:
        loss = f"loss {latest['loss']:.3f}" if "loss" in latest else ""
        progress(done, total, "reference pass" if stage == "reference" else loss)

    return show


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
