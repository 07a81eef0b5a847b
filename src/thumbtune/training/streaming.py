"""Training on a stream of rows: window by window, each a small dataset of its own.

A window is tokenized, planned as an epoch, scored by the reference and trained; then the next one is read. So what is
in memory is one window, however long the stream is. A stream that can be read again starts anew when it ends.

Guaranteed: a resumed run trains the very batches of an unbroken one. It reads and tokenizes what was trained before,
since that decides where windows end, but scores none of it. A generator gives its rows once, so a run on one ends with
its rows. Not guaranteed: rows of one window meet rows of another in no batch, thumbs are paired up within a window, and
a window of one prompt alone, such as a last row, is left out where KTO needs completions of other prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from thumbtune.engine.plan import BatchPlan
from thumbtune.errors import ConfigError
from thumbtune.training.rows import Microbatch, PlannedBatch, ScoredRows, take_share
from thumbtune.training.tokens import TokenizedRows, windows

logger = logging.getLogger(__name__)

Score = Callable[[ScoredRows, BatchPlan, int], None]
"""Fills in a window's reference log-probs for one epoch of its plan."""


class StreamedRows(torch.utils.data.Dataset):
    """A stream, of which one window is in hand. It has no length."""

    def __init__(self, dataset: Any, tokenizer: Any, config: Any, *, paired: bool) -> None:
        self._dataset = dataset
        self._is_read_once = iter(dataset) is dataset
        self._tokenize = lambda rows: windows(
            rows, config.stream_window_rows, tokenizer, config, paired=paired, source="train_dataset"
        )
        reading = self._tokenize(self._dataset)
        self._begun: tuple[TokenizedRows, Iterator[TokenizedRows]] | None = (next(reading), reading)
        self._window = ScoredRows(self._begun[0])
        self._score: Callable[[], None] | None = None

    @property
    def rows(self) -> TokenizedRows:
        """The window in hand."""
        return self._window.rows

    def windows(self) -> Iterator[TokenizedRows]:
        """The windows from the stream's start, over and over; of a generator what is left of it."""
        n_passes = 0
        while True:
            if self._begun is not None:
                (first, reading), self._begun = self._begun, None
                yield first
                yield from reading
            elif self._is_read_once:
                logger.warning("train_dataset has ended: a generator gives its rows once")
                return
            else:
                yield from self._tokenize(self._dataset)
            n_passes += 1
            if hasattr(self._dataset, "set_epoch"):
                self._dataset.set_epoch(n_passes)

    def enter(self, window: ScoredRows, score: Callable[[], None]) -> None:
        """Take a window in hand; it is scored when its first batch is read."""
        self._window, self._score = window, score

    def __getitems__(self, batch: PlannedBatch) -> Microbatch:
        if self._score is not None:
            self._score()
            self._score = None
        return self._window.__getitems__(batch)


class StreamSampler(torch.utils.data.Sampler):
    """This rank's share of each batch, window after window."""

    def __init__(
        self,
        stream: StreamedRows,
        make_plan: Callable[[TokenizedRows], BatchPlan],
        score: Score,
        *,
        rank: int,
        world_size: int,
        drop_last: bool,
    ) -> None:
        self.stream, self.make_plan, self.score = stream, make_plan, score
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last

    def __iter__(self) -> Iterator[PlannedBatch]:
        for number, rows in enumerate(self.stream.windows()):
            plan, window = self.make_plan(rows), ScoredRows(rows)
            if plan.mismatched and len(set(rows.prompt_keys.tolist())) == 1:
                logger.warning(
                    "a window of %d rows of one prompt is left out: nobody lends them a completion", len(rows)
                )
                continue
            self.stream.enter(window, _bind(self.score, window, plan, number))
            lengths = window.lengths
            for planned in plan.batches(number):
                if len(planned) == plan.batch_size or not self.drop_last:
                    yield take_share(0, planned, lengths, self.rank, self.world_size)


class StreamLoader(torch.utils.data.DataLoader):
    """Batches of a stream, each read at once, in this process."""

    def __init__(self, stream: StreamedRows, sampler: StreamSampler, *, n_workers: int) -> None:
        if n_workers:
            raise ConfigError(
                f"dataloader_num_workers={n_workers}: a stream is read in the process that trains. Set it to 0"
            )
        super().__init__(stream, batch_sampler=sampler, collate_fn=_keep)


def _bind(score: Score, window: ScoredRows, plan: BatchPlan, number: int) -> Callable[[], None]:
    return lambda: score(window, plan, number)


def _keep(batch: Any) -> Any:
    return batch
