"""Rows ready for training: token ids, class and prompt of each, and what was cut or dropped on the way."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thumbtune.data import chat
from thumbtune.data.formats import Rows
from thumbtune.data.pairs import pair_thumbs, unpair
from thumbtune.engine.logprobs import Branch, pad_branches
from thumbtune.engine.plan import BatchPlan, PlannedRow
from thumbtune.errors import DataError
from thumbtune.records import Example, Pair


@dataclass(slots=True)
class TokenizedRows:
    """Rows of one dataset as token ids. A row has one branch (a completion), or two (chosen, rejected)."""

    branches: list[tuple[Branch, ...]]
    labels: list[bool] | None
    """Class of each row, None for pairs."""
    where: list[str]
    digest: str
    counts: Counter[str] = field(default_factory=Counter)
    """What was refused, cut or left over on the way, by reason."""

    def __len__(self) -> int:
        return len(self.branches)

    @property
    def prompt_keys(self) -> list[tuple[int, ...]]:
        return [tuple(row[0].prompt_ids) for row in self.branches]

    def digest_tokens(self) -> str:
        """SHA-256 over the token ids and classes: what text, template, tokenizer and truncation make together."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for row in self.branches:
            for branch in row:
                digest.update(repr((list(branch.prompt_ids), list(branch.completion_ids))).encode())
        return digest.hexdigest()

    def mismatched_branch(self, planned: PlannedRow) -> Branch:
        """The lender's completion under this row's prompt."""
        assert planned.mismatched_row is not None
        lender = self.branches[planned.mismatched_row][0]
        return Branch(self.branches[planned.row][0].prompt_ids, lender.completion_ids)


def tokenize_rows(rows: Rows, tokenizer: Any, config: Any, *, paired: bool) -> TokenizedRows:
    """Rows of either format as the method needs them: pairs are un-paired for KTO, thumbs are paired up for DPO."""
    counts: Counter[str] = Counter({f"refused: {reason}": n for reason, n in rows.refusals.by_reason.items()})
    records: Sequence[Example | Pair]
    if paired and rows.pairs:
        records = rows.pairs
    elif paired:
        found = pair_thumbs(rows.examples, seed=config.seed)
        counts.update({f"not paired: {reason}": n for reason, n in found.left_over.items()})
        records = found.pairs
        if not records:
            raise DataError(
                f"{rows.source}: no prompt has both a 👍 and a 👎, so the thumbs hold no pair for {config.method}: "
                "use --method kto, which learns from single thumbs, or collect more completions per prompt"
            )
    else:
        records = rows.examples or unpair(rows.pairs)
    result = TokenizedRows([], None if paired else [], [], rows.digest, counts)
    for record in records:
        branches = _tokenize_record(record, tokenizer, config, counts)
        if branches is None:
            counts["dropped: prompt fills max_length"] += 1
            continue
        result.branches.append(branches)
        result.where.append(record.where)
        if result.labels is not None and isinstance(record, Example):
            result.labels.append(record.label)
    if not result.branches:
        raise DataError(
            f"{rows.source}: no row is left, since every prompt fills max_length={config.max_length} tokens: "
            "raise max_length, or set max_prompt_length"
        )
    return result


def _tokenize_record(
    record: Example | Pair, tokenizer: Any, config: Any, counts: Counter[str]
) -> tuple[Branch, ...] | None:
    branches = []
    for example in [record] if isinstance(record, Example) else unpair([record]):
        try:
            tokens = chat.tokenize_example(tokenizer, example)
        except DataError as error:
            raise DataError(f"{record.where}: {error}") from error
        cut = chat.truncate(
            tokens,
            max_length=config.max_length,
            max_prompt_length=config.max_prompt_length,
            truncation=config.truncation,
        )
        if cut is None:
            return None
        counts["cut: prompt"] += cut.prompt_cut > 0
        counts["cut: completion"] += cut.completion_cut > 0
        counts["boundary moved"] += cut.boundary_moved
        branches.append(Branch(cut.prompt_ids, cut.completion_ids))
    return tuple(branches)


@dataclass(slots=True)
class ScoredRows(torch.utils.data.Dataset):
    """Tokenized rows with their reference log-probs; indexed by `PlannedRow`."""

    rows: TokenizedRows
    log_probs: Tensor | None = None
    """(rows, branches per row) reference log-probs, nats."""
    mismatched_log_probs: dict[tuple[int, int], float] = field(default_factory=dict)
    """Reference log-prob of each (row, mismatched row) that the plan brings together."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, planned: PlannedRow) -> dict[str, Any]:
        assert self.log_probs is not None, "the reference pass comes first"
        item: dict[str, Any] = {
            "row": planned.row,
            "branches": self.rows.branches[planned.row],
            "label": self.rows.labels[planned.row] if self.rows.labels is not None else True,
            "reference": self.log_probs[planned.row],
        }
        if planned.mismatched_row is not None:
            item["mismatched"] = self.rows.mismatched_branch(planned)
            # NaN for what is read ahead behind the last step: it is never trained, and would stop the run if it were
            pair = planned.row, planned.mismatched_row
            item["mismatched_reference"] = self.mismatched_log_probs.get(pair, math.nan)
        return item


@dataclass(slots=True)
class Collator:
    """Rows to padded tensors. Branches are stacked as all first branches, then all second ones."""

    pad_token_id: int

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        n_branches = len(items[0]["branches"])
        branches = [item["branches"][k] for k in range(n_branches) for item in items]
        labels = torch.tensor([item["label"] for item in items])
        batch = {
            **pad_branches(branches, self.pad_token_id),
            "row": torch.tensor([item["row"] for item in items]),
            "desirable": torch.cat([labels, ~labels]) if n_branches == 2 else labels,
            "reference": torch.stack([item["reference"] for item in items]).T.flatten(),
        }
        if "mismatched" in items[0]:
            padded = pad_branches([item["mismatched"] for item in items], self.pad_token_id)
            batch |= {f"mismatched_{name}": tensor for name, tensor in padded.items()}
            batch["mismatched_reference"] = torch.tensor([item["mismatched_reference"] for item in items])
        return batch


class PlanSampler(torch.utils.data.Sampler):
    """The plan's rows of the current epoch, batch after batch."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[PlannedRow]:
        return self.plan.rows(self.epoch)
