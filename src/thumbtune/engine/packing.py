"""Many branches in one row of tokens, without padding: `[x₁ y₁ | x₂ y₂ₐ y₂ᵦ | …]`.

Branches of one prompt share it: its tokens stand once, and each completion attends to the prompt and to itself.
Positions count along a branch, as if it stood alone. What may attend to what is a list of `Piece`s, from which
`thumbtune.engine.attention` computes; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thumbtune.engine.logprobs import Branch


class Piece(NamedTuple):
    """Tokens `start:stop` of the row, causal among themselves, each also seeing all of the prompt before them."""

    start: int
    stop: int
    prompt: tuple[int, int] | None = None
    """Where the shared prompt stands: in this row, or in the row whose keys and values were kept."""


class PromptStore:
    """What a forward leaves for completions that ride on its prompts: keys and values by layer, last hidden states.

    No dataclass: FSDP copies those on their way into a module when it casts, and what is filled in there is lost.
    """

    def __init__(self) -> None:
        self.keys_values: dict[int, tuple[Tensor, Tensor]] = {}
        """By layer: (1, heads, T, head size) keys and values of the whole row, without gradient."""
        self.last_hidden: Tensor | None = None
        """(prompts, hidden) state behind each prompt's last token."""
        self.windows: dict[int, int | None] = {}
        """The sliding window that each layer attended with."""
        self.closed = False
        """True once the riders have ridden: a recomputed forward keeps nothing."""

    def close(self) -> None:
        """Let go of what was kept."""
        self.keys_values, self.last_hidden, self.closed = {}, None, True


@dataclass(frozen=True)
class PackedBatch:
    """A microbatch as one row of T tokens. C completion tokens are scored, of N branches."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T)
    pieces: tuple[Piece, ...]
    states: Tensor  # (C,) where the hidden state stands that predicts each scored token
    targets: Tensor  # (C,) the scored token
    owners: Tensor  # (C,) which branch it belongs to
    n_branches: int
    prompts: tuple[tuple[int, int], ...]
    """Where each distinct prompt stands, in order of first use."""
    keeps: PromptStore | None = None
    """Filled by the forward, where given."""
    rides_on: PromptStore | None = None
    """Prompts are not in this row but in that store; `states` below zero then count its last hidden states."""

    @property
    def n_tokens(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: Any) -> PackedBatch:
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "position_ids", "states", "targets", "owners")
        }
        return PackedBatch(**{**self.__dict__, **moved})


def pack_branches(branches: Sequence[Branch], *, keep_prompts: bool = False) -> PackedBatch:
    """One row that holds every branch once and every distinct prompt once."""
    members = group_by_prompt(branches)
    ids: list[int] = []
    positions: list[Tensor] = []
    pieces: list[Piece] = []
    prompts: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = [(0, 0)] * len(branches)  # of each completion
    first_states: list[int] = [0] * len(branches)
    for prompt_ids, indices in members.items():
        start, n_prompt = len(ids), len(prompt_ids)
        prompts.append((start, start + n_prompt))
        ids += prompt_ids
        positions.append(torch.arange(n_prompt))
        for index in indices:
            completion_ids = branches[index].completion_ids
            spans[index] = (len(ids), len(ids) + len(completion_ids))
            first_states[index] = start + n_prompt - 1
            ids += list(completion_ids)
            positions.append(torch.arange(n_prompt, n_prompt + len(completion_ids)))
        if len(indices) == 1:
            pieces.append(Piece(start, len(ids)))  # prompt and completion are one causal stretch
        else:
            pieces.append(Piece(start, start + n_prompt))
            pieces += [Piece(*spans[index], prompt=prompts[-1]) for index in indices]
    states, targets, owners = _list_scored(branches, first_states, [span[0] for span in spans])
    return PackedBatch(
        input_ids=torch.tensor([ids], dtype=torch.long),
        position_ids=torch.cat(positions).unsqueeze(0),
        pieces=tuple(piece for piece in pieces if piece.stop > piece.start),
        states=states,
        targets=targets,
        owners=owners,
        n_branches=len(branches),
        prompts=tuple(prompts),
        keeps=PromptStore() if keep_prompts else None,
    )


def pack_riders(branches: Sequence[Branch], carrier: PackedBatch, carried: Sequence[Branch]) -> PackedBatch:
    """Other completions of the prompts in `carrier`, without the prompts: they ride on its keys and values.

    `carried` are the branches that `carrier` was packed from, by `keep_prompts=True`; every prompt of `branches` has
    to be among theirs.
    """
    assert carrier.keeps is not None, "pack the carrier with keep_prompts=True"
    number = {prompt_ids: n for n, prompt_ids in enumerate(group_by_prompt(carried))}
    ids: list[int] = []
    positions: list[Tensor] = []
    pieces: list[Piece] = []
    starts: list[int] = []
    first_states: list[int] = []
    for prompt_ids, completion_ids in branches:
        prompt = number[tuple(prompt_ids)]
        fed = list(completion_ids[:-1])  # the last token predicts nothing that is scored
        starts.append(len(ids))
        first_states.append(prompt - len(number))  # below zero: a state of the store, counted from its end
        if fed:
            pieces.append(Piece(len(ids), len(ids) + len(fed), prompt=carrier.prompts[prompt]))
            positions.append(torch.arange(len(prompt_ids), len(prompt_ids) + len(fed)))
        ids += fed
    if not ids:  # completions of one token: feed one in vain, for sharded layers wait for each forward
        prompt_ids, completion_ids = branches[0]
        ids = [*completion_ids, *prompt_ids][:1]
        pieces = [Piece(0, 1, prompt=carrier.prompts[number[tuple(prompt_ids)]])]
        positions = [torch.tensor([len(prompt_ids)])]
    states, targets, owners = _list_scored(branches, first_states, starts)
    return PackedBatch(
        input_ids=torch.tensor([ids], dtype=torch.long),
        position_ids=torch.cat(positions).unsqueeze(0),
        pieces=tuple(pieces),
        states=states,
        targets=targets,
        owners=owners,
        n_branches=len(branches),
        prompts=(),
        rides_on=carrier.keeps,
    )


def count_packed_tokens(branches: Sequence[Branch]) -> int:
    """Tokens of the row that `pack_branches` would make."""
    prompts = sum(len(prompt_ids) for prompt_ids in group_by_prompt(branches))
    return prompts + sum(len(branch.completion_ids) for branch in branches)


def group_by_prompt(branches: Sequence[Branch]) -> dict[tuple[int, ...], list[int]]:
    """Indices of branches by their prompt, in order of first use."""
    members: dict[tuple[int, ...], list[int]] = {}
    for index, branch in enumerate(branches):
        members.setdefault(tuple(branch.prompt_ids), []).append(index)
    return members


def _list_scored(
    branches: Sequence[Branch], first_states: Sequence[int], starts: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(states, targets, owners) of all completion tokens, branch by branch."""
    states: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, (_, completion_ids) in enumerate(branches):
        n_tokens = len(completion_ids)
        if n_tokens:
            states += [first_states[index], *range(starts[index], starts[index] + n_tokens - 1)]
        targets += list(completion_ids)
        owners += [index] * n_tokens
    return (torch.tensor(states), torch.tensor(targets), torch.tensor(owners))
