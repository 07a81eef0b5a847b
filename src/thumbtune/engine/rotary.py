"""Rotary positions in few passes over memory: float32 inside, a stretch of positions at a time, rounded once.

Families share one function for them, and under autocast each of its steps makes a tensor of its own in float32. An
attention layer's twin runs its family's own forward with that function exchanged, and only where a trial gives the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from thumbtune.engine.low_precision import autocast_dtype

STRETCH = 256
"""Positions turned at once: what is float32 stays in a CPU's cache."""

_NAME = "apply_rotary_pos_emb"
_TRIAL_TOLERANCE = 1e-5


class FastRotaryAttention:
    """An attention layer whose queries and keys are turned in few passes; marks its derived class."""


def derive_rotary_twin(kind: type[nn.Module]) -> type | None:
    """`kind` with the rotary positions of its forward exchanged; None where it has none that can be."""
    forward: Any = kind.forward
    if _NAME not in getattr(getattr(forward, "__code__", None), "co_names", ()):
        return None
    own = forward.__globals__.get(_NAME)
    if own is None or not _agrees(own):
        return None
    names = {**forward.__globals__, _NAME: _faster(own)}
    exchanged = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    exchanged.__kwdefaults__ = forward.__kwdefaults__
    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "forward": exchanged}
    return type(kind.__name__, (FastRotaryAttention, kind), about)


def _faster(own: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A family's function, but for the usual case: all of a head turns, one angle a position."""

    def apply_rotary_pos_emb(
        q: Tensor,  # (B, H, T, D)
        k: Tensor,  # (B, K, T, D)
        cos: Tensor,  # (B, T, D)
        sin: Tensor,  # (B, T, D)
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        dtype = autocast_dtype(q)
        if dtype is None and q.dtype == k.dtype == cos.dtype == torch.float32:
            dtype = torch.float32  # another one rounds after each of its family's steps, and is left to it
        is_usual = (
            not args and not kwargs and cos.dim() == 3 and q.dim() == 4 and cos.shape[-1] == q.shape[-1]
        )
        if dtype is None or not is_usual:
            return own(q, k, cos, sin, *args, **kwargs)
        return _Turn.apply(q, cos, sin, dtype), _Turn.apply(k, cos, sin, dtype)

    return apply_rotary_pos_emb


class _Turn(torch.autograd.Function):
    """x × cos + (−second half of x, first half of x) × sin."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        half = x.shape[-1] // 2
        return _turn(x, cos, -sin[..., :half], sin[..., half:], dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        return _turn(grad, cos, sin[..., half:], -sin[..., :half], ctx.dtype), None, None, None


def _turn(x: Tensor, cos: Tensor, to_first: Tensor, to_second: Tensor, dtype: torch.dtype) -> Tensor:
    """x × cos, plus its second half × `to_first` in the first half, and its first × `to_second` in the second.

    x (B, H, T, D) -> the same shape; positions lie before heads in memory, as linear layers and attention have them.
    """
    half = x.shape[-1] // 2
    x = x.transpose(1, 2)
    result = torch.empty(x.shape, dtype=dtype, device=x.device)
    for start in range(0, x.shape[1], STRETCH):
        at = slice(start, start + STRETCH)
        rows = x[:, at].float()
        turned = rows * cos[:, at, None]
        turned[..., :half].addcmul_(rows[..., half:], to_first[:, at, None])
        turned[..., half:].addcmul_(rows[..., :half], to_second[:, at, None])
        result[:, at] = turned
    return result.transpose(1, 2)


@torch.no_grad()
def _agrees(own: Callable[..., Any]) -> bool:
    """Whether a family's function turns two halves of a head against each other, as most do."""
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 5, 8, generator=draw), torch.randn(2, 1, 5, 8, generator=draw)
    cos, sin = torch.randn(2, 2, 5, 8, generator=draw)
    try:
        wanted = torch.cat(own(q, k, cos, sin), 1)
        found = torch.cat(_faster(own)(q, k, cos, sin), 1)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    return wanted.shape == found.shape and bool((wanted - found).abs().max() <= _TRIAL_TOLERANCE)
