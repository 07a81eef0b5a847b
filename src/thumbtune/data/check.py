"""What a file of thumbs holds, before anything is trained on it: balance, lengths, doubles, and what would be cut.

Nothing is changed here. Paired rows are looked at as the thumbs that they stand for.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from thumbtune.data.chat import Tokens, TruncationSide, tokenize_example, truncate
from thumbtune.data.formats import Rows
from thumbtune.data.pairs import key_prompt, pair_thumbs, unpair
from thumbtune.data.rows import read_content
from thumbtune.errors import ConfigError, DataError
from thumbtune.preference.class_weights import recommend_class_weights
from thumbtune.records import Example, Text, text_key

Watch = Callable[[Sequence[Example]], Iterable[Example]]
"""Hands the examples through while it shows how far they are, as `rich.progress.track` does."""

MESSAGES_KEPT = 3


@dataclass(frozen=True)
class Lengths:
    """Percentiles by nearest rank, in the unit that `DataCheck.length_unit` names."""

    p50: int
    p90: int
    p99: int
    max: int


@dataclass
class Cuts:
    """What fitting the rows to `max_length` and `max_prompt_length` takes away; all zero where all fits."""

    rows_prompt_cut: int = 0
    rows_completion_cut: int = 0
    rows_dropped: int = 0
    """Rows of whose completion nothing would be left."""
    prompt_tokens_cut: int = 0
    completion_tokens_cut: int = 0
    """Of the rows that stay."""

    def add(self, tokens: Tokens | None) -> None:
        """Count one truncated row; None is a dropped one."""
        if tokens is None:
            self.rows_dropped += 1
            return
        self.rows_prompt_cut += bool(tokens.prompt_cut)
        self.rows_completion_cut += bool(tokens.completion_cut)
        self.prompt_tokens_cut += tokens.prompt_cut
        self.completion_tokens_cut += tokens.completion_cut


@dataclass
class DataCheck:
    """The numbers of one file of thumbs. Counts are of accepted rows unless they say otherwise."""

    source: str
    kind: Literal["unpaired", "paired"]
    digest: str
    n_read: int
    n_rows: int
    n_refused: int
    n_desirable: int
    """Thumbs-up; for paired rows the chosen completions."""
    n_undesirable: int
    n_prompts: int
    """Prompts that differ in text, tools or template arguments."""
    n_prompts_with_both: int
    """Prompts that have 👍 and 👎."""
    n_pairs: int
    """Pairs that the thumbs contain, each thumb used once (see `pair_thumbs`); for paired rows their number."""
    n_duplicates: int
    """Rows that say what an earlier row said: same prompt, completion and label, or same pair."""
    n_contradictions: int
    """Completions of one prompt, counted once each, that carry both labels."""
    desirable_weight: float
    undesirable_weight: float
    """The weights that `recommend_class_weights` gives for these counts."""
    length_unit: Literal["tokens", "words"]
    prompt_lengths: Lengths | None
    completion_lengths: Lengths | None
    cuts: Cuts | None = None
    """None without a tokenizer or without a limit."""
    n_unrendered: int = 0
    """Rows that the chat template refuses or renders to nothing."""
    n_boundary_moved: int = 0
    """Rows whose prompt alone renders differently from the prompt in front of its completion."""
    unrendered_messages: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every field under its name."""
        return dataclasses.asdict(self)


