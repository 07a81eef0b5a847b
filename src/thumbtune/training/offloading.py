"""Activations wait in the CPU's memory from the forward to the backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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
        return _PutAway.away(tensor)

    def bring_back(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.back()

    with torch.autograd.graph.saved_tensors_hooks(put_away, bring_back):
        yield


class _PutAway(NamedTuple):
    """A tensor in the CPU's memory, and how it lay in the device's: kernels ask that of what they saved."""

    copy: Tensor  # what is repeated by a stride of 0 is there once
    device: torch.device
    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def away(cls, tensor: Tensor) -> _PutAway:
        once = tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]
        return cls(copy_to_cpu(once), tensor.device, tensor.shape, tensor.stride())

    def back(self) -> Tensor:
        place = torch.empty_strided(self.copy.shape, self.strides, dtype=self.copy.dtype, device=self.device)
        return place.copy_(self.copy, non_blocking=True).expand(self.shape)


def is_on_the_device(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, from where it comes back fast."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
