"""Rows that are decoded together: they join at any step and leave at any step.

Keys and values lie in buffers of rows × positions that grow in blocks, right-aligned: all rows write their next token
in one column, and a row's prompt ends in the column before its first. transformers' own cache is concatenated anew at
each token, which copies all of it; here a token is written in place. By its source, transformers' own
`ContinuousBatchingManager` knows no adapter of a request and draws for all requests from one generator, so that an
answer would depend on its company.

One row's numbers do not depend on the others: what stands before a row's start is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from thumbtune.engine.logprobs import Branch, forward_logits, pad_branches
from thumbtune.errors import ModelError
from thumbtune.evaluation.generate import pick_tokens
from thumbtune.gateway.served_adapters import ServedAdapters

BLOCK = 256
"""Positions that the buffers grow by."""


@dataclass
class Row:
    """One completion under way."""

    prompt_ids: Sequence[int]
    version: str
    temperature: float
    top_p: float
    noise: torch.Generator
    owner: Any = None
    """Whoever put it in."""
    token_ids: list[int] = field(default_factory=list)


@dataclass
class Encoding:
    """Rows whose prompts are being read: `n_done` of the padded columns so far."""

    rows: Sequence[Row]
    inputs: dict[str, Tensor]
    places: Sequence[int]
    """Which of the distinct prompts each row has."""
    cache: Any
    n_done: int = 0
    logits: Tensor | None = None  # (P, V): behind each prompt, once all is read

    @property
    def n_prompts(self) -> int:
        return len(self.inputs["input_ids"])

    @property
    def width(self) -> int:
        return self.inputs["input_ids"].shape[1]


class _Buffer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, positions, width); a forward writes behind `length`."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.n_rows = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty(0, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_empty(0, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, end = key_states.shape[0], self.length + key_states.shape[2]
        self.reserve(rows, end)
        assert self.keys is not None
        assert self.values is not None
        self.keys[:rows, :, self.length : end] = key_states
        self.values[:rows, :, self.length : end] = value_states
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def reserve(self, rows: int, positions: int) -> None:
        """Room for so many, what is there kept in place."""
        self.keys, self.values = (_grow(held, rows, positions) for held in (self.keys, self.values))


def _grow(held: Tensor | None, rows: int, positions: int) -> Tensor:
    assert held is not None
    old_rows, heads, old_positions, width = held.shape
    if rows <= old_rows and positions <= old_positions:
        return held
    grown_rows = max(old_rows, 1 << (rows - 1).bit_length())
    grown_positions = max(old_positions, -(-positions // BLOCK) * BLOCK)
    grown = held.new_zeros(grown_rows, heads, grown_positions, width)
    grown[:old_rows, :, :old_positions] = held
    return grown


class BatchDecoder:
    """The rows under way on one model. Not safe for several threads: one drives it.

    Raises `ModelError` for a model that remembers more than keys and values.
    """

    def __init__(self, adapters: ServedAdapters, *, pad_token_id: int) -> None:
        for layer in DynamicCache(config=adapters.model.config).layers:
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise ModelError(
                    f"this model keeps a {type(layer).__name__} from token to token, and the local engine knows keys "
                    "and values alone: serve it by another server, such as vLLM, and name that as upstream"
                )
        self.adapters = adapters
        self.rows: list[Row] = []
        self._pad = pad_token_id
        self._device = next(adapters.model.parameters()).device
        self._cache = Cache(layer_class_to_replicate=_Buffer)
        self._length = 0
        self._starts = torch.zeros(
            0, dtype=torch.long, device=self._device
        )  # (R,): column of a row's first token
        self._logits: Tensor | None = None  # (R, V): of the next token

    def join(self, joining: Sequence[Row]) -> None:
        """Encode these rows' prompts and let them decode with the others, all at once."""
        encoding = self.begin(joining)
        while not self.encode(encoding, encoding.n_prompts * encoding.width):
            pass
        self.take_in(encoding)

    def begin(self, joining: Sequence[Row]) -> Encoding:
        """Prompts to be encoded, each distinct one once. All of them have one version."""
        prompts = list(dict.fromkeys(tuple(row.prompt_ids) for row in joining))
        padded = pad_branches([Branch(prompt, ()) for prompt in prompts], self._pad)
        inputs = {
            key: padded[key].to(self._device) for key in ("input_ids", "attention_mask", "position_ids")
        }
        places = [prompts.index(tuple(row.prompt_ids)) for row in joining]
        return Encoding(joining, inputs, places, Cache(layer_class_to_replicate=_Buffer))

    @torch.inference_mode()
    def encode(self, encoding: Encoding, n_tokens: int) -> bool:
        """Read on, at most `n_tokens` of a single prompt, or all prompts at once; True where the end is reached."""
        # several prompts are never cut: a piece that is all padding for one of them has nothing to attend to
        n_columns = n_tokens if encoding.n_prompts == 1 else encoding.width
        end = min(encoding.n_done + n_columns, encoding.width)
        for layer in encoding.cache.layers:
            layer.length = encoding.n_done
        output = forward_logits(
            self.adapters.model,
            keep=1,
            input_ids=encoding.inputs["input_ids"][:, encoding.n_done : end],
            attention_mask=encoding.inputs["attention_mask"][:, :end],
            position_ids=encoding.inputs["position_ids"][:, encoding.n_done : end],
            past_key_values=encoding.cache,
            use_cache=True,
            **self.adapters.choose([encoding.rows[0].version] * encoding.n_prompts),
        )
        encoding.n_done, encoding.logits = end, output.logits[:, -1].float()
        return end == encoding.width

    @torch.inference_mode()
    def take_in(self, encoding: Encoding) -> None:
        """Let rows whose prompts have been read decode with the others."""
        assert encoding.logits is not None
        joining, cache, inputs = encoding.rows, encoding.cache, encoding.inputs
        places = torch.tensor(encoding.places, device=self._device)
        width = encoding.width
        self._make_room(width, len(joining))
        first = len(self.rows)
        for mine, theirs in zip(self._layers(len(cache.layers)), cache.layers, strict=True):
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            mine.reserve(first + len(joining), self._length)
            for held, new in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                held[first : first + len(joining), :, self._length - width : self._length] = new[
                    places, :, :width
                ]
        lengths = inputs["attention_mask"].sum(-1)[places]
        self._starts = torch.cat([self._starts, self._length - lengths])
        logits = encoding.logits[places]
        self._logits = logits if self._logits is None else torch.cat([self._logits, logits])
        self.rows += joining

    @torch.inference_mode()
    def pick(self) -> list[int]:
        """The next token of each row."""
        assert self._logits is not None
        chosen = torch.empty(len(self.rows), dtype=torch.long, device=self._device)
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for place, row in enumerate(self.rows):
            kinds.setdefault((row.temperature == 0, row.top_p < 1), []).append(place)
        for (greedy, cut), places in kinds.items():  # sorting the vocabulary is for those who asked for it
            members = [self.rows[place] for place in places]
            logits = self._logits[places]
            if greedy:
                chosen[places] = logits.argmax(-1)
                continue
            uniforms = torch.tensor([torch.rand((), generator=row.noise).item() for row in members])
            temperature = torch.tensor([row.temperature for row in members], device=self._device)
            top_p = torch.tensor([row.top_p for row in members], device=self._device) if cut else None
            chosen[places] = pick_tokens(logits, uniforms.to(self._device), temperature, top_p)
        return chosen.tolist()

    @torch.inference_mode()
    def advance(self, leaving: Sequence[Row] = ()) -> None:
        """Compute what may follow each row's last token; the rows of `leaving` are gone."""
        if leaving:
            gone = {id(row) for row in leaving}
            self._keep([place for place, row in enumerate(self.rows) if id(row) not in gone])
        if not self.rows:
            self._forget()
            return
        self._make_room(1, 0)
        ids = torch.tensor([[row.token_ids[-1]] for row in self.rows], device=self._device)
        columns = torch.arange(self._length + 1, device=self._device)
        for layer in self._layers():
            layer.length = self._length
        self._logits = (
            forward_logits(
                self.adapters.model,
                keep=1,
                input_ids=ids,
                attention_mask=(columns >= self._starts[:, None]).long(),
                position_ids=(self._length - self._starts)[:, None],
                past_key_values=self._cache,
                use_cache=True,
                **self.adapters.choose([row.version for row in self.rows]),
            )
            .logits[:, -1]
            .float()
        )
        self._length += 1

    def _keep(self, staying: Sequence[int]) -> None:
        """Close the gaps: the last rows take the places of those that left, so little is copied."""
        assert self._logits is not None
        n = len(staying)
        order = [*range(n)]
        gaps = [place for place in range(n) if place not in set(staying)]
        for gap, place in zip(gaps, (place for place in staying if place >= n), strict=True):
            order[gap] = place
            for layer in self._layers():
                for held in (layer.keys, layer.values):
                    held[gap, :, : self._length] = held[place, :, : self._length]
        self.rows = [self.rows[place] for place in order]
        self._starts, self._logits = self._starts[order], self._logits[order]

    def _make_room(self, n_columns: int, n_rows: int) -> None:
        """Columns for a joining prompt, or for the next token: drop what no row needs any more, else grow."""
        if not self.rows:
            self._length = n_columns
        elif n_rows and n_columns > self._length:
            self._shift(n_columns - self._length)
        elif not n_rows and self._length % BLOCK == 0:
            unused = int(self._starts.min())
            if unused >= BLOCK:
                self._shift(-unused)

    def _shift(self, by: int) -> None:
        """Move all rows' columns to the right, or to the left."""
        for layer in self._layers():
            layer.reserve(len(self.rows), self._length + max(by, 0))
            for held in (layer.keys, layer.values):
                source = held[: len(self.rows), :, max(-by, 0) : self._length].clone()
                held[: len(self.rows), :, max(by, 0) : self._length + by] = source
        self._length += by
        self._starts += by

    def _layers(self, n: int = 0) -> list[Any]:
        while len(self._cache.layers) < n:
            self._cache.layers.append(_Buffer())
        return self._cache.layers

    def _forget(self) -> None:
        """Nobody is here: give the memory back."""
        self._cache = Cache(layer_class_to_replicate=_Buffer)
        self._length, self._logits = 0, None
        self._starts = self._starts[:0]
