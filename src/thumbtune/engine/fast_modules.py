"""A model's own modules, computed with fewer passes over memory. Same values, same gradients, same class to the eye.

Linear layers under autocast keep the low-precision copy of their weight until the weight changes, instead of making
it in every forward. Under autocast norms give low precision at once, since a linear layer follows. RMS norm and gated
MLPs save their inputs alone for the backward. A LoRA layer adds its product into the base's result. Outside autocast
and outside these shapes every module computes as its own class does.

A module changes class, not forward, so copies of a model stay copies. A norm or an MLP is taken only where a trial
gives the numbers of the class's own forward; so no list of families has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

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


def _outdate(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        kept = getattr(parameter, "_low_precision", None)
        if kept is not None:
            parameter._low_precision = kept._replace(state=None)  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _watch_optimizers() -> None:
    """Outdate copies at each optimizer step: fused ones and those of bitsandbytes change weights without a version."""

    def outdate_trained(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        _outdate(parameter for group in optimizer.param_groups for parameter in group["params"])

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
            return functional.linear(input.to(dtype), weight, bias)  # type: ignore[arg-type]


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
        rows = x.float()
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()  # (…, 1)
        ctx.save_for_backward(x, weight, scale)
        return (rows * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad = grad.float()
        product = grad * normed  # sums of products by hand: einsum and vecdot go row by row on a CPU
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        overlap = product.mul_(weight).mean(-1, keepdim=True)
        grad_x = (grad * weight).sub_(normed.mul_(overlap)).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None, None


class FastGatedMLP:
    """Gated SiLU MLP that saves gate and up alone; mixed into the family's own class."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
        if not isinstance(down, FastLinear) or down.bias is not None:
            return down(_GatedSiLU.apply(gate, up))
        weight = low_precision_copy(down.weight, gate.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return _GatedDown.apply(gate, up, weight)


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) × up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = functional.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


class _GatedDown(torch.autograd.Function):
    """(silu(gate) × up) Wᵀ; the product is made again in the backward, which saves its memory."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return functional.linear(functional.silu(gate).mul_(up), weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        active = functional.silu(gate)
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = grad.flatten(0, -2).t() @ (active * up).flatten(0, -2)
        grad_product = grad @ weight
        grad_gate = torch.ops.aten.silu_backward(grad_product * up, gate)
        return grad_gate, active.mul_(grad_product), grad_weight


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
        return _find_lora_twin(module, trials)
    key = (kind, shape)
    if key not in trials:
        trials[key] = _derive(mixin, kind, trials) if _agrees(module, mixin) else None
    return trials[key]


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


class FastLoraLinear:
    """PEFT's LoRA on a linear layer, one adapter, no dropout; mixed into its class."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapters = self.active_adapters  # type: ignore[attr-defined]
        dtype = autocast_dtype(x)
        if args or kwargs or not _is_plain_lora(self, adapters, dtype is not None):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        base, name = self.base_layer, adapters[0]  # type: ignore[attr-defined]
        dtype = dtype or base.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return _LoraLinear.apply(
                x.to(dtype),
                low_precision_copy(base.weight, dtype),
                low_precision_copy(base.bias, dtype),
                low_precision_copy(self.lora_A[name].weight, dtype),  # type: ignore[attr-defined]
                low_precision_copy(self.lora_B[name].weight, dtype),  # type: ignore[attr-defined]
                self.scaling[name],  # type: ignore[attr-defined]
            )

    def merge(self, *args: Any, **kwargs: Any) -> None:
        super().merge(*args, **kwargs)  # type: ignore[misc]
        _outdate(self.base_layer.parameters())  # type: ignore[attr-defined]

    def unmerge(self) -> None:
        super().unmerge()  # type: ignore[misc]
        _outdate(self.base_layer.parameters())  # type: ignore[attr-defined]


_TWINS = (FastLinear, FastRMSNorm, FastGatedMLP, FastLoraLinear)


def _is_plain_lora(layer: Any, adapters: list[str], in_autocast: bool) -> bool:
    if layer.disable_adapters or layer.merged or len(adapters) != 1 or adapters[0] not in layer.lora_A:
        return False
    name = adapters[0]
    dropout = layer.lora_dropout[name]
    return (
        (isinstance(layer.base_layer, FastLinear) or type(layer.base_layer) is nn.Linear)
        and not layer.lora_variant.get(name)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
        and not (layer.training and getattr(dropout, "p", 0.0))
        # a float32 adapter on bf16 weights computes in float32, unless autocast says otherwise
        and (in_autocast or layer.lora_A[name].weight.dtype == layer.base_layer.weight.dtype)
    )


class _LoraLinear(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ with a frozen or trained W, one pass over the result."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()  # (T, r)
        result = functional.linear(rows, weight, bias)
        result.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        rows = x.reshape(-1, x.shape[-1])
        needs_x, needs_weight, needs_bias, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_low = (grad @ b).mul_(ctx.scaling)  # (T, r)
        grad_x = None
        if needs_x:
            grad_x = (grad @ weight).addmm_(grad_low, a).view_as(x)
        return (
            grad_x,
            grad.t() @ rows if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            grad_low.t() @ rows if needs_a else None,
            (grad.t() @ low).mul_(ctx.scaling) if needs_b else None,
            None,
        )


def _find_lora_twin(module: nn.Module, made: dict[Any, type | None]) -> type | None:
    if not hasattr(module, "lora_A"):
        return None
    from peft.tuners.lora.layer import Linear

    return _derive(FastLoraLinear, Linear, made) if type(module) is Linear else None
