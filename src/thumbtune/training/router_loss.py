"""The load-balancing loss of a mixture of experts, added to the preference loss. The same number on both paths.

A forward of the policy is watched for its routers' logits; the family's own function makes the loss of them. Each token
counts as often as it would in rows that stand alone: padding not at all, and a prompt that several completions share
in a packed row once for each of them. So packed, padded and TRL agree.

It is a product of two means over the tokens of a forward, so unlike every other number of a run it depends on how a
batch is cut into microbatches; each counts by its rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.packing import group_by_prompt
from thumbtune.errors import ConfigError


def find_router_loss(model: Any, coefficient: float | None) -> RouterLoss | None:
    """The router loss of a model at this weight, by default its own; None where there is none or it weighs nothing.

    Raises `ConfigError` where a weight is given and the model has no routers.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal.config.get_text_config() if hasattr(causal, "config") else None
    if not hasattr(config, "output_router_logits"):
        if coefficient:
            raise ConfigError(
                f"router_aux_loss_coef={coefficient}: {type(causal).__name__} is no mixture of experts that gives "
                "its routers' logits, so there is nothing to balance. Leave it out"
            )
        return None
    if coefficient is None:
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    return RouterLoss(causal, config, coefficient) if coefficient else None


class RouterLoss:
    """Watches forwards of a model and gives the loss of the last one."""

    def __init__(self, causal: Any, config: Any, coefficient: float) -> None:
        self.coefficient = coefficient
        self._causal, self._config = causal, config
        self._logits: Any = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep the routers' logits of the forward inside the block."""
        before = self._config.output_router_logits
        self._config.output_router_logits = True
        hook = self._causal.base_model.register_forward_hook(self._keep)
        try:
            yield
        finally:
            hook.remove()
            self._config.output_router_logits = before

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self._logits = output.router_logits

    def take(self, path: Any, branches: Sequence[Branch]) -> Tensor:  # () with gradient
        """The unweighted loss of the forward that was watched, over these branches."""
        logits, self._logits = self._logits, None
        weights = weigh_tokens(path, branches).to(logits[0].device)
        balance: Any = getattr(sys.modules[type(self._causal).__module__], "load_balancing_loss_func", None)
        if balance is None:
            from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as balance
        config = self._config
        n_experts = getattr(config, "num_experts", None) or config.num_local_experts
        loss: Tensor = balance(logits, n_experts, config.num_experts_per_tok, weights)
        return loss


def weigh_tokens(path: Any, branches: Sequence[Branch]) -> Tensor:  # (rows, tokens) of the forward
    """How often each token of a forward counts."""
    if path.name == "padded":
        mask: Tensor = path.pad(branches)["attention_mask"]
        return mask
    weights: list[int] = []
    for prompt_ids, members in group_by_prompt(branches).items():
        weights += [len(members)] * len(prompt_ids)
        weights += [1] * sum(len(branches[member].completion_ids) for member in members)
    return torch.tensor([weights])
