"""The adapter that thumbtune trains unless told otherwise."""

from __future__ import annotations

from typing import Any

from thumbtune.errors import ConfigError


def lora_config(*, r: int = 16, alpha: int | None = None, targets: str = "all-linear") -> Any:
    """A LoRA config; `alpha` is twice `r` unless given. `targets`: "all-linear" or module names with commas."""
    from peft import LoraConfig

    if r < 1:
        raise ConfigError(f"LoRA rank {r}: 1 at least, 16 is usual")
    return LoraConfig(
        r=r,
        lora_alpha=alpha if alpha is not None else 2 * r,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        task_type="CAUSAL_LM",
    )
