"""What sharded weights (FSDP, DeepSpeed) ask of the trainer. DDP asks nothing: each of its ranks has the whole model.

Written for FSDP 2, which is tested, on processes of one machine without GPUs. DeepSpeed's path is written and not
tested: it was not at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from thumbtune.engine.packed import enable_packing
from thumbtune.engine.paths import LogProbPath, choose_path
from thumbtune.engine.ranks import Ranks
from thumbtune.errors import ConfigError


def agree_on_path(
    model: nn.Module, wanted: Literal["packed", "padded", "auto"], *, pad_token_id: int, ranks: Ranks
) -> LogProbPath:
    """`choose_path` as the main process decides it: where loading spares memory, it alone has the weights to try."""
    path = ranks.decide(lambda: choose_path(model, wanted, pad_token_id=pad_token_id))
    if path.name == "packed" and not ranks.is_main:
        enable_packing(model, tried=True)
    return path


def check_sharding(accelerator: Any, *, is_asked_for: bool, has_reference_model: bool) -> None:
    """Raise `ConfigError` for a way of sharding that cannot serve; let log-probs leave the model in float32."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None and is_asked_for and accelerator.num_processes > 1:
        raise ConfigError(
            "FSDP was asked for, but accelerate shares weights out on GPUs alone: leave it out, and each process "
            "holds the whole model"
        )
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ConfigError(
            "FSDP 1 cannot be had: set fsdp_config={'version': 2}, or fsdp_version: 2 for accelerate launch"
        )
    if has_reference_model and plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "ref_model is held whole by each process, but with cpu_ram_efficient_loading the first alone loads it: "
            "set fsdp_config={'cpu_ram_efficient_loading': False}, or leave ref_model out"
        )
    if plugin.mixed_precision_policy is not None:  # a sum over hundreds of tokens has no place in 8 bits
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def load_sharded_checkpoint(trainer: Any, folder: str) -> None:
    """Weights, optimizer and schedule of a checkpoint into the wrapped model, as transformers does after wrapping."""
    if trainer.is_deepspeed_enabled:
        from peft import PeftModel
        from transformers.integrations.deepspeed import deepspeed_load_checkpoint

        is_adapter = isinstance(trainer.model, PeftModel)
        deepspeed_load_checkpoint(trainer.model_wrapped, folder, load_module_strict=not is_adapter)
    else:
        trainer._load_from_checkpoint(folder, trainer.model_wrapped)
    trainer._load_optimizer_and_scheduler(folder)
    trainer._load_scaler(folder)


@contextlib.contextmanager
def saving_whole(accelerator: Any) -> Iterator[None]:
    """Inside the block FSDP puts the weights together for saving, also where its checkpoints keep the parts."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    from torch.distributed.fsdp import StateDictType

    kind, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = kind
