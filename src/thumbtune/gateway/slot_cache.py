"""Keys and values of rows that come and go: a slot a row, each with its own next column.

transformers' DynamicCache has one width for all rows and copies everything at every token. Here a row starts in
column 0 of its slot and writes each token behind its last, so that nothing moves when others join, and a row that
leaves gives its slot to the last one. Attention looks at the columns that a row has filled; the position of a token
is in its key, not in its column. Room grows by half where it runs out, and is given back when nobody is left.

Holds for layers that keep keys and values of the whole text. A sliding window would be cut by columns and not by
positions: `check_layers` says within how many tokens that makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from thumbtune.errors import ModelError

COLUMN_BLOCK = 64


def check_layers(config: Any) -> tuple[int, int | None]:
    """How many layers a model's cache has, and the tokens up to which no sliding window cuts anything.

    Raises `ModelError` for a model that keeps something else than keys and values.
    """
    layers = DynamicCache(config=config).layers
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ModelError(
                f"this model keeps a {type(layer).__name__} between tokens, and the local engine knows keys and values "
                "only: serve it by another server, such as vLLM, and name that as upstream"
            )
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    n_layers = len(layers) or config.get_text_config().num_hidden_layers
    return n_layers, min(windows, default=None)


class SlotCache(Cache):
    """A transformers cache for one token a row and step. `lengths` counts each row's filled columns."""

    def __init__(self, n_layers: int, device: torch.device) -> None:
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)  # (B,)
        self.width = 0  # columns of the longest row, without the token under way
        super().__init__(layers=[SlotLayer(self) for _ in range(n_layers)])

    @property
    def n_rows(self) -> int:
        return len(self.lengths)

    def mask(self) -> Tensor:  # (B, width + 1)
        """What each row may look at in the coming step: what it has filled, and the token itself."""
        columns = torch.arange(self.width + 1, device=self.lengths.device)
        return (columns <= self.lengths.unsqueeze(1)).long()

    def add_rows(self, encoded: Any, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Take up `rows` of a left-padded transformers cache, the last `lengths` columns of each."""
        before = self.n_rows
        self.width = max(self.width, *lengths)
        for mine, theirs in zip(self._slot_layers, encoded.layers, strict=True):
            mine.make_room(theirs.keys, theirs.values, before, before + len(rows), self.width + 1)
            for slot, (row, length) in enumerate(zip(rows, lengths, strict=True), start=before):
                mine.keys[slot, :, :length] = theirs.keys[row, :, -length:]
                mine.values[slot, :, :length] = theirs.values[row, :, -length:]
        self.lengths = torch.cat([self.lengths, self.lengths.new_tensor(lengths)])

    def step_done(self) -> None:
        """Every row has filled one more column."""
        self.lengths = self.lengths + 1
        self.width += 1

    def keep_rows(self, keep: Sequence[int]) -> None:
        """Let all other rows go: slot i goes on with what was row `keep[i]`."""
        for slot, row in enumerate(keep):
            if slot != row:
                for layer in self._slot_layers:
                    layer.move(row, slot, self.width)
        self.lengths = self.lengths[list(keep)]
        self.width = int(self.lengths.max()) if keep else 0
        if not keep:
            self.clear()

    def clear(self) -> None:
        """Forget all rows and give their memory back."""
        self.lengths, self.width = self.lengths[:0], 0
        for layer in self._slot_layers:
            layer.keys = layer.values = None

    @property
    def _slot_layers(self) -> list[SlotLayer]:
        return self.layers  # type: ignore[return-value]


class SlotLayer(CacheLayerMixin):
    """One layer's share of a `SlotCache`: keys and values (slots, heads, columns, size)."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, slots: SlotCache) -> None:
        super().__init__()
        self._slots = slots

    def make_room(self, keys: Tensor, values: Tensor, n_filled: int, n_rows: int, n_columns: int) -> None:
        """Room for so many rows and columns of such keys and values; what is filled stays."""
        has_rows, has_columns = (0, 0) if self.keys is None else (self.keys.shape[0], self.keys.shape[2])
        if n_rows <= has_rows and n_columns <= has_columns:
            return
        if n_rows > has_rows:
            has_rows = max(n_rows, has_rows + has_rows // 2)
        if n_columns > has_columns:
            wanted = max(n_columns + COLUMN_BLOCK, has_columns + has_columns // 2)
            has_columns = wanted + -wanted % COLUMN_BLOCK
        self.keys = _enlarge(self.keys, keys, n_filled, has_rows, has_columns)
        self.values = _enlarge(self.values, values, n_filled, has_rows, has_columns)
        self.is_initialized = True

    def move(self, row: int, slot: int, n_columns: int) -> None:
        for kept in (self.keys, self.values):
            kept[slot, :, :n_columns] = kept[row, :, :n_columns]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token a row; gives all columns up to the longest row's."""
        n_rows, columns = self._slots.n_rows, self._slots.width + 1
        self.make_room(key_states, value_states, n_rows, n_rows, columns)
        places = torch.arange(n_rows, device=key_states.device), slice(None), self._slots.lengths
        self.keys[places] = key_states[:, :, 0]
        self.values[places] = value_states[:, :, 0]
        return self.keys[:n_rows, :, :columns], self.values[:n_rows, :, :columns]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.make_room(key_states, value_states, 0, len(key_states), key_states.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._slots.width + query_length, 0

    def get_seq_length(self) -> int:
        return self._slots.width

    def get_max_length(self) -> int:
        return -1


def _enlarge(old: Tensor | None, like: Tensor, n_filled: int, n_rows: int, n_columns: int) -> Tensor:
    # zeros, not empty: what a mask hides is still multiplied by 0, and 0 times a stray NaN is NaN
    new = like.new_zeros(n_rows, like.shape[1], n_columns, like.shape[3])
    if old is not None:
        new[:n_filled, :, : old.shape[2]] = old[:n_filled]
    return new
