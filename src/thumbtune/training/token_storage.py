"""Where tokenized rows lie: token ids one behind the other, in memory or in a mapped file.

Up to `TOKENS_IN_MEMORY` ids stay in memory. From there on they are written to a temporary file that has no name, so
that not even a crash leaves it behind, and are mapped from it: what is read often stays in memory as long as there
is room. It lies in Python's folder for temporary files: set TMPDIR where that is small or is itself in memory. What
stays in memory of each row is some 50 bytes: where its spans begin and end, its class, its weight, its place in the
data.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.plan import PlannedRow
from thumbtune.errors import DataError

TOKENS_IN_MEMORY = 64 * 2**20
"""How many token ids are kept in memory, at four bytes each, before they move to a file."""

_TOKENS_PER_WRITE = 2**20


@dataclass(frozen=True, eq=False)
class TokenizedRows:
    """Rows of one dataset as token ids. A row has one branch (a completion), or two (chosen, rejected)."""

    ids: np.ndarray  # (tokens,) int32
    starts: np.ndarray  # (rows, branches, 2) int64
    """Where in `ids` the prompt and the completion of each branch begin. Branches of a row share one prompt's ids."""
    lengths: np.ndarray  # (rows, branches, 2) int32
    labels: list[bool] | None
    """Class of each row, None for pairs."""
    weights: np.ndarray  # (rows,) float32
    """How much each row's loss counts."""
    where: Sequence[str]
    digest: str
    counts: Counter[str]
    """What was refused, cut or left over on the way, by reason."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def branches(self) -> Branches:
        """The branches of each row, `rows.branches[i][k]`, made as they are asked for: ids as lists of int."""
        return Branches(self)

    @property
    def prompt_lengths(self) -> np.ndarray:  # (rows,) int32
        """Prompt tokens of each row's first branch."""
        return self.lengths[:, 0, 0]

    @property
    def completion_lengths(self) -> np.ndarray:  # (rows, branches) int32
        return self.lengths[:, :, 1]

    @cached_property
    def prompt_keys(self) -> np.ndarray:  # (rows,) int64
        """Numbers from 0 by first appearance, equal exactly where the prompts' token ids are equal."""
        return number_spans(self.ids, self.starts[:, 0, 0], self.lengths[:, 0, 0])

    def digest_tokens(self) -> str:
        """SHA-256 over token ids, classes and weights: what text, template, tokenizer and truncation make together."""
        labels = None if self.labels is None else np.array(self.labels, dtype=np.uint8)
        digest = hashlib.sha256(repr((self.starts.shape, labels is None)).encode())
        for part in (self.ids, self.starts, self.lengths, labels, self.weights):
            if part is not None:
                digest.update(part.astype(part.dtype.newbyteorder("<"), copy=False).reshape(-1).data)
        return digest.hexdigest()

    def mismatched_branch(self, planned: PlannedRow) -> Branch:
        """The lender's completion under this row's prompt."""
        assert planned.mismatched_row is not None
        lender = self.branches[planned.mismatched_row][0]
        return Branch(self.branches[planned.row][0].prompt_ids, lender.completion_ids)


@dataclass(frozen=True)
class Branches(Sequence[tuple[Branch, ...]]):
    """A view of the rows as branches."""

    rows: TokenizedRows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> tuple[Branch, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Branch, ...]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        ids = self.rows.ids
        return tuple(
            Branch(
                ids[prompt : prompt + n_prompt].tolist(),
                ids[completion : completion + n_completion].tolist(),
            )
            for (prompt, completion), (n_prompt, n_completion) in zip(
                self.rows.starts[index].tolist(), self.rows.lengths[index].tolist(), strict=True
            )
        )


