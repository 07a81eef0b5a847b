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
    chunk_by_prompt,
    completion_log_probs,
    count_padded_tokens,
    evaluating,
    pad_branches,
    score_branches,
)
from thumbtune.engine.microbatches import split_group
from thumbtune.engine.packed import enable_packing, packed_log_probs
from thumbtune.engine.packing import PackedBatch, count_packed_tokens, pack_branches, pack_riders
from thumbtune.engine.ranks import is_sharded
from thumbtune.engine.trial import find_difference, make_trial, plain_log_probs
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

    Raises `ConfigError` where "packed" is wanted and cannot be had, and for models with an encoder.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{_name_family(model)} has an encoder, and is not trained here: give a decoder-only model"
        )
    if wanted == "padded":
        return _choose_padding(model, pad_token_id, "engine='padded' asks for it")
    try:
        enable_packing(model)
    except NotPackable as refusal:
        reason = f"{_name_family(model)} runs padded: {refusal}"
        if wanted == "packed":
            raise ConfigError(f"engine='packed' cannot be had: {reason}. Leave it at 'auto'") from refusal
        path = _choose_padding(model, pad_token_id, reason)
        logger.warning(path.reason)
        return path
    packed = PackedPath(f"{_name_family(model)} gives the same log-probs from a packed row as row by row")
    logger.info("engine: packed, %s", packed.reason)
    return packed


def _choose_padding(model: Any, pad_token_id: int, reason: str) -> PaddedPath:
    path = PaddedPath(pad_token_id, reason)
    if not _gives_own_numbers(model, path.log_probs):
        reason += "; padding would change its log-probs, so each row has a forward of its own"
        return PaddedPath(pad_token_id, reason, alone=True, shares_prompts=False)
    if not _gives_own_numbers(model, partial(path.score, max_tokens=4096)):
        reason += "; it keeps no prompt that completions could share, so each is encoded with its own"
        return PaddedPath(pad_token_id, reason, shares_prompts=False)
    return path


@torch.no_grad()
def _gives_own_numbers(model: Any, log_probs: Callable[[Any, Sequence[Branch]], Tensor]) -> bool:
    """Whether a trial gives the numbers of plain forwards; where a state runs along the row, padding may change it."""
    branches, _ = make_trial(model)
    with evaluating(model):
        plain = plain_log_probs(model, branches)
        try:
            found = log_probs(model, branches).to(plain.device)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
            return False
    return find_difference(model, found, plain) is None


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

    def score(
        self,
        model: Any,
        branches: Sequence[Branch],
        *,
        max_tokens: int,
        on_progress: OnProgress | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Tensor:
        cuts = _cut_branches(branches, self.count_tokens, max_tokens)
        return _score_in_cuts(self, model, branches, cuts, on_progress, part)


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
    alone: bool = False
    """Whether each row has a forward of its own, since padding changes this model's numbers."""
    shares_prompts: bool = True
    """Whether a prompt is scored once for all its completions."""

    def count_tokens(self, branches: Sequence[Branch]) -> int:
        if self.alone:
            return sum(len(ids) for branch in branches for ids in branch)
        return count_padded_tokens(branches, self.pad_to_multiple_of)

    def pad(self, branches: Sequence[Branch]) -> dict[str, Tensor]:
        """The tensors of one forward; see `pad_branches`."""
        return pad_branches(branches, self.pad_token_id, self.pad_to_multiple_of)

    def log_probs(self, model: Any, branches: Sequence[Branch]) -> Tensor:
        if self.alone:
            if is_sharded(model):  # ranks would wait for each other's forwards for ever
                raise ConfigError(
                    f"{self.reason}. Sharded weights cannot have that: train without FSDP and ZeRO 3"
                )
            return plain_log_probs(model, branches)
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
        if not self.shares_prompts:
            cuts = list(chunk_by_prompt(branches, max_tokens))
            return _score_in_cuts(self, model, branches, cuts, on_progress, part)
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


@torch.no_grad()
def _score_in_cuts(
    path: LogProbPath,
    model: Any,
    branches: Sequence[Branch],
    cuts: list[list[int]],
    on_progress: OnProgress | None,
    part: tuple[int, int],
) -> Tensor:
    first, step = part
    scores = torch.zeros(len(branches))
    done = 0
    with evaluating(model):
        for places in cuts[first::step]:
            scores[places] = path.log_probs(model, [branches[place] for place in places]).cpu()
            done += len(places)
            if on_progress is not None:
                on_progress(min(done * step, len(branches)), len(branches))
    return scores


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
        in_places = partial(_cost_of, siblings, count_tokens)
        for part in split_group(range(len(group)), in_places, max_tokens):
            places = [group[i] for i in part]
            cost = in_places(part)
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
