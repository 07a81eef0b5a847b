"""The policy as training needs it: loaded by name, with its tokenizer, an adapter on it, and dropout off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thumbtune.engine.loading import load_model, load_tokenizer
from thumbtune.errors import ConfigError
from thumbtune.training.config import PreferenceConfig
from thumbtune.training.precision import raise_to_float32


def resolve_policy(
    model: Any, tokenizer: Any, args: PreferenceConfig, quantization_config: Any = None
) -> tuple[str, nn.Module, Any]:
    """(name, model, tokenizer) of a model given by name, folder or object; the tokenizer has a padding token."""
    init_kwargs = name_init_kwargs(args, quantization_config)
    if isinstance(model, (str, Path)):
        name = str(model)
        model = load_model(name, **init_kwargs)
    else:
        if init_kwargs:
            given = "model_init_kwargs" if args.model_init_kwargs else "quantization_config"
            raise ConfigError(f"{given} goes with a model given by name; this one is loaded already")
        name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return name, model, tokenizer


def name_init_kwargs(args: PreferenceConfig, quantization_config: Any = None) -> dict[str, Any]:
    """What `from_pretrained` is given for a model by name."""
    init_kwargs = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    if quantization_config is not None:
        if "quantization_config" in init_kwargs:
            raise ConfigError(
                "quantization_config is given twice, to the trainer and in model_init_kwargs: leave one out"
            )
        init_kwargs["quantization_config"] = quantization_config
    return init_kwargs


@dataclass(frozen=True, slots=True)
class Loading:
    """How the policy came to be, so that another model computes alike: rounded in the same way, it starts even."""

    init_kwargs: Mapping[str, Any]
    """What `from_pretrained` was given; of a policy that came as an object, its precision."""
    became_float32: bool

    @classmethod
    def of(
        cls, given: nn.Module | None, args: PreferenceConfig, quantization_config: Any, became_float32: bool
    ) -> Loading:
        """Of a policy that was loaded by its name, or `given` as a model."""
        if given is None:
            return cls(name_init_kwargs(args, quantization_config), became_float32)
        return cls({"dtype": getattr(given, "dtype", torch.float32)}, became_float32)

    def load(self, name: str | Path) -> Any:
        """The model of a name, as the policy would be if it had that name."""
        model = load_model(name, **self.init_kwargs)
        keep_four_bits_trainable(model)
        if self.became_float32:
            raise_to_float32(model.parameters())
        return model


def refuse_quantized_weights(model: Any) -> None:
    """Raise `ConfigError` where weights of 4 or 8 bits would have to be trained themselves."""
    if getattr(model, "is_quantized", False) and not hasattr(model, "peft_config"):
        raise ConfigError(
            "quantized weights cannot be trained, only an adapter on them: give peft_config=LoraConfig(...), or load "
            "the model without quantization_config"
        )


def keep_four_bits_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit layers in the layout that has a gradient.

    On a CPU with AVX512-BF16 they pack their weights for inference in the first forward in eval mode, such as the
    reference pass, and then compute without a gradient for ever. Raises `ConfigError` where that has happened.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        module.support_avx512bf16_for_cpu = False
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ConfigError(
                f"the 4-bit weights of {name} were packed for inference on this CPU, where they have no gradient: "
                "load the model anew and give it to the trainer before it generates"
            )


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
