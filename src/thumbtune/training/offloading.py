"""Activations wait in the CPU's memory from the forward to the backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_BYTES = 1024
"""Below this a copy costs more than it frees."""


@contextmanager
def offload_activations(model: nn.Module) -> Iterator[None]:
    """What autograd saves inside the block leaves the device, and comes back as the backward asks for it.

    Weights stay, and so does what is on the CPU already. Values are unchanged, so gradients are too.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def put_away(tensor: Tensor) -> Any:
        is_small = tensor.numel() * tensor.element_size() < SMALLEST_BYTES
        if is_small or not is_on_the_device(tensor) or tensor.untyped_storage().data_ptr() in weights:
            return tensor
        return tensor.device, copy_to_cpu(tensor)

    def bring_back(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        device, copy = kept
        moved: Tensor = copy.to(device, non_blocking=True)
        return moved

    with torch.autograd.graph.saved_tensors_hooks(put_away, bring_back):
        yield


def is_on_the_device(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, from where it comes back fast."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
