"""Two ways from token ids to log-probs, one number: packed where the model can, padded for all others.

path = choose_path(model, "auto", pad_token_id=0)
path.log_probs(model, branches)                     # (N,) with gradient
log_probs, carrier = path.carry(model, branches)    # the same, and prompts kept for completions that ride on them
carrier.ride(model, other_branches)                 # (N',) without gradient
path.score(model, branches, max_tokens=4096)        # (N,) without gradient, cut into forwards
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from thumbtune.engine.attention import NotPackable
from thumbtune.engine.logprobs import (
    Branch,
    completion_log_probs,
    count_padded_tokens,
    evaluating,
    pad_branches,
    score_branches,
)
from thumbtune.engine.microbatches import cut_batch
from thumbtune.engine.packed import enable_packing, packed_log_probs
from thumbtune.engine.packing import PackedBatch, count_packed_tokens, pack_branches, pack_riders
from thumbtune.errors import ConfigError

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
"""Called with (branches done, branches in all)."""


class Carrier(Protocol):
    """Prompts that a forward has encoded."""

    def ride(self, model: Any, branches: Sequence[Branch]) -> Tensor:  # (N,) float32, nats
        """log π(y|x) of other completions of these prompts, without gradient; once, then the prompts are let go."""
        ...


class LogProbPath(Protocol):
    """How log-probs are computed."""

    @property
    def name(self) -> Literal["packed", "padded"]: ...

    @property
    def reason(self) -> str:
        """Why this path serves this model."""
        ...

    def count_tokens(self, branches: Sequence[Branch]) -> int:
        """Tokens of one forward over the branches, padding included."""
        ...

    def log_probs(self, model: Any, branches: Sequence[Branch]) -> Tensor:  # (N,) float32, nats
        """log π(y|x) of each branch in one forward, with gradient where the model takes one."""
        ...

    def carry(self, model: Any, branches: Sequence[Branch]) -> tuple[Tensor, Carrier]:
        """`log_probs`, and its prompts for other completions to ride on."""
        ...

    def score(
        self,
        model: Any,
        branches: Sequence[Branch],
        *,
        max_tokens: int,
        on_progress: OnProgress | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Tensor:  # (N,) float32, nats, on the CPU
        """log π(y|x) of many branches without gradient, at most `max_tokens` tokens a forward.

        `part` (first, step) takes every `step`-th of the forwards and leaves the others' log-probs at 0.
        """
        ...


def choose_path(model: Any, wanted: Literal["packed", "padded", "auto"], *, pad_token_id: int) -> LogProbPath:
    """The packed path if it is wanted and the model takes it, else the padded one; logged with the reason.

    Raises `ConfigError` where "packed" is wanted and cannot be had.
    """
    if wanted == "padded":
        return PaddedPath(pad_token_id, "engine='padded' asks for it")
    try:
        enable_packing(model)
    except NotPackable as refusal:
        reason = f"{_name_family(model)} runs padded: {refusal}"
        if wanted == "packed":
            raise ConfigError(f"engine='packed' cannot be had: {reason}. Leave it at 'auto'") from refusal
        logger.warning(reason)
        return PaddedPath(pad_token_id, reason)
    path = PackedPath(f"{_name_family(model)} gives the same log-probs from a packed row as row by row")
    logger.info("engine: packed, %s", path.reason)
    return path


@dataclass(frozen=True)
class PackedPath:
    """One row of tokens, each prompt once; see `thumbtune.engine.packed`."""

    reason: str
    name: Literal["packed", "padded"] = "packed"

    def count_tokens(self, branches: Sequence[Branch]) -> int:
        return count_packed_tokens(branches)

    def log_probs(self, model: Any, branches: Sequence[Branch]) -> Tensor:
        return packed_log_probs(model, pack_branches(branches).to(_find_device(model)))

    def carry(self, model: Any, branches: Sequence[Branch]) -> tuple[Tensor, Carrier]:
        batch = pack_branches(branches, keep_prompts=True).to(_find_device(model))
        return packed_log_probs(model, batch), _PackedCarrier(batch, branches)

    @torch.no_grad()
    def score(
        self,
        model: Any,
        branches: Sequence[Branch],
        *,
        max_tokens: int,
        on_progress: OnProgress | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Tensor:
        first, step = part
        scores = torch.zeros(len(branches))
        done = 0
        with evaluating(model):
            for places in _cut_branches(branches, self.count_tokens, max_tokens)[first::step]:
                scores[places] = self.log_probs(model, [branches[place] for place in places]).cpu()
                done += len(places)
                if on_progress is not None:
                    on_progress(min(done * step, len(branches)), len(branches))
        return scores


@dataclass(frozen=True)
class _PackedCarrier:
    batch: PackedBatch
    carried: Sequence[Branch]

    @torch.no_grad()
    def ride(self, model: Any, branches: Sequence[Branch]) -> Tensor:
        riders = pack_riders(branches, self.batch, self.carried).to(_find_device(model))
        scores = packed_log_probs(model, riders)
        assert self.batch.keeps is not None
        self.batch.keeps.close()
        return scores


@dataclass(frozen=True)
class PaddedPath:
    """Plain forwards of padded rows; see `thumbtune.engine.logprobs`."""

    pad_token_id: int
    reason: str
    name: Literal["packed", "padded"] = "padded"
    pad_to_multiple_of: int = 1
    """Of a row's tokens in forwards with gradient."""

    def count_tokens(self, branches: Sequence[Branch]) -> int:
        return count_padded_tokens(branches, self.pad_to_multiple_of)

    def pad(self, branches: Sequence[Branch]) -> dict[str, Tensor]:
        """The tensors of one forward; see `pad_branches`."""
        return pad_branches(branches, self.pad_token_id, self.pad_to_multiple_of)

    def log_probs(self, model: Any, branches: Sequence[Branch]) -> Tensor:
        device = _find_device(model)
        batch = self.pad(branches)
        return completion_log_probs(model, {name: tensor.to(device) for name, tensor in batch.items()})

    def carry(self, model: Any, branches: Sequence[Branch]) -> tuple[Tensor, Carrier]:
        return self.log_probs(model, branches), _PaddedCarrier(self)

    def score(
        self,
        model: Any,
        branches: Sequence[Branch],
        *,
        max_tokens: int,
        on_progress: OnProgress | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Tensor:
        return score_branches(
            model,
            branches,
            pad_token_id=self.pad_token_id,
            max_tokens=max_tokens,
            on_progress=on_progress,
            part=part,
        )


@dataclass(frozen=True)
class _PaddedCarrier:
    path: PaddedPath

    @torch.no_grad()
    def ride(self, model: Any, branches: Sequence[Branch]) -> Tensor:
        return self.path.log_probs(model, branches)


def _cut_branches(
    branches: Sequence[Branch], count_tokens: Callable[[Sequence[Branch]], int], max_tokens: int
) -> list[list[int]]:
    """Places of many branches in forwards, one after another: siblings together, nothing weighed twice."""
    members: dict[tuple[int, ...], list[int]] = {}
    for place, branch in enumerate(branches):
        members.setdefault(tuple(branch.prompt_ids), []).append(place)
    cuts: list[list[int]] = []
    room = 0
    for group in members.values():
        siblings = [branches[place] for place in group]
        for part in cut_batch(
            [0] * len(group), cost=partial(_cost_of, siblings, count_tokens), max_tokens=max_tokens
        ):
            places = [group[i] for i in part]
            cost = _cost_of(siblings, count_tokens, part)
            if cost > room:
                cuts.append([])
                room = max_tokens
            cuts[-1] += places
            room -= cost
    return cuts


def _cost_of(
    branches: Sequence[Branch], count_tokens: Callable[[Sequence[Branch]], int], places: list[int]
) -> int:
    return count_tokens([branches[place] for place in places])


def _find_device(model: Any) -> torch.device:
    return next(model.parameters()).device


def _name_family(model: Any) -> str:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(causal).__name__
