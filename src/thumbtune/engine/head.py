"""Log-probs from hidden states, without a float32 tensor of positions × vocabulary.

The head runs on completion positions alone, a tile of positions × vocabulary at a time, small enough for a CPU's
cache; the backward takes the tiles that were kept in low precision, up to a bound, and computes the others again. A
frozen head, as under LoRA, needs neither: what its hidden states get is summed up beside the log-sum-exp.
Log-sum-exp and gradients of the logits are float32, and so is every sum over tiles. What a family does behind its head
(scale, soft cap) is done here too, and told by its config; `thumbtune.engine.packed` checks it against the model's own
forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TILE_LOGITS = 2**22
"""Logits that exist at once in float32 on a CPU: 16 MiB."""
TILES_ON_A_GPU = 16
"""As many tiles are one on a GPU: there the start of a kernel costs, not the way to memory."""
KEPT_LOGITS = 2**26
"""Low-precision logits that a backward finds again: 128 MiB at most, for a quarter of a trained head's products."""


class Head(NamedTuple):
    """What a family does behind its head: logits = soft_cap × tanh(scale × W h / soft_cap)."""

    scale: float = 1.0
    soft_cap: float | None = None


def describe_head(config: Any) -> Head:
    """The head of a model's config, as its family names it."""
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale = 1.0 / config.logits_scaling
    if getattr(config, "logit_scale", None):  # Cohere multiplies
        scale = config.logit_scale
    return Head(scale, getattr(config, "final_logit_softcapping", None))


