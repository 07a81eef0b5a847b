"""PEFT's LoRA on a linear layer with one pass over the result, and behind a gated MLP without its input saved."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from thumbtune.engine.gated import GatedSiLU, gate_up_in_scratch, pull_gate
from thumbtune.engine.low_precision import FastLinear, autocast_dtype, low_precision_copy, multiply, outdate


class _Plain(NamedTuple):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ, in one precision."""

    weight: Tensor  # (O, I)
    bias: Tensor | None  # (O,)
    a: Tensor  # (r, I)
    b: Tensor  # (O, r)
    scaling: float


class FastLoraLinear:
    """PEFT's LoRA on a linear layer, one adapter, no dropout; mixed into its class."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = None if args or kwargs else self._read_plain(x)
        if plain is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        with torch.autocast(x.device.type, enabled=False):
            return _LoraLinear.apply(x.to(plain.weight.dtype), *plain)

    def forward_gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The layer's result of silu(gate) × up."""
        plain = self._read_plain(gate)
        if plain is None:
            return super().forward(GatedSiLU.apply(gate, up))  # type: ignore[misc]
        dtype = plain.weight.dtype
        with torch.autocast(gate.device.type, enabled=False):
            return _GatedLoraLinear.apply(gate.to(dtype), up.to(dtype), *plain)

    def _read_plain(self, x: Tensor) -> _Plain | None:
        """The layer's matrices as autocast wants them; None where PEFT has to compute it."""
        adapters = self.active_adapters  # type: ignore[attr-defined]
        dtype = autocast_dtype(x)
        if not _is_plain_lora(self, adapters, dtype is not None):
            return None
        base, name = self.base_layer, adapters[0]  # type: ignore[attr-defined]
        dtype = dtype or base.weight.dtype
        low = (layer[name].weight for layer in (self.lora_A, self.lora_B))  # type: ignore[attr-defined]
        copies: Any = [low_precision_copy(matrix, dtype) for matrix in (base.weight, base.bias, *low)]
        weight, bias, a, b = copies
        return _Plain(weight, bias, a, b, self.scaling[name])  # type: ignore[attr-defined]

    def merge(self, *args: Any, **kwargs: Any) -> None:
        super().merge(*args, **kwargs)  # type: ignore[misc]
        outdate(self.base_layer.parameters())  # type: ignore[attr-defined]

    def unmerge(self) -> None:
        super().unmerge()  # type: ignore[misc]
        outdate(self.base_layer.parameters())  # type: ignore[attr-defined]


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
    """x Wᵀ + b + s (x Aᵀ) Bᵀ with a frozen or trained W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        result, low = _multiply(x, _Plain(weight, bias, a, b, scaling))
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        needs_x, *needs, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = _pull_low(grad, b, ctx.scaling)
        grad_x = None
        if needs_x:
            grad_x = (grad @ weight).addmm_(grad_low, a).view_as(x)
        return grad_x, *_pull_matrices(needs, grad, x, low, grad_low, ctx.scaling), None


class _GatedLoraLinear(torch.autograd.Function):
    """The same of x = silu(gate) × up, which is made again in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        result, low = _multiply(gate_up_in_scratch(gate, up), _Plain(weight, bias, a, b, scaling))
        ctx.save_for_backward(gate, up, weight, a, b, low)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight, a, b, low = ctx.saved_tensors
        _, _, *needs, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = _pull_low(grad, b, ctx.scaling)
        grad_x = (grad @ weight).addmm_(grad_low, a).view_as(up)
        grad_gate, grad_up, x = pull_gate(gate, up, grad_x, needs_product=True)
        assert x is not None
        return grad_gate, grad_up, *_pull_matrices(needs, grad, x, low, grad_low, ctx.scaling), None


def _multiply(x: Tensor, lora: _Plain) -> tuple[Tensor, Tensor]:  # (…, O) and (T, r)
    """The layer's result, the adapter's product added in place, and x Aᵀ."""
    rows = x.reshape(-1, x.shape[-1])
    low = rows @ lora.a.t()
    result = multiply(rows, lora.weight, lora.bias)
    result.addmm_(low, lora.b.t(), alpha=lora.scaling)
    return result.view(*x.shape[:-1], -1), low


def _pull_low(grad: Tensor, b: Tensor, scaling: float) -> Tensor:  # (T, r)
    """Gradient of x Aᵀ."""
    return (grad @ b).mul_(scaling)


def _pull_matrices(
    needs: list[bool], grad: Tensor, x: Tensor, low: Tensor, grad_low: Tensor, scaling: float
) -> tuple[Tensor | None, ...]:
    """Gradients of W, b, A and B, where they are needed."""
    rows = x.reshape(-1, x.shape[-1])
    needs_weight, needs_bias, needs_a, needs_b = needs
    return (
        grad.t() @ rows if needs_weight else None,
        grad.sum(0) if needs_bias else None,
        grad_low.t() @ rows if needs_a else None,
        (grad.t() @ low).mul_(scaling) if needs_b else None,
    )