class RowsWriter:
    """Takes rows one at a time, and gives all of them as `TokenizedRows` in the end."""

    def __init__(self, *, branches_per_row: int, max_in_memory: int) -> None:
        self.labels: list[bool] = []
        self.where = Places()
        self._branches_per_row = branches_per_row
        self._ids = _IdsWriter(max_in_memory)
        self._starts = array("q")
        self._lengths = array("i")
        self._weights = array("f")

    def __len__(self) -> int:
        return len(self.where)

    def append(self, branches: Sequence[Branch], where: str, label: bool | None, weight: float = 1.0) -> None:
        """Add a row; `label` is None for pairs."""
        assert len(branches) == self._branches_per_row
        shared, shared_start = branches[0].prompt_ids, self._ids.n_tokens
        for number, branch in enumerate(branches):
            if number and branch.prompt_ids == shared:
                prompt_start = shared_start
            else:  # another prompt only where the two completions moved its boundary differently
                prompt_start = self._ids.append(branch.prompt_ids)
            self._starts.extend((prompt_start, self._ids.append(branch.completion_ids)))
            self._lengths.extend((len(branch.prompt_ids), len(branch.completion_ids)))
        if label is not None:
            self.labels.append(label)
        self._weights.append(weight)
        self.where.append(where)

    def finish(self, digest: str, counts: Counter[str]) -> TokenizedRows:
        """All rows; nothing can be added afterwards."""
        shape = (-1, self._branches_per_row, 2)
        return TokenizedRows(
            self._ids.finish(),
            np.frombuffer(self._starts, dtype=np.int64).reshape(shape),
            np.frombuffer(self._lengths, dtype=np.int32).reshape(shape),
            self.labels if self._branches_per_row == 1 else None,
            np.frombuffer(self._weights, dtype=np.float32),
            self.where,
            digest,
            counts,
        )


class Places(Sequence[str]):
    """Where rows stood: `thumbs.jsonl line 41` is kept as a pattern that many rows share, and a number."""

    _NUMBERED = re.compile(r"(.* (?:line|row) )(0|[1-9]\d{0,17})( chosen| rejected|)", re.DOTALL | re.ASCII)

    def __init__(self) -> None:
        self._numbers = array("q")  # −1 where the pattern is all
        self._pattern_of = array("i")
        self._patterns: dict[tuple[str, str], int] = {}
        self._listed: list[tuple[str, str]] = []

    def append(self, where: str) -> None:
        match = self._NUMBERED.fullmatch(where)
        pattern, number = ((match[1], match[3]), int(match[2])) if match else ((where, ""), -1)
        known = self._patterns.setdefault(pattern, len(self._listed))
        if known == len(self._listed):
            self._listed.append(pattern)
        self._pattern_of.append(known)
        self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        before, after = self._listed[self._pattern_of[index]]
        number = self._numbers[index]
        return f"{before}{number}{after}" if number >= 0 else before


class _IdsWriter:
    """Token ids one behind the other: in memory, and in a file from the moment that they are too many."""

    def __init__(self, max_in_memory: int) -> None:
        self.n_tokens = 0
        self._max_in_memory = max_in_memory
        self._waiting = array("i")
        self._file: Any = None

    def append(self, ids: Sequence[int]) -> int:
        """Add the ids, and say where they begin."""
        start = self.n_tokens
        self._waiting.extend(ids)
        self.n_tokens += len(ids)
        if len(self._waiting) > (self._max_in_memory if self._file is None else _TOKENS_PER_WRITE):
            self._write()
        return start

    def finish(self) -> np.ndarray:  # (tokens,) int32, read-only where it is mapped
        if self._file is None:
            return np.frombuffer(self._waiting, dtype=np.int32)
        self._write()
        with self._file:  # the mapping outlives it
            return np.asarray(np.memmap(self._file, dtype=np.int32, mode="r"))

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="thumbtune-tokens-")  # noqa: SIM115 - closed by finish
            self._waiting.tofile(self._file)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: the token ids cannot be written there ({error.strerror or error}): "
                f"make room for {4 * self.n_tokens / 1e9:.1f} GB and more, or set TMPDIR to another folder"
            ) from error
        del self._waiting[:]


def number_spans(
    ids: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    hash_bytes: Callable[[bytes], int] = hash,
) -> np.ndarray:  # (spans,) int64
    """Numbers from 0 by first appearance, equal exactly where two spans of `ids` are equal.

    Naive equivalent: a dict from each span's ids to its number. That would hold all distinct spans in memory; here
    spans are grouped by their hash, and each is compared with the first of its group.
    """

    def read(number: int) -> bytes:
        return ids[starts[number] : starts[number] + lengths[number]].tobytes()

    n_spans = len(starts)
    hashes = np.fromiter((hash_bytes(read(number)) for number in range(n_spans)), np.int64, n_spans)
    _, firsts, group = np.unique(hashes, return_index=True, return_inverse=True)
    first = firsts[group]  # of the spans with this hash
    clashing: dict[bytes, int] = {}
    for number in np.flatnonzero(first != np.arange(n_spans)).tolist():
        span = read(number)
        if span != read(first[number]):
            first[number] = clashing.setdefault(span, number)
    return np.unique(first, return_inverse=True)[1]