def token_log_probs(
    hidden: Tensor,  # (C, hidden)
    weight: Tensor,  # (V, hidden)
    bias: Tensor | None,  # (V,)
    targets: Tensor,  # (C,)
    head: Head = Head(),
    *,
    copy: Tensor | None = None,  # (V, hidden)
) -> Tensor:  # (C,) float32, nats
    """log softmax(head(hidden))[target] of each position.

    `copy` is the weight in the precision of `hidden`, where its own is another; the gradient is in its own.

    Naive equivalent: `functional.linear(hidden, weight, bias).log_softmax(-1).gather(-1, targets)`.
    """
    copy = weight if copy is None else copy
    return _TokenLogProbs.apply(hidden, weight, copy.detach(), bias, targets, head)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        copy: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
    ) -> Tensor:
        needs_hidden, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        pulled = None
        if needs_hidden and not needs_weight and not needs_bias:
            pulled = torch.zeros_like(hidden, dtype=torch.float32)
        is_kept = (
            needs_hidden and pulled is None and hidden.dtype != torch.float32
        )  # float32 would take twice as much
        kept: list[Tensor] = []
        room = KEPT_LOGITS if is_kept else 0
        # exp of the logits, less the highest: a likely token's log-prob would be lost in rounding
        chosen, total = (torch.zeros(len(targets), device=hidden.device) for _ in range(2))
        highest = torch.full_like(total, -torch.inf)
        with torch.autocast(hidden.device.type, enabled=False):
            for columns, rows in _list_tiles(len(targets), len(copy), hidden.device):
                product = _multiply(hidden[rows], copy[columns], bias, columns)
                if product.numel() <= room:
                    kept.append(product)
                room -= product.numel()
                logits, slope = _finish_logits(product, head)
                place, is_here = _locate(targets[rows], columns)
                chosen[rows] = torch.where(is_here, logits.gather(1, place).squeeze(1), chosen[rows])
                higher = torch.maximum(highest[rows], logits.amax(-1))
                fading = (highest[rows] - higher).exp_()
                powers = logits.sub_(higher[:, None]).exp_()
                highest[rows] = higher
                if pulled is not None:  # the target is left out: 1 − p of a sure one would be lost in bf16
                    powers.scatter_(1, place, powers.gather(1, place).masked_fill_(is_here[:, None], 0.0))
                    felt = (powers if slope is None else powers * slope).to(hidden.dtype)
                    pulled[rows] = (pulled[rows] * fading[:, None]).add_(felt @ copy[columns])
                total[rows] = total[rows] * fading + powers.sum(-1)
            if pulled is None:
                ctx.save_for_backward(hidden, copy, bias, targets, highest + total.log(), *kept)
            else:
                others, total = total, total + (chosen - highest).exp()
                # d log p_t / d hidden = Σ_v (1[t] − p_v) slope_v W_v
                pushed = copy[targets].float() * (others / total * _slope_at(chosen, head))[:, None]
                ctx.save_for_backward(pushed.sub_(pulled.div_(total[:, None])).mul_(head.scale))
        ctx.is_frozen, ctx.head, ctx.dtypes = pulled is not None, head, (hidden.dtype, weight.dtype)
        return (chosen - highest) - total.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_dtype, weight_dtype = ctx.dtypes
        if ctx.is_frozen:
            (slope_of_hidden,) = ctx.saved_tensors
            return (slope_of_hidden * grad[:, None]).to(hidden_dtype), None, None, None, None, None
        hidden, copy, bias, targets, log_sums, *kept = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight = torch.empty_like(copy, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            tiles = _list_tiles(len(targets), len(copy), hidden.device)
            for (columns, rows), product in zip_longest(tiles, kept):
                if product is None:
                    product = _multiply(hidden[rows], copy[columns], bias, columns)
                logits, slope = _finish_logits(product, ctx.head)
                place, is_here = _locate(targets[rows], columns)
                # d log p_t / d logit = 1[t] − p
                grad_logits = logits.sub_(log_sums[rows, None]).exp_().mul_(-grad[rows, None])
                grad_logits.scatter_add_(1, place, (grad[rows] * is_here)[:, None])
                if slope is not None:
                    grad_logits.mul_(slope)
                if ctx.head.scale != 1.0:
                    grad_logits.mul_(ctx.head.scale)
                if grad_bias is not None:
                    grad_bias[columns] += grad_logits.sum(0)
                grad_logits = grad_logits.to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += grad_logits @ copy[columns]
                if grad_weight is not None:
                    product = grad_logits.t() @ hidden[rows]
                    if rows.start == 0:
                        grad_weight[columns] = product
                    else:
                        grad_weight[columns] += product
        return (
            None if grad_hidden is None else grad_hidden.to(hidden_dtype),
            None if grad_weight is None else grad_weight.to(weight_dtype),
            None,
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _list_tiles(n_positions: int, n_vocabulary: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """(columns, rows) of each tile: stretches of the vocabulary, and under each those of the positions."""
    n_logits = TILE_LOGITS * (1 if device.type == "cpu" else TILES_ON_A_GPU)
    n_rows = min(max(n_positions, 1), math.isqrt(n_logits))
    n_columns = max(1, n_logits // n_rows)
    for first in range(0, n_vocabulary, n_columns):
        for start in range(0, max(n_positions, 1), n_rows):
            yield slice(first, min(first + n_columns, n_vocabulary)), slice(start, start + n_rows)


def _locate(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:  # (rows, 1) and (rows,)
    """Where in a tile each target stands, and whether it is there at all; where not, the place says nothing."""
    place = targets - columns.start
    n_columns = columns.stop - columns.start
    return place.clamp(0, n_columns - 1)[:, None], (place >= 0) & (place < n_columns)


def _multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: slice) -> Tensor:
    """A tile's products, (rows, columns) in the precision of the hidden states."""
    return functional.linear(hidden, weight, None if bias is None else bias[columns].to(hidden.dtype))


def _finish_logits(
    product: Tensor, head: Head
) -> tuple[Tensor, Tensor | None]:  # (rows, columns) float32 each
    """A tile's logits, and the slope of the soft cap where there is one."""
    logits = product.float()
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.soft_cap is None:
        return logits, None
    capped = (logits / head.soft_cap).tanh_().mul_(head.soft_cap)
    return capped, _slope_at(capped, head)


def _slope_at(capped: Tensor, head: Head) -> Tensor:
    """Slope of the soft cap where it gives these logits."""
    return torch.ones_like(capped) if head.soft_cap is None else 1 - (capped / head.soft_cap).square()
