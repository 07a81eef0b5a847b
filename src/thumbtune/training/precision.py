"""Weights that are trained are float32, whatever precision the model came in.

`from_pretrained` takes a checkpoint's own precision, often bf16. There a weight of 0.02 moves in steps of 1.2e-4, so
AdamW's updates at usual learning rates are rounded away, without a word. bf16 and fp16 belong to the computing
(`bf16=True`), not to the weights. What is not trained may stay as it is where it can: the layers of an adapter convert
what they are given, others do not, and outside autocast they need one precision from end to end.

DeepSpeed is left alone: it keeps float32 weights of its own, and may have shared the model's out already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LOW_PRECISIONS = (torch.bfloat16, torch.float16)


def train_in_float32(model: nn.Module, args: Any) -> bool:
    """Make the weights that are trained float32, told as an adjustment; whether the whole model had to become it."""
    trained = [w for w in model.parameters() if w.requires_grad and w.dtype in LOW_PRECISIONS]
    if not trained or args.deepspeed_plugin is not None:
        return False
    found = " and ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in trained}))
    converting = {id(weight) for weight in _list_converting(model)}
    if all(id(weight) in converting for weight in trained):
        raise_to_float32(trained)
        args.adjustments.append(
            f"the adapter's weights were {found}, where small steps are rounded away: trained in float32. Load the "
            "adapter with autocast_adapter_dtype=True to have them so"
        )
        return False
    raise_to_float32(model.parameters())
    args.adjustments.append(
        f"weights to be trained were {found}, where small steps are rounded away: the model became float32. Load it "
        "with dtype=torch.float32 to have it so; bf16=True still computes in bfloat16, and with peft_config=LoraConfig("
        f"...) the frozen weights stay {found}"
    )
    return True


def raise_to_float32(weights: Iterable[Tensor]) -> None:
    """Widen bf16 and fp16 weights where they stand: who is tied to whom, and who is trained, stays."""
    for weight in weights:
        if weight.dtype in LOW_PRECISIONS:
            weight.data = weight.data.float()


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """A model's bf16 and fp16 weights are float32 inside the block, and its own again afterwards."""
    own = [(weight, weight.data) for weight in model.parameters()]
    raise_to_float32(model.parameters())
    try:
        yield
    finally:
        for weight, data in own:
            weight.data = data


def _list_converting(model: nn.Module) -> Iterator[Tensor]:
    """Weights of adapters inside layers that convert their inputs."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                yield from getattr(module, name).parameters()
