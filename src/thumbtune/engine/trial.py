"""A few made-up rows that show whether a way of computing log-probs gives a model's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thumbtune.engine.logprobs import Branch, forward_logits

_ROUNDINGS = 4
"""So many roundings of the largest log-prob are no difference: SmolLM2 shows 0.3 in bf16 and 1.8 in float32."""


def make_trial(model: Any) -> tuple[list[Branch], list[Branch]]:
    """A shared prompt, a prompt alone, and riders on both; ids spread over the vocabulary."""
    n_vocabulary = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(1, n_vocabulary, (n,), generator=draw).tolist()

    shared, alone = ids(7), ids(5)
    branches = [Branch(shared, ids(6)), Branch(alone, ids(9)), Branch(shared, ids(4))]
    return branches, [Branch(shared, ids(5)), Branch(alone, ids(1))]


def plain_log_probs(model: Any, branches: Sequence[Branch]) -> Tensor:  # (N,) float32, nats
    """log π(y|x) of each branch by a forward of its own, which gets its token ids and nothing else."""
    device = next(model.parameters()).device
    return torch.stack([_plain_log_prob(model, branch, device) for branch in branches])


def find_difference(model: Any, found: Tensor, plain: Tensor) -> float | None:
    """By how many nats log-probs are off, None where rounding explains it."""
    off = float((found - plain).detach().abs().max())
    allowed = _ROUNDINGS * _find_rounding(model) * float(plain.detach().abs().max()) + 3e-4
    return None if off <= allowed else off


def _plain_log_prob(model: Any, branch: Branch, device: torch.device) -> Tensor:
    ids = torch.tensor([[*branch.prompt_ids, *branch.completion_ids]], device=device)
    n_completion = len(branch.completion_ids)
    logits = forward_logits(model, keep=n_completion + 1, input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1).gather(1, ids[0, -n_completion:, None]).sum()


def _find_rounding(model: Any) -> float:
    """The relative rounding of the coarsest numbers that the model computes with."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    kinds |= {getattr(module, "compute_dtype", None) for module in model.modules()} - {
        None
    }  # of 4-bit weights
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        kinds.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(kind).eps for kind in kinds)
