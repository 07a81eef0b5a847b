"""The middle of a gated MLP, silu(gate) × up: never saved, made again in the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from thumbtune.engine.allocator import scratch
from thumbtune.engine.low_precision import multiply


class GatedSiLU(torch.autograd.Function):
    """silu(gate) × up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return gate_up(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up, _ = pull_gate(gate, up, grad, needs_product=False)
        return grad_gate, grad_up


class GatedDown(torch.autograd.Function):
    """(silu(gate) × up) Wᵀ; the product is made again in the backward, which saves its memory."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return multiply(gate_up_in_scratch(gate, up), weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        grad_gate, grad_up, product = pull_gate(
            gate, up, grad @ weight, needs_product=ctx.needs_input_grad[2]
        )
        grad_weight = None
        if product is not None:
            grad_weight = grad.flatten(0, -2).t() @ product.flatten(0, -2)
        return grad_gate, grad_up, grad_weight


def gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) × up."""
    return functional.silu(gate).mul_(up)


def gate_up_in_scratch(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) × up, to be used up before the next layer's."""
    return torch.ops.aten.silu.out(gate, out=scratch("gated", gate.shape, gate)).mul_(up)


def pull_gate(
    gate: Tensor, up: Tensor, grad: Tensor, *, needs_product: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of silu(gate) × up for gate and for up, and itself once more where it is needed."""
    active = functional.silu(gate)
    product = active * up if needs_product else None
    return torch.ops.aten.silu_backward(grad * up, gate), active.mul_(grad), product
