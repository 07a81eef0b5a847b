"""A model's own modules, computed with fewer passes over memory. Same values, same gradients, same class to the eye.

Linear layers under autocast keep the low-precision copy of their weight until the weight changes, instead of making
it in every forward. Under autocast norms give low precision at once, since a linear layer follows. RMS norm and gated
MLPs save their inputs alone for the backward. A LoRA layer adds its product into the base's result. Attention turns
queries and keys in few passes. Outside autocast and outside these shapes every module computes as its own class does.

A module changes class, not forward, so copies of a model stay copies. A norm or an MLP is taken only where a trial
gives the numbers of the class's own forward; so no list of families has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thumbtune.engine.allocator import scratch
from thumbtune.engine.gated import GatedDown, GatedSiLU
from thumbtune.engine.lora import FastLoraLinear
from thumbtune.engine.low_precision import (
    FastLinear,
    autocast_dtype,
    drop_low_precision_copies,
    low_precision_copy,
)
from thumbtune.engine.rotary import FastRotaryAttention, derive_rotary_twin

STRETCH = 512
"""Rows of a norm's backward at once: what is made on the way stays in a CPU's cache."""

_TRIAL_TOLERANCE = 1e-5


def speed_up_modules(model: nn.Module) -> dict[str, int]:
    """Change the class of all modules that have a faster twin; returns how many of each kind."""
    counts: dict[str, int] = {}
    trials: dict[Any, type | None] = {}
    for module in list(model.modules()):
        twin = _find_twin(module, trials)
        if twin is not None:
            module.__class__ = twin
            kind = twin.__mro__[1].__name__
            counts[kind] = counts.get(kind, 0) + 1
    return counts


@contextmanager
def sped_up(model: nn.Module) -> Iterator[None]:
    """The faster twins inside the block; afterwards each module is of its own class again, and no copy is left."""
    own = [(module, type(module)) for module in model.modules()]
    speed_up_modules(model)
    try:
        yield
    finally:
        for module, kind in own:
            module.__class__ = kind
        drop_low_precision_copies(model)


class FastRMSNorm:
    """RMS norm that saves its input and one number a row; mixed into the family's own class."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = autocast_dtype(hidden_states) or hidden_states.dtype
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon, dtype)


class _RMSNorm(torch.autograd.Function):
    """weight × x / sqrt(mean(x²) + ε), float32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()  # (…, 1)
        ctx.save_for_backward(x, weight, scale)
        scaled = torch.mul(x, scale, out=scratch("norm", x.shape, scale))
        return scaled.mul_(weight).to(dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        rows, grads, scale = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, grad, scale))
        grad_x = rows.new_empty(rows.shape)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(rows), STRETCH):
            at = slice(start, start + STRETCH)
            normed, part = rows[at].float() * scale[at], grads[at].float()
            product = part * normed  # sums of products by hand: einsum and vecdot go row by row on a CPU
            if grad_weight is not None:
                grad_weight += product.sum(0)
            overlap = product.mul_(weight).mean(-1, keepdim=True)
            grad_x[at] = (part * weight).sub_(normed.mul_(overlap)).mul_(scale[at])
        return grad_x.view(x.shape), None if grad_weight is None else grad_weight.to(weight.dtype), None, None


class FastGatedMLP:
    """Gated SiLU MLP that saves gate and up alone; mixed into the family's own class."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
        if isinstance(down, FastLoraLinear):
            return down.forward_gated(gate, up)
        if not isinstance(down, FastLinear) or down.bias is not None:
            return down(GatedSiLU.apply(gate, up))
        weight = low_precision_copy(down.weight, gate.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return GatedDown.apply(gate, up, weight)


def _find_twin(module: nn.Module, trials: dict[Any, type | None]) -> type | None:
    kind = type(module)
    if isinstance(module, _TWINS):
        return None
    if kind is nn.Linear:
        return _derive(FastLinear, kind, trials)
    if kind.__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        mixin: type = FastRMSNorm
        shape: Any = tuple(module.weight.shape)  # type: ignore[arg-type]
    elif kind.__name__.endswith("MLP") and all(
        isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj")
    ):
        mixin, shape = FastGatedMLP, type(getattr(module, "act_fn", None)).__name__
    else:
        return _find_lora_twin(module, trials) or _find_rotary_twin(kind, trials)
    key = (kind, shape)
    if key not in trials:
        trials[key] = _derive(mixin, kind, trials) if _agrees(module, mixin) else None
    return trials[key]


def _find_rotary_twin(kind: type[nn.Module], made: dict[Any, type | None]) -> type | None:
    key = ("rotary", kind)
    if key not in made:
        made[key] = derive_rotary_twin(kind)
    return made[key]


def _derive(mixin: type, kind: type, made: dict[Any, type | None]) -> type:
    """A class that is `kind` with the mixin's forward, one for all modules of that kind."""
    key = ("derived", mixin, kind)
    if key not in made:
        bases = (mixin,) if issubclass(mixin, kind) else (mixin, kind)
        made[key] = type(
            kind.__name__, bases, {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        )
    derived = made[key]
    assert derived is not None
    return derived


@torch.no_grad()
def _agrees(module: nn.Module, mixin: type) -> bool:
    """Whether the mixin's forward gives this module's own numbers on a trial input."""
    first = next(module.parameters())
    if not first.is_floating_point():  # quantized: its own class knows how
        return False
    width: Any = module.gate_proj.in_features if mixin is FastGatedMLP else first.shape[-1]  # type: ignore[union-attr]
    trial = torch.linspace(-2, 2, 3 * width, device=first.device, dtype=first.dtype).view(1, 3, -1)
    with torch.autocast(first.device.type, enabled=False):
        own = module(trial)
        fast = mixin.forward(module, trial)  # type: ignore[attr-defined]
    return bool((own - fast).abs().max() <= _TRIAL_TOLERANCE * own.abs().max())


_TWINS = (FastLinear, FastRMSNorm, FastGatedMLP, FastLoraLinear, FastRotaryAttention)


def _find_lora_twin(module: nn.Module, made: dict[Any, type | None]) -> type | None:
    if not hasattr(module, "lora_A"):
        return None
    from peft.tuners.lora.layer import Linear

    return _derive(FastLoraLinear, Linear, made) if type(module) is Linear else None