def check_rows(
    rows: Rows,
    *,
    tokenizer: Any = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    truncation: TruncationSide = "keep_end",
    watch: Watch = iter,
) -> DataCheck:
    """Count what the rows hold; with a tokenizer lengths are tokens, else words.

    Limits are in tokens, so they need a tokenizer: `ConfigError` without one, and if one is below 1. A
    tokenizer without a chat template raises `ConfigError` on chat messages; a single row that cannot be
    rendered is counted.
    """
    _check_limits(tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    examples = unpair(rows.pairs) if rows.pairs else rows.examples
    n_desirable = sum(example.label for example in examples)
    labels_of, seen = _group_labels(examples), _count_rows(rows)
    classes_of: dict[str, set[bool]] = defaultdict(set)
    for (prompt, _), labels in labels_of.items():
        classes_of[prompt] |= labels
    weights = recommend_class_weights(n_desirable, len(examples) - n_desirable)
    check = DataCheck(
        source=rows.source,
        kind=rows.kind,
        digest=rows.digest,
        n_read=rows.n_read,
        n_rows=len(rows.examples) + len(rows.pairs),
        n_refused=rows.refusals.total,
        n_desirable=n_desirable,
        n_undesirable=len(examples) - n_desirable,
        n_prompts=len(classes_of),
        n_prompts_with_both=sum(len(labels) == 2 for labels in classes_of.values()),
        n_pairs=len(rows.pairs) or len(pair_thumbs(rows.examples).pairs),
        n_duplicates=seen.total() - len(seen),
        n_contradictions=sum(len(labels) == 2 for labels in labels_of.values()),
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        length_unit="words" if tokenizer is None else "tokens",
        prompt_lengths=None,
        completion_lengths=None,
    )
    if tokenizer is None:
        check.prompt_lengths = measure_lengths([_count_words(example.prompt) for example in examples])
        check.completion_lengths = measure_lengths([_count_words(example.completion) for example in examples])
        return check
    if max_length is not None or max_prompt_length is not None:
        check.cuts = Cuts()
    prompts, completions = [], []
    for example in watch(examples):
        tokens = _tokenize_counting(tokenizer, example, check)
        if tokens is None:
            continue
        prompts.append(len(tokens.prompt_ids))
        completions.append(len(tokens.completion_ids))
        check.n_boundary_moved += tokens.boundary_moved
        if check.cuts is not None:
            check.cuts.add(
                truncate(
                    tokens, max_length=max_length, max_prompt_length=max_prompt_length, truncation=truncation
                )
            )
    check.prompt_lengths, check.completion_lengths = measure_lengths(prompts), measure_lengths(completions)
    return check


def measure_lengths(lengths: Sequence[int]) -> Lengths | None:
    """Median, 90th and 99th percentile by nearest rank, and maximum; None of nothing."""
    if not lengths:
        return None
    ordered = sorted(lengths)
    p50, p90, p99 = (ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] for percent in (50, 90, 99))
    return Lengths(p50, p90, p99, ordered[-1])


def _check_limits(tokenizer: Any, **limits: int | None) -> None:
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} is {limit}: expected at least 1 token, or None for no limit")
        if limit is not None and tokenizer is None:
            raise ConfigError(f"{name} counts tokens: name the model whose tokenizer counts them (--model)")


def _group_labels(examples: Iterable[Example]) -> dict[tuple[str, str], set[bool]]:
    labels_of: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for example in examples:
        labels_of[key_prompt(example), text_key(example.completion)].add(example.label)
    return labels_of


def _count_rows(rows: Rows) -> Counter[tuple[str, str, str]]:
    said = Counter((key_prompt(row), text_key(row.completion), str(row.label)) for row in rows.examples)
    said.update((key_prompt(row), text_key(row.chosen), text_key(row.rejected)) for row in rows.pairs)
    return said


def _count_words(text: Text) -> int:
    if isinstance(text, str):
        return len(text.split())
    return sum(len(read_content(message).split()) for message in text)


def _tokenize_counting(tokenizer: Any, example: Example, check: DataCheck) -> Tokens | None:
    from jinja2 import TemplateError

    try:
        return tokenize_example(tokenizer, example)
    except (DataError, TemplateError) as error:
        check.n_unrendered += 1
        if len(check.unrendered_messages) < MESSAGES_KEPT:
            check.unrendered_messages.append(f"{example.where}: {error}")
        return None
