"""Settings of a training run: transformers' `TrainingArguments` plus the few that preference learning needs.

Each field is documented once, under itself in `help`; `thumbtune train --help-fields` and the docs print that.
Where a setting cannot hold on this machine, the nearest one that can takes its place; `adjustments` says so, once,
and the manifest keeps it.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments

from thumbtune.errors import ConfigError


def setting(default: Any, help: str) -> Any:
    """A field with its documentation."""
    return field(default=default, metadata={"help": help})


@dataclass
class PreferenceConfig(TrainingArguments):
    """What every method shares. Use the config of a method: `thumbtune.training.method_configs`."""

    method: ClassVar[str]
    """Which loss and row format: a key of `thumbtune.training.methods.METHODS`."""

    learning_rate: float = setting(1e-6, "Initial learning rate of AdamW. With LoRA 1e-5 to 2e-4.")
    logging_steps: float = setting(10, "Log every so many optimizer steps.")
    beta: float = setting(
        0.1, "How strongly the policy is held to the reference: implicit reward = beta × log ratio."
    )
    max_length: int | None = setting(
        1024, "Tokens of prompt and completion together; what is longer is cut at the completion's end."
    )
    max_prompt_length: int | None = setting(
        None, "Tokens of the prompt; what is longer is cut on the side that `truncation` names."
    )
    truncation: Literal["keep_end", "keep_start"] = setting(
        "keep_end", "Which part of a prompt that is too long is kept: its end (the question) or its start."
    )
    disable_dropout: bool = setting(True, "Switch dropout off, so that log ratios hold no noise.")
    engine: Literal["auto", "packed", "padded"] = setting(
        "auto",
        "How log-probs are computed: 'packed' puts a microbatch in one row without padding and encodes each prompt "
        "once; 'padded' works for any causal model; 'auto' packs where the model can.",
    )
    max_tokens_per_microbatch: int | None = setting(
        None,
        "Tokens of one forward and backward, an upper bound on memory; None cuts a batch by "
        "per_device_train_batch_size rows. How a batch is cut changes no number.",
    )
    siblings_together: bool = setting(
        False,
        "Deal the rows of one prompt into one batch, where the packed engine encodes it once: faster, but a batch then "
        "holds fewer prompts, and classes as they stand under them.",
    )
    keep_freed_memory: bool = setting(
        True,
        "On a CPU with glibc, keep freed memory for the next step instead of giving it back to the system; it holds "
        "for the whole process, which then does not shrink.",
    )
    model_init_kwargs: dict[str, Any] | str | None = setting(
        None,
        "Keyword arguments for `from_pretrained` where the model is given by name (JSON on the command line); for a "
        "`ref_model` by name too.",
    )
    dataset_num_proc: int | None = setting(
        None, "Kept for compatibility: rows are tokenized in one process, in order."
    )
    stream_window_rows: int = setting(
        8192,
        "Rows of an iterable dataset that are read, shuffled and scored at a time: bounds memory. A multiple of the "
        "batch, else each window ends with a smaller one.",
    )
    activation_offloading: bool = setting(
        False, "Keep activations in the CPU's memory from forward to backward. No effect without a GPU."
    )
    router_aux_loss_coef: float | None = setting(
        None,
        "Weight of a mixture of experts' load-balancing loss, added to the loss of each microbatch; None takes the "
        "model's own, 0 leaves it out.",
    )
    pad_to_multiple_of: int | str | None = setting(
        None, "Pad rows to a multiple of this on the padded path; the packed one has no padding."
    )
    trust_remote_code: bool = setting(
        False, "Refused when true: thumbtune runs no code from a model's repository."
    )

    def __post_init__(self) -> None:
        self.adjustments: list[str] = []
        self._fit_precision()
        self._fit_optimizer()
        self._fit_trackers()
        self._fit_names_of_others()
        self._refuse_impossible()
        if self.train_sampling_strategy != "random":
            self._adjust(
                f"train_sampling_strategy={self.train_sampling_strategy!r}: the batch plan shuffles instead"
            )
        super().__post_init__()

    def _adjust(self, message: str) -> None:
        self.adjustments.append(message)

    def _fit_precision(self) -> None:
        accelerated = torch.cuda.is_available() or (getattr(torch, "xpu", None) and torch.xpu.is_available())
        if self.use_cpu or not (accelerated or torch.backends.mps.is_available()):
            if self.fp16:
                self.fp16 = False
                self._adjust("fp16=True needs a GPU: trained in float32 on this CPU")
            if self.bf16 and not cpu_has_fast_bf16():
                self.bf16 = False
                self._adjust(
                    "bf16=True is slower than float32 on this CPU (no AVX512-BF16 or AMX): trained in float32"
                )
            elif self.bf16 and not self.use_cpu:
                self.use_cpu = True
                self._adjust("bf16=True without a GPU: bf16 autocast on the CPU (use_cpu=True)")

    def _fit_optimizer(self) -> None:
        name = str(getattr(self.optim, "value", self.optim))
        if "8bit" not in name and "paged" not in name:
            return
        if find_spec("bitsandbytes") is None:
            self.optim = "adamw_torch"
            self._adjust(f"optim='{name}' needs bitsandbytes, which is not installed: plain AdamW")
        elif "paged" in name and not torch.cuda.is_available():
            self.optim = name.removeprefix("paged_")
            self._adjust(f"optim='{name}' pages between GPU and CPU memory: '{self.optim}' without a GPU")

    def _fit_trackers(self) -> None:
        wanted = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        if wanted in (["all"], ["none"]):
            return
        missing = [
            name for name in wanted if name in _TRACKER_MODULES and find_spec(_TRACKER_MODULES[name]) is None
        ]
        for name in missing:
            self._adjust(
                f"report_to='{name}' needs the package '{_TRACKER_MODULES[name]}': not reported there"
            )
        self.report_to = [name for name in wanted if name not in missing] or "none"
        signed_in = any(os.environ.get(key) for key in ("WANDB_MODE", "WANDB_API_KEY"))
        if "wandb" in self.report_to and not signed_in and not os.path.exists(os.path.expanduser("~/.netrc")):
            os.environ["WANDB_MODE"] = "offline"
            self._adjust("report_to='wandb' without an API key: logged offline (WANDB_MODE=offline)")

    def _fit_names_of_others(self) -> None:
        """Settings that other trainers have under another name, or that ask for what is always so."""
        self.model_init_kwargs = _read_table("model_init_kwargs", self.model_init_kwargs)
        self.pad_to_multiple_of = _read_multiple(self.pad_to_multiple_of)
        if self.auto_find_batch_size:
            self.auto_find_batch_size = False
            self._adjust(
                "auto_find_batch_size=True restarts a run with smaller batches: off. "
                "max_tokens_per_microbatch bounds memory, and changes no number"
            )
        if self.activation_offloading and (self.use_cpu or not torch.cuda.is_available()):
            self.activation_offloading = False
            self._adjust("activation_offloading=True has no effect without a GPU: off")
        if self.dataset_num_proc is not None:
            self._adjust(
                f"dataset_num_proc={self.dataset_num_proc}: rows are tokenized in one process, in order"
            )

    def _refuse_impossible(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"beta={self.beta}: it has to be above 0, 0.1 is usual")
        if self.trust_remote_code:
            raise ConfigError(
                "trust_remote_code=True is refused: thumbtune runs no code from a model's repository"
            )
        if self.label_smoothing_factor:
            raise ConfigError(
                f"label_smoothing_factor={self.label_smoothing_factor} smooths transformers' own loss, which is not "
                f"used: {self._name_smoothing()}"
            )
        for name in ("max_length", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: it counts tokens, so 1 at least, or None for no limit")
        if self.max_length and self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for a completion "
                f"in max_length={self.max_length}: lower the one or raise the other"
            )
        if self.engine not in ("auto", "packed", "padded"):
            raise ConfigError(f"engine={self.engine!r}: 'auto', 'packed' or 'padded'")
        budget = self.max_tokens_per_microbatch
        if budget is not None and budget < 1:
            raise ConfigError(f"max_tokens_per_microbatch={budget}: it counts tokens, so 1 at least")
        if self.truncation not in ("keep_end", "keep_start"):
            raise ConfigError(f"truncation={self.truncation!r}: 'keep_end' or 'keep_start'")
        cap = getattr(self, "max_pairs_per_prompt", None)
        if cap is not None and cap < 1:
            raise ConfigError(f"max_pairs_per_prompt={cap}: 1 at least, or None for no cap")
        if self.stream_window_rows < 1:
            raise ConfigError(f"stream_window_rows={self.stream_window_rows}: 1 at least")
        coefficient = self.router_aux_loss_coef
        if coefficient is not None and not 0 <= coefficient < math.inf:
            raise ConfigError(f"router_aux_loss_coef={coefficient}: 0 or more, or None for the model's own")

    def _name_smoothing(self) -> str:
        """Which field of this method does what `label_smoothing_factor` sounds like."""
        if hasattr(self, "label_smoothing"):
            return "set label_smoothing"
        if hasattr(self, "desirable_flip_rate"):
            return "set desirable_flip_rate and undesirable_flip_rate"
        return f"{self.method} smooths no labels, so leave it out"


@dataclass
class ReferenceConfig(PreferenceConfig):
    """What methods share that measure against a reference. Those that do without have none of these fields."""

    precompute_ref_log_probs: bool = setting(
        True, "Kept for compatibility: a reference that stands still is always scored once, before training."
    )
    reference_cache: str | None = setting(
        None, "Folder that keeps reference log-probs between runs; None takes the user's cache folder."
    )
    reference_max_tokens: int = setting(
        4096, "Tokens of one forward of the reference pass: bounds its memory."
    )
    sync_ref_model: bool = setting(
        False,
        "Let the reference move (TR-DPO, arXiv:2404.09656): every `ref_model_sync_steps` steps it becomes "
        "α × policy + (1 − α) × reference, weight by weight; with LoRA adapter tensor by adapter tensor. The reference "
        "is then scored batch by batch.",
    )
    ref_model_mixup_alpha: float = setting(0.6, "α of `sync_ref_model`, above 0 and up to 1.")
    ref_model_sync_steps: int = setting(512, "Optimizer steps from one sync of `sync_ref_model` to the next.")
    precompute_ref_batch_size: int | None = setting(
        None, "Kept for compatibility: so many rows of max_length tokens become `reference_max_tokens`."
    )

    def _fit_names_of_others(self) -> None:
        super()._fit_names_of_others()
        if self.precompute_ref_batch_size is not None:
            if self.precompute_ref_batch_size < 1:
                raise ConfigError(f"precompute_ref_batch_size={self.precompute_ref_batch_size}: 1 at least")
            self.reference_max_tokens = self.precompute_ref_batch_size * (self.max_length or 1024)
            self._adjust(
                f"precompute_ref_batch_size={self.precompute_ref_batch_size}: "
                f"reference_max_tokens={self.reference_max_tokens}"
            )
        if not self.precompute_ref_log_probs and not self.sync_ref_model:
            self._adjust(
                "precompute_ref_log_probs=False: the reference is scored once, before training, all the same"
            )

    def _refuse_impossible(self) -> None:
        super()._refuse_impossible()
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise ConfigError(
                f"ref_model_mixup_alpha={self.ref_model_mixup_alpha}: above 0 and up to 1, 0.6 is usual"
            )
        if self.ref_model_sync_steps < 1:
            raise ConfigError(f"ref_model_sync_steps={self.ref_model_sync_steps}: 1 at least")
        if self.reference_max_tokens < 1:
            raise ConfigError(
                f"reference_max_tokens={self.reference_max_tokens}: it counts tokens, so 1 at least"
            )
        for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            default = self.__dataclass_fields__[name].default
            if not self.sync_ref_model and getattr(self, name) != default:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect without sync_ref_model=True: set that, or leave it out"
                )


def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    capabilities = torch.backends.cpu.get_cpu_capability() if torch.backends.cpu else ""
    if "AVX512" not in capabilities and "AMX" not in capabilities:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _read_table(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """A setting that is a table, given as one or as JSON."""
    if not isinstance(value, str):
        return value
    try:
        table = json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigError(f'{name}={value!r} is no JSON ({error}): write it as {{"name": value}}') from None
    if not isinstance(table, dict):
        raise ConfigError(f'{name}={value!r} is no table: write it as {{"name": value}}')
    return table


def _read_multiple(value: int | str | None) -> int | None:
    """A number of tokens; TRL's "auto" is none, since it is a number on Neuron alone."""
    if value in (None, "auto", "none", "null"):
        return None
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ConfigError(f"pad_to_multiple_of={value!r}: a number of tokens, 1 at least, or None")
    return number


_TRACKER_MODULES = {
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "comet_ml": "comet_ml",
    "clearml": "clearml",
    "swanlab": "swanlab",
}
