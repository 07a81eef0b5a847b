"""From planned rows to what one optimizer step sees: a batch, its share on each rank, its cut into microbatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.plan import BatchPlan, PlannedRow
from thumbtune.training.tokens import TokenizedRows


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """The rows of one optimizer step that this rank trains."""

    epoch: int
    rows: list[PlannedRow]
    n_counted: int
    """How many of them count: a rank without rows runs one that does not, since others wait for it."""
    n_total: int
    """Rows of the batch over all ranks."""


_TENSORS = (
    "desirable",
    "reference",
    "counted",
    "weights",
    "mismatched_reference",
    "reference_point",
    "mean_chosen_tokens",
)


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Rows of one forward, or of a whole batch before it is cut."""

    rows: tuple[int, ...]
    """Places in the dataset."""
    branches: tuple[tuple[Branch, ...], ...]
    desirable: Tensor  # (rows,) bool
    reference: Tensor  # (rows, branches per row) float32, nats
    counted: Tensor  # (rows,) bool: False for a row that only keeps step with other ranks
    weights: Tensor  # (rows,) float32, > 0: how much each row's loss counts
    mismatched: tuple[Branch, ...] = ()
    """The lent completion under each row's prompt."""
    mismatched_reference: Tensor | None = None  # (rows,) float32, nats
    reference_point: Tensor | None = None  # () float32, nats
    mean_chosen_tokens: Tensor | None = None  # () float32, over the chosen completions of the whole batch
    n_total: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def flat_branches(self) -> list[Branch]:
        """All first branches, then all second ones."""
        return [branch for column in zip(*self.branches, strict=True) for branch in column]

    def count_tokens(self) -> int:
        """Tokens of prompts and completions, branch by branch."""
        return sum(
            len(branch.prompt_ids) + len(branch.completion_ids)
            for row, counts in zip(self.branches, self.counted.tolist(), strict=True)
            for branch in row
            if counts
        )

    def count_chosen_tokens(self) -> int:
        """Completion tokens of the first branches."""
        counts = self.counted.tolist()
        return sum(len(row[0].completion_ids) for row, c in zip(self.branches, counts, strict=True) if c)

    def without_reference(self) -> Microbatch:
        """Log ratios of this batch are log-probs."""
        lent = self.mismatched_reference
        return replace(
            self,
            reference=torch.zeros_like(self.reference),
            mismatched_reference=None if lent is None else torch.zeros_like(lent),
        )

    def select(self, places: Sequence[int]) -> Microbatch:
        """The rows at these places."""
        index = torch.tensor(places, dtype=torch.long)
        lent = self.mismatched_reference
        return replace(
            self,
            rows=tuple(self.rows[i] for i in places),
            branches=tuple(self.branches[i] for i in places),
            desirable=self.desirable[index],
            reference=self.reference[index],
            counted=self.counted[index],
            weights=self.weights[index],
            mismatched=tuple(self.mismatched[i] for i in places) if self.mismatched else (),
            mismatched_reference=None if lent is None else lent[index],
        )

    def keep_step(self) -> Microbatch:
        """The shortest row, and it does not count: for a rank that has fewer microbatches than another."""
        sizes = [sum(len(ids) for branch in row for ids in branch) for row in self.branches]
        shortest = self.select([sizes.index(min(sizes))])
        return replace(shortest, counted=torch.zeros_like(shortest.counted))

    def to(self, device: torch.device) -> Microbatch:
        moved = {name: tensor.to(device) for name in _TENSORS if (tensor := getattr(self, name)) is not None}
        return replace(self, **moved)


@dataclass(slots=True)
class ScoredRows(torch.utils.data.Dataset):
    """Tokenized rows with their reference log-probs."""

    rows: TokenizedRows
    log_probs: Tensor | None = None
    """(rows, branches per row) reference log-probs, nats."""
    mismatched_log_probs: Tensor | None = None
    """(epochs, rows) reference log-prob of each row's lent completion; NaN where the plan has none.

    What is read ahead behind the last step has none: it is never trained, and would stop the run if it were.
    """

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row, all its branches together."""
        return self.rows.prompt_lengths + self.rows.completion_lengths.sum(-1)

    def __getitems__(self, batch: PlannedBatch) -> Microbatch:
        """A whole batch at once, as torch's loader asks for it."""
        rows = [planned.row for planned in batch.rows]
        labels = self.rows.labels
        lends = batch.rows[0].mismatched_row is not None
        return Microbatch(
            rows=tuple(rows),
            branches=tuple(self.rows.branches[row] for row in rows),
            desirable=torch.tensor([True if labels is None else bool(labels[row]) for row in rows]),
            reference=self._read_own(rows),
            counted=torch.arange(len(rows)) < batch.n_counted,
            weights=torch.from_numpy(self.rows.weights[rows]),
            mismatched=tuple(self.rows.mismatched_branch(p) for p in batch.rows) if lends else (),
            mismatched_reference=self._read_lent(batch.epoch, rows) if lends else None,
            n_total=batch.n_total,
        )

    def _read_own(self, rows: list[int]) -> Tensor:
        if self.log_probs is None:  # a reference that moves scores each batch when it is met
            n_branches = self.rows.completion_lengths.shape[1]
            return torch.full((len(rows), n_branches), torch.nan)
        return self.log_probs[rows]

    def _read_lent(self, epoch: int, rows: list[int]) -> Tensor:
        held = self.mismatched_log_probs
        if held is None or epoch >= len(held):
            return torch.full((len(rows),), torch.nan)
        return held[epoch, rows]


class PlanSampler(torch.utils.data.Sampler):
    """This rank's share of the plan's batches of the current epoch, one after another."""

    def __init__(
        self,
        plan: BatchPlan,
        lengths: Sequence[int],
        rank: int = 0,
        world_size: int = 1,
        *,
        drop_last: bool = False,
    ) -> None:
        self.plan, self.lengths, self.rank, self.world_size = plan, lengths, rank, world_size
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.plan), self.plan.batch_size)
        return whole + int(rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[PlannedBatch]:
        for rows in islice(self.plan.batches(self.epoch), len(self)):
            yield take_share(self.epoch, rows, self.lengths, self.rank, self.world_size)


def take_share(
    epoch: int, rows: list[PlannedRow], lengths: Sequence[int], rank: int, world_size: int
) -> PlannedBatch:
    """One rank's rows of a batch: as many as on every other rank, give or take one, and about as many tokens."""
    if world_size == 1:
        return PlannedBatch(epoch, rows, len(rows), len(rows))
    longest_first = sorted(rows, key=lambda planned: (-int(lengths[planned.row]), planned.row))
    there_and_back = [*range(world_size), *reversed(range(world_size))]
    mine = [p for i, p in enumerate(longest_first) if there_and_back[i % len(there_and_back)] == rank]
    return PlannedBatch(epoch, mine or longest_first[:1], len(mine), len(rows))


class PlanLoader(torch.utils.data.DataLoader):
    """Batches by a `PlanSampler`, each read at once."""

    def __init__(self, dataset: ScoredRows, sampler: PlanSampler, **kwargs: Any) -> None:
        super().__init__(dataset, batch_sampler=sampler, collate_fn=_keep, **kwargs)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def _keep(batch: Any) -> Any:
    return batch
