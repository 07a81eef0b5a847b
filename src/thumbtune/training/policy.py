"""The policy as training needs it: loaded by name, with its tokenizer, an adapter on it, and dropout off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from thumbtune.engine.loading import load_model, load_tokenizer
from thumbtune.errors import ConfigError
from thumbtune.training.config import PreferenceConfig


def resolve_policy(model: Any, tokenizer: Any, args: PreferenceConfig) -> tuple[str, nn.Module, Any]:
    """(name, model, tokenizer) of a model given by name, folder or object; the tokenizer has a padding token."""
    init_kwargs = args.model_init_kwargs or {}
    if isinstance(init_kwargs, str):
        init_kwargs = json.loads(init_kwargs)
    if isinstance(model, (str, Path)):
        name = str(model)
        model = load_model(name, **init_kwargs)
    else:
        if init_kwargs:
            raise ConfigError("model_init_kwargs goes with a model given by name; this one is loaded already")
        name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return name, model, tokenizer


def add_adapter(model: nn.Module, peft_config: Any) -> tuple[nn.Module, bool]:
    """The model with a new adapter on it, and whether that adapter changes nothing yet."""
    from peft import PeftModel, PromptLearningConfig, get_peft_model

    if peft_config is None:
        if isinstance(model, PeftModel):
            if any(isinstance(config, PromptLearningConfig) for config in model.peft_config.values()):
                raise ConfigError("prompt-learning adapters are not supported: use LoRA")
            if not any(parameter.requires_grad for parameter in model.parameters()):
                model.set_adapter(model.active_adapter)  # adapters load frozen
        return model, False
    if isinstance(peft_config, PromptLearningConfig):
        raise ConfigError(
            f"{type(peft_config).__name__} is prompt learning, which is not supported: use LoraConfig"
        )
    if isinstance(model, PeftModel):
        raise ConfigError(
            "the model carries an adapter already: leave peft_config out, or merge the adapter first"
        )
    fresh = getattr(peft_config, "init_lora_weights", None) is True
    return get_peft_model(model, peft_config), fresh


def disable_dropout(model: nn.Module) -> None:
    """No dropout anywhere, attention's included, so that log ratios hold no noise."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):  # given to the attention function
            module.attention_dropout = 0.0  # type: ignore[assignment]
