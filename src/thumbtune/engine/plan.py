"""Which example meets which, in what batch: decided before training, from the seed alone.

Guaranteed for every epoch: rows are shuffled anew; each row appears once; the two classes are spread as evenly over
the batches as their numbers allow; each row's mismatched completion y′ comes from the same batch and from another
prompt. The same arguments give the same plan on every machine, so a resumed run meets the same batches: all chance
is raw 64-bit numbers of PCG64, a stream that NumPy keeps, unlike what its `Generator` makes of them.

Two cases fall short, and are counted rather than hidden: with fewer rows of one class than batches some batches are
one-sided, as a last batch of one row always is; where a batch holds one prompt only, y′ comes from another batch.

An epoch is planned in whole arrays: a million rows take about a second, and some 100 bytes a row while it lasts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from thumbtune.errors import DataError

Draw = Callable[[int], np.ndarray]
"""Gives so many random uint64 numbers."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row of one epoch: its index in the dataset, and the index of the row that lends its completion."""

    row: int
    mismatched_row: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """The batches of every epoch. `batch_size` counts rows over all microbatches and ranks of an optimizer step."""

    labels: np.ndarray | Sequence[bool] | None
    """Class of each row, or None where rows are pairs. Kept as an array of bool."""
    prompt_keys: np.ndarray | Sequence[Hashable]
    """Equal for rows with equal prompts. Kept as an array of numbers."""
    batch_size: int
    seed: int
    mismatched: bool
    """Whether rows are lent another row's completion."""
    siblings_together: bool = False
    """Whether rows of one prompt follow each other, so that a forward encodes it once. The classes then fall as they
    stand under the prompts, and a batch may be one-sided."""

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", np.asarray(self.labels, dtype=bool))
        if not isinstance(self.prompt_keys, np.ndarray):
            object.__setattr__(self, "prompt_keys", number_by_first_appearance(self.prompt_keys))

    def __len__(self) -> int:
        return len(self.prompt_keys)

    def batches(self, epoch: int) -> Iterator[list[PlannedRow]]:
        """The batches of one epoch, in order, one at a time."""
        rows, lenders = self.arrange(epoch)
        for start in range(0, len(rows), self.batch_size):
            batch = slice(start, start + self.batch_size)
            if lenders is None:
                yield [PlannedRow(row) for row in rows[batch].tolist()]
            else:
                yield list(map(PlannedRow, rows[batch].tolist(), lenders[batch].tolist()))

    def epoch(self, epoch: int) -> list[list[PlannedRow]]:
        """The batches of one epoch, all at once."""
        return list(self.batches(epoch))

    def rows(self, epoch: int) -> Iterator[PlannedRow]:
        """The rows of one epoch, batch after batch."""
        for batch in self.batches(epoch):
            yield from batch

    def arrange(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows of one epoch, batch after batch, and beside each the row that lends its completion, if any.

        Raises `DataError` where all rows share one prompt and completions are to be lent.
        """
        draw = draw_from(f"{self.seed}/{epoch}")
        sizes = cut_batches(len(self), self.batch_size)
        if self.siblings_together:
            rows = _deal_prompts(np.asarray(self.prompt_keys), draw)
        else:
            rows = _deal_rows(sizes, self._labels, draw)
        if not self.mismatched:
            return rows, None
        keys = np.asarray(self.prompt_keys)
        lenders = match_other_prompts(keys[rows], sizes, draw)
        alone = lenders < 0
        lenders = rows[lenders]
        if alone.any():
            lenders[alone] = _borrow_from_anywhere(keys, rows[alone], draw)
        return rows, lenders

    def count_one_sided(self, epoch: int = 0) -> int:
        """How many batches of an epoch hold one class only."""
        if self._labels is None:
            return 0
        rows, _ = self.arrange(epoch)
        sizes = cut_batches(len(self), self.batch_size)
        ups = np.add.reduceat(self._labels[rows], _find_starts(sizes), dtype=np.int64)
        return int(np.count_nonzero((ups == 0) | (ups == sizes)))

    def digest(self, epochs: int) -> str:
        """SHA-256 over the batch size, and the rows and their mismatched rows of the first epochs."""
        digest = hashlib.sha256(f"{self.batch_size}/{self.mismatched}/{self.siblings_together}".encode())
        for epoch in range(epochs):
            for part in self.arrange(epoch):
                if part is not None:
                    digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def _labels(self) -> np.ndarray | None:
        return None if self.labels is None else np.asarray(self.labels)


def number_by_first_appearance(keys: Sequence[Hashable]) -> np.ndarray:  # (rows,) int64
    """Numbers from 0 that are equal exactly where the keys are equal."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def draw_from(seed: str) -> Draw:
    """A stream of random uint64 numbers that the seed alone decides, on every machine and NumPy."""
    return np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest(), "little")).random_raw


def cut_batches(n_rows: int, batch_size: int) -> np.ndarray:  # (batches,) int64
    """Sizes of the batches: all full but perhaps the last."""
    starts = np.arange(0, n_rows, batch_size, dtype=np.int64)
    return np.minimum(batch_size, n_rows - starts)


