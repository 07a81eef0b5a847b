"""Weights in autocast's precision: made once per change of a weight, not once per forward.

A copy stays in one place of memory beside its parameter and is written anew when the parameter has changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from thumbtune.engine.allocator import empty_short_lived


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The precision that autocast asks for on this tensor's device, None outside autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


class FastLinear(nn.Linear):
    """`nn.Linear` whose weight is converted for autocast once per change."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = autocast_dtype(input)
        if dtype is None:
            return functional.linear(input, self.weight, self.bias)
        weight, bias = low_precision_copy(self.weight, dtype), low_precision_copy(self.bias, dtype)
        with torch.autocast(input.device.type, enabled=False):
            return _Linear.apply(input.to(dtype), weight, bias)


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, in one precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ weight if needs_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # (…, I) -> (…, O)
    """x Wᵀ + b without gradient, into memory that is freed soon: a layer's result seldom lives to the backward."""
    rows = x.reshape(-1, x.shape[-1])
    result = empty_short_lived(x, len(rows), len(weight))
    if bias is None:
        torch.mm(rows, weight.t(), out=result)
    else:
        torch.addmm(bias, rows, weight.t(), out=result)
    return result.view(*x.shape[:-1], len(weight))


def low_precision_copy(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The parameter in `dtype`, converted once per change of it; gradients come back in its own precision."""
    if parameter is None or parameter.dtype == dtype:
        return parameter
    return _Copy.apply(parameter, dtype)


def kept_copy(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """The parameter in `dtype`, without gradient: kept in one place of memory, written anew when it has changed.

    A change is an optimizer's step, an operation in place that autograd sees, or new data. One in place through
    `.data` shows nowhere: `drop_low_precision_copies` then.
    """
    if parameter.dtype == dtype:
        return parameter.detach()
    _watch_optimizers()
    state = (parameter._version, parameter.data_ptr())
    kept: _Kept | None = getattr(parameter, "_low_precision", None)
    if kept is None or _describe(kept.copy) != (dtype, parameter.device, parameter.shape):
        kept = _Kept(state, parameter.detach().to(dtype))
    elif kept.state != state:
        kept = _Kept(state, kept.copy.copy_(parameter.detach()))
    parameter._low_precision = kept  # type: ignore[attr-defined]
    return kept.copy


def _describe(tensor: Tensor) -> tuple[torch.dtype, torch.device, torch.Size]:
    return tensor.dtype, tensor.device, tensor.shape


class _Kept(NamedTuple):
    state: tuple[int, int] | None
    """What the parameter was when it was copied; None once it has changed."""
    copy: Tensor


def drop_low_precision_copies(model: nn.Module) -> None:
    """Free the copies, as when training is over."""
    for parameter in model.parameters():
        parameter.__dict__.pop("_low_precision", None)


def outdate(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        kept = getattr(parameter, "_low_precision", None)
        if kept is not None:
            parameter._low_precision = kept._replace(state=None)  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _watch_optimizers() -> None:
    """Outdate copies at each optimizer step: fused ones and those of bitsandbytes change weights without a version."""

    def outdate_trained(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        outdate(parameter for group in optimizer.param_groups for parameter in group["params"])

    register_optimizer_step_post_hook(outdate_trained)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = parameter.dtype
        copy = kept_copy(parameter, dtype)
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None
