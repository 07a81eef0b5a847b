"""Which example meets which, in what batch: decided before training, from the seed alone.

Guaranteed for every epoch: rows are shuffled anew; each row appears once; the two classes are spread as evenly over
the batches as their numbers allow; each row's mismatched completion y′ comes from the same batch and from another
prompt. The same arguments give the same plan on every machine, so a resumed run meets the same batches.

Two cases fall short, and are counted rather than hidden: with fewer rows of one class than batches some batches are
one-sided, as a last batch of one row always is; where a batch holds one prompt only, y′ comes from another batch.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from thumbtune.errors import DataError


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row of one epoch: its index in the dataset, and the index of the row that lends its completion."""

    row: int
    mismatched_row: int | None = None


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batches of every epoch. `batch_size` counts rows over all microbatches and ranks of an optimizer step."""

    labels: tuple[bool, ...] | None
    """Class of each row, or None where rows are pairs."""
    prompt_keys: tuple[Hashable, ...]
    """Equal for rows with equal prompts."""
    batch_size: int
    seed: int
    mismatched: bool
    """Whether rows are lent another row's completion."""

    def __len__(self) -> int:
        return len(self.prompt_keys)

    def epoch(self, epoch: int) -> list[list[PlannedRow]]:
        """The batches of one epoch, in order."""
        rng = random.Random(f"{self.seed}/{epoch}")
        batches = _deal_batches(len(self), self.labels, self.batch_size, rng)
        if not self.mismatched:
            return [[PlannedRow(row) for row in batch] for batch in batches]
        return [self._lend_completions(batch, rng) for batch in batches]

    def rows(self, epoch: int) -> Iterator[PlannedRow]:
        """The rows of one epoch, batch after batch."""
        for batch in self.epoch(epoch):
            yield from batch

    def count_one_sided(self, epoch: int = 0) -> int:
        """How many batches of an epoch hold one class only."""
        if self.labels is None:
            return 0
        labels = self.labels
        return sum(len({labels[planned.row] for planned in batch}) == 1 for batch in self.epoch(epoch))

    def digest(self, epochs: int) -> str:
        """SHA-256 over the rows and their mismatched rows of the first epochs."""
        digest = hashlib.sha256()
        for epoch in range(epochs):
            for batch in self.epoch(epoch):
                digest.update(repr([(p.row, p.mismatched_row) for p in batch]).encode())
        return digest.hexdigest()

    def _lend_completions(self, batch: list[int], rng: random.Random) -> list[PlannedRow]:
        lender = match_other_prompts([self.prompt_keys[row] for row in batch], rng)
        if lender is not None:
            return [PlannedRow(row, batch[lend]) for row, lend in zip(batch, lender, strict=True)]
        key = self.prompt_keys[batch[0]]
        others = [row for row, other in enumerate(self.prompt_keys) if other != key]
        if not others:
            raise DataError(
                "all rows share one prompt, so no completion of another prompt can estimate KTO's reference point: "
                "add rows with other prompts, or give thresholds with loss_type='kto_thresholds'"
            )
        return [PlannedRow(row, rng.choice(others)) for row in batch]


def match_other_prompts(keys: Sequence[Hashable], rng: random.Random) -> list[int] | None:
    """For each row of a batch, the position of a row with another prompt that lends its completion.

    Each completion is lent once where that is possible: rows are lined up prompt by prompt and shifted by the size
    of the largest group, so nobody meets their own. If one prompt fills more than half of the batch, its rows share
    the others' completions. None where the batch holds a single prompt.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for position in rng.sample(range(len(keys)), len(keys)):
        groups[keys[position]].append(position)
    if len(groups) < 2:
        return None
    line = [position for group in groups.values() for position in group]
    shift = max(len(group) for group in groups.values())
    lender = [-1] * len(keys)
    for index, position in enumerate(line):
        lender[position] = line[(index + shift) % len(line)]
    for position, lend in enumerate(lender):
        if keys[position] == keys[lend]:
            lender[position] = rng.choice([other for other in line if keys[other] != keys[position]])
    return lender


def _deal_batches(
    n_rows: int, labels: Sequence[bool] | None, batch_size: int, rng: random.Random
) -> list[list[int]]:
    """Shuffle and deal rows into batches of `batch_size` (the last may be smaller), classes spread evenly."""
    sizes = [min(batch_size, n_rows - start) for start in range(0, n_rows, batch_size)]
    if labels is None:
        order = rng.sample(range(n_rows), n_rows)
        return [order[start : start + batch_size] for start in range(0, n_rows, batch_size)]
    classes = [[row for row in range(n_rows) if labels[row] is wanted] for wanted in (True, False)]
    for members in classes:
        rng.shuffle(members)
    rare, common = sorted(classes, key=len)
    one_each = len(rare) >= len(sizes)
    # Each batch's fair share of the rare class, by cumulated rounding; a random start keeps the luck of rounding even.
    start = rng.random()
    dealt_rows, dealt_rare, batches = 0, 0, []
    for number, size in enumerate(sizes, start=1):
        dealt_rows += size
        until = int(len(rare) * dealt_rows / n_rows + start) if dealt_rows < n_rows else len(rare)
        if one_each:  # a smaller last batch has a share below one, which rounding could take from it
            still_to_serve = max(len(sizes) - number - (sizes[-1] == 1), 0)
            until = min(max(until, number), len(rare) - still_to_serve)
        take = min(max(until - dealt_rare, 0), size, len(rare) - dealt_rare)
        take = max(take, size - len(common))
        batch = rare[dealt_rare : dealt_rare + take] + [common.pop() for _ in range(size - take)]
        dealt_rare += take
        rng.shuffle(batch)
        batches.append(batch)
    return batches