def match_other_prompts(keys: np.ndarray, sizes: np.ndarray, draw: Draw) -> np.ndarray:  # (rows,) int64
    """For each place of `keys`, batch after batch, the place of another prompt in its batch that lends its completion.

    Each completion is lent once where that is possible: a batch is lined up prompt by prompt and shifted by the size
    of its largest group, so nobody meets their own. If one prompt fills more than half of the batch, its rows share
    the others' completions. −1 where the batch holds a single prompt.
    """
    if not len(keys):
        return np.empty(0, dtype=np.int64)
    starts = _find_starts(sizes)
    line, begin, size = _line_up(keys, sizes, draw)
    start, n_rows = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    shift = np.repeat(np.maximum.reduceat(size, starts), sizes)
    lent = line[start + (np.arange(len(line)) - start + shift) % n_rows]
    own = np.flatnonzero(keys[line] == keys[lent])
    if len(own):
        # Of groups over half of their batch: what is of other prompts stands behind the group's end, going round.
        start, n_rows, begin, size = start[own], n_rows[own], begin[own], size[own]
        choice = _choose(np.maximum(n_rows - size, 1), draw)
        other = line[start + (begin + size - start + choice) % n_rows]
        lent[own] = np.where(n_rows > size, other, -1)
    lenders = np.empty_like(line)
    lenders[line] = lent
    return lenders


def _line_up(keys: np.ndarray, sizes: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of each batch, prompt by prompt in random order; and of each one's group the begin and the size."""
    batch = np.repeat(np.arange(len(sizes)), sizes)
    by_prompt = np.lexsort((draw(len(keys)), keys, batch))
    opens_group = np.diff(keys[by_prompt], prepend=0) != 0
    opens_group[_find_starts(sizes)] = True
    group = np.cumsum(opens_group) - 1
    # by a number per group; the sort is stable, so that the members of a group stay together
    shuffled = np.lexsort((draw(int(group[-1]) + 1)[group], batch))
    line, group = by_prompt[shuffled], group[shuffled]
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    group_sizes = np.diff(begins, append=len(line))
    return line, np.repeat(begins, group_sizes), np.repeat(group_sizes, group_sizes)


def _borrow_from_anywhere(keys: np.ndarray, rows: np.ndarray, draw: Draw) -> np.ndarray:
    """For each of the rows any row of the dataset with another prompt."""
    by_key = np.argsort(keys, kind="stable")
    begin = np.searchsorted(keys, keys[rows], side="left", sorter=by_key)
    end = np.searchsorted(keys, keys[rows], side="right", sorter=by_key)
    n_others = len(keys) - (end - begin)
    if not n_others.all():
        raise DataError(
            "all rows share one prompt, so no completion of another prompt can estimate KTO's reference point: "
            "add rows with other prompts, or take a loss that needs none: loss_type='kto_thresholds' or "
            "'apo_zero_unpaired', or method bco"
        )
    choice = _choose(n_others, draw)
    return by_key[np.where(choice < begin, choice, choice + (end - begin))]


def _deal_rows(sizes: np.ndarray, labels: np.ndarray | None, draw: Draw) -> np.ndarray:
    """All rows, shuffled and dealt into batches of these sizes, the classes spread evenly."""
    n_rows = int(sizes.sum())
    if labels is None:
        return _shuffle(np.arange(n_rows), draw)
    rare, common = sorted(
        (_shuffle(np.flatnonzero(labels == wanted), draw) for wanted in (True, False)), key=len
    )
    shares = _share_out(len(rare), sizes, draw)
    batch = np.repeat(np.arange(len(sizes)), sizes)
    is_rare = np.arange(n_rows) - _find_starts(sizes)[batch] < shares[batch]
    rows = np.empty(n_rows, dtype=np.int64)
    rows[is_rare], rows[~is_rare] = rare, common
    return rows[np.lexsort((draw(n_rows), batch))]


def _deal_prompts(keys: np.ndarray, draw: Draw) -> np.ndarray:
    """All rows, prompt by prompt: prompts shuffled, and the rows of each."""
    _, prompt = np.unique(keys, return_inverse=True)
    return np.lexsort((draw(len(keys)), draw(int(prompt.max()) + 1)[prompt]))


def _share_out(n_rare: int, sizes: np.ndarray, draw: Draw) -> np.ndarray:
    """How many rows of the rare class each batch gets: its fair share by cumulated rounding.

    A random start keeps the luck of rounding even. Where there is one row for every batch, each gets one, but for a
    last batch of a single row.
    """
    if not len(sizes):
        return sizes
    start = float(draw(1)[0] >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    number = np.arange(1, len(sizes) + 1)
    until = (n_rare * np.cumsum(sizes) / sizes.sum() + start).astype(np.int64)
    until[-1] = n_rare
    one_each = n_rare >= len(sizes)
    if one_each:  # a smaller last batch has a share below one, which rounding could take from it
        still_to_serve = np.maximum(len(sizes) - number - int(sizes[-1] == 1), 0)
        until = np.minimum(np.maximum(until, number), n_rare - still_to_serve)
    return np.diff(until, prepend=0)


def _shuffle(rows: np.ndarray, draw: Draw) -> np.ndarray:
    return rows[np.argsort(draw(len(rows)), kind="stable")]


def _choose(n_choices: np.ndarray, draw: Draw) -> np.ndarray:
    """For each count a number below it."""
    return (draw(len(n_choices)) % n_choices.astype(np.uint64)).astype(np.int64)


def _find_starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes
