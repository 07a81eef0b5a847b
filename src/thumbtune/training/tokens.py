"""Rows as token ids, however many: rows are parsed, tokenized and written away in chunks, none is kept as text.

    tokenize_rows(stream_dataset(dataset), tokenizer, config, paired=False)

is what a `datasets.Dataset` larger than memory takes; `Rows` that were read already are tokenized the same way. An
endless iterable comes as `windows`, each of which is a dataset of its own.

Guaranteed: chunks change nothing. Token ids, counts, digest and the refused row are those of row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from thumbtune.data import chat
from thumbtune.data.chat import Tokens
from thumbtune.data.formats import Rows, RowStream
from thumbtune.data.pairs import OVER_CAP, cap_pairs, keep_one_per_prompt, pair_thumbs, unpair
from thumbtune.data.rows import read_content
from thumbtune.data.tables import iterate_dataset
from thumbtune.engine.logprobs import Branch
from thumbtune.errors import DataError
from thumbtune.records import Example, Pair, Text
from thumbtune.training.token_storage import TOKENS_IN_MEMORY, RowsWriter, TokenizedRows

__all__ = ["TokenizedRows", "tokenize_rows", "windows"]

_ROWS_PER_CHUNK = 512
_CHARACTERS_PER_CHUNK = 2**20
"""Where rows are long, chunks are small: a token takes some hundred bytes on its way."""


def tokenize_rows(
    rows: Rows | RowStream,
    tokenizer: Any,
    config: Any,
    *,
    paired: bool,
    tokens_in_memory: int = TOKENS_IN_MEMORY,
) -> TokenizedRows:
    """Rows of either format as the method needs them: pairs are un-paired for KTO, thumbs are paired up for DPO.

    A stream is read to its end; what has to be paired up, or drawn prompt by prompt, is held in memory. Raises
    `DataError` where no row is left, and whatever the stream raises.
    """
    counts: Counter[str] = Counter()
    writer = RowsWriter(branches_per_row=2 if paired else 1, max_in_memory=tokens_in_memory)
    for chunk in _cut_chunks(_choose_records(rows, config, counts, paired)):
        for record, row in zip(chunk, _tokenize_chunk(tokenizer, chunk), strict=True):
            branches = _truncate_row(row, config, counts)
            if branches is None:
                counts["dropped: prompt fills max_length"] += 1
            else:
                label = record.label if isinstance(record, Example) else None
                writer.append(branches, record.where, label, record.weight)
    counts.update({f"refused: {reason}": n for reason, n in rows.refusals.by_reason.items()})
    if not len(writer):
        raise DataError(
            f"{rows.source}: no row is left, since every prompt fills max_length={config.max_length} tokens: "
            "raise max_length, or set max_prompt_length"
        )
    return writer.finish(rows.digest, counts)


def windows(
    dataset: Iterable[Mapping[str, Any]],
    rows_per_window: int,
    tokenizer: Any,
    config: Any,
    *,
    paired: bool,
    source: str = "train_dataset",
    label_map: Mapping[str, bool] | None = None,
) -> Iterator[TokenizedRows]:
    """An iterable of rows, cut into windows of so many that are tokenized one at a time; the last may be smaller.

    Strict, with rows counted from 0 over the whole iterable; all windows hold rows of one shape. Each window has its
    own digest and counts, and thumbs are paired up within a window only. Raises `DataError` as `tokenize_rows` does.
    """
    raw_rows = iterate_dataset(dataset, source)
    kind: type[Example] | type[Pair] | None = None
    is_first = True
    while (first := next(raw_rows, None)) is not None or is_first:
        window = chain([] if first is None else [first], islice(raw_rows, rows_per_window - 1))
        stream = RowStream(window, source, label_map, stop_at_first=True, kind=kind)
        yield tokenize_rows(stream, tokenizer, config, paired=paired)
        kind, is_first = stream.kind, False


def _choose_records(
    rows: Rows | RowStream, config: Any, counts: Counter[str], paired: bool
) -> Iterable[Example | Pair]:
    """The records that become rows, counting those that cannot be paired."""
    records = iter(rows if isinstance(rows, RowStream) else rows.examples or rows.pairs)
    first = next(records, None)
    records = chain([] if first is None else [first], records)
    if not paired:
        examples = (example for record in records for example in _list_branches(record))
        if not config.one_per_prompt:
            return examples
        kept, n_left = keep_one_per_prompt(examples, seed=config.seed)
        counts["left out: another completion of its prompt is taken"] += n_left
        return kept
    if isinstance(first, Pair):
        if config.max_pairs_per_prompt is None:
            return records
        pairs, n_left = cap_pairs(
            (record for record in records if isinstance(record, Pair)),
            config.max_pairs_per_prompt,
            seed=config.seed,
        )
        counts[f"left out: {OVER_CAP}"] += n_left
        return pairs
    found = pair_thumbs(
        [record for record in records if isinstance(record, Example)],
        max_pairs_per_prompt=config.max_pairs_per_prompt,
        seed=config.seed,
    )
    counts.update({f"not paired: {reason}": n for reason, n in found.left_over.items()})
    if not found.pairs:
        raise DataError(
            f"{rows.source}: no prompt has both a 👍 and a 👎, so the thumbs hold no pair for {config.method}: "
            "use --method kto, which learns from single thumbs, or collect more completions per prompt"
        )
    return found.pairs


def _list_branches(record: Example | Pair) -> list[Example]:
    return [record] if isinstance(record, Example) else unpair([record])


def _cut_chunks(records: Iterable[Example | Pair]) -> Iterator[list[Example | Pair]]:
    """Records in order, by as many as are tokenized at once: bounded in number and, but for the last one, in length."""
    chunk: list[Example | Pair] = []
    n_characters = 0
    for record in records:
        chunk.append(record)
        n_characters += _count_characters(record)
        if len(chunk) == _ROWS_PER_CHUNK or n_characters > _CHARACTERS_PER_CHUNK:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def _count_characters(record: Example | Pair) -> int:
    """About how much text the record renders to."""

    def count(text: Text) -> int:
        return len(text) if isinstance(text, str) else sum(len(read_content(message)) for message in text)

    if isinstance(record, Example):
        return 2 * count(record.prompt) + count(record.completion)
    return 4 * count(record.prompt) + count(record.chosen) + count(record.rejected)


def _tokenize_chunk(tokenizer: Any, chunk: list[Example | Pair]) -> list[list[Tokens]]:
    """Tokens of each record's branches. Raises `DataError` that names the first record that cannot be tokenized."""
    rows = [_list_branches(record) for record in chunk]
    try:
        tokens = iter(chat.tokenize_examples(tokenizer, list(chain.from_iterable(rows))))
        return [list(islice(tokens, len(row))) for row in rows]
    except DataError:  # once more, one by one: which of them is the first?
        return [
            [_tokenize_branch(tokenizer, example, record.where) for example in row]
            for record, row in zip(chunk, rows, strict=True)
        ]


def _tokenize_branch(tokenizer: Any, example: Example, where: str) -> Tokens:
    try:
        return chat.tokenize_example(tokenizer, example)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _truncate_row(row: list[Tokens], config: Any, counts: Counter[str]) -> list[Branch] | None:
    """The branches cut to fit, each cut counted; None where one of them does not fit."""
    branches = []
    for tokens in row:
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
    return branches
