"""Log-probs from hidden states, without a tensor of positions × vocabulary.

The head runs on completion positions alone, a chunk at a time; the backward computes each chunk's logits again.
Log-sum-exp and gradients of the logits are float32. What a family does behind its head (scale, soft cap) is done
here too, and told by its config; `thumbtune.engine.packed` checks it against the model's own forward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_LOGITS = 2**24
"""Logits that exist at once: 64 MiB in float32."""


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
) -> Tensor:  # (C,) float32, nats
    """log softmax(head(hidden))[target] of each position.

    Naive equivalent: `functional.linear(hidden, weight, bias).log_softmax(-1).gather(-1, targets)`.
    """
    return _TokenLogProbs.apply(hidden, weight, bias, targets, head)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head
    ) -> Tensor:
        log_sums = torch.empty(len(targets), device=hidden.device)
        chosen = torch.empty_like(log_sums)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _list_chunks(len(targets), len(weight)):
                logits, _ = _compute_logits(hidden[chunk], weight, bias, head)
                chosen[chunk] = logits.gather(1, targets[chunk, None]).squeeze(1)
                log_sums[chunk] = logits.logsumexp(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_sums)
        ctx.head = head
        return chosen - log_sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_sums = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _list_chunks(len(targets), len(weight)):
                logits, slope = _compute_logits(hidden[chunk], weight, bias, ctx.head)
                # d log p_t / d logit = 1[t] − p
                grad_logits = logits.sub_(log_sums[chunk, None]).exp_().mul_(-grad[chunk, None])
                grad_logits.scatter_add_(1, targets[chunk, None], grad[chunk, None])
                if slope is not None:
                    grad_logits.mul_(slope)
                if ctx.head.scale != 1.0:
                    grad_logits.mul_(ctx.head.scale)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                grad_logits = grad_logits.to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = grad_logits @ weight
                if grad_weight is not None:
                    grad_weight += grad_logits.t() @ hidden[chunk]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _list_chunks(n_positions: int, n_vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_LOGITS // n_vocabulary)
    return [slice(start, start + size) for start in range(0, n_positions, size)]


def _compute_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head
) -> tuple[Tensor, Tensor | None]:  # (chunk, V) float32 each
    """The logits, and the slope of the soft cap where there is one."""
    logits = functional.linear(hidden, weight, bias).float()
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.soft_cap is None:
        return logits, None
    capped = (logits / head.soft_cap).tanh_()
    slope = 1 - capped.square()
    return capped.mul_(head.soft_cap), slope
