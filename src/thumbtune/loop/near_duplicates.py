"""Rows that say nearly the same: MinHash signatures in bands (Broder 1997), by the library `rensa`.

Signatures are seeded and rows come in the order of their digests, so the same rows lose on every machine and backend.
A row is dropped where an earlier one of its label that was kept is similar enough; two labels are no duplicates.
Chance enters once: a pair right at the threshold may be seen as just above or below it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

N_HASHES = 64
SEED = 42
WORDS = 3
"""Words in a shingle: two texts are as similar as the share of their word triples that they have in common."""
BATCH = 4_096


def find_near_duplicates(rows: Iterable[tuple[int, bool, str]], threshold: float) -> list[int]:
    """Numbers of the rows `(number, label, text)` that an earlier row of their label makes redundant."""
    kept = {label: _make_index(threshold) for label in (False, True)}
    dropped = []
    for label, numbers, shingles in _batch_by_label(rows):
        entries = [(str(number), words) for number, words in zip(numbers, shingles, strict=True)]
        for number, was_new in zip(numbers, kept[label].add_pairs(entries), strict=True):
            if not was_new:
                dropped.append(number)
    return dropped


def cut_shingles(text: str) -> list[str]:
    """The distinct runs of three words of a text; a shorter text is one shingle. Case counts."""
    words = unicodedata.normalize("NFC", text).split()
    if len(words) <= WORDS:
        return [" ".join(words)]
    return list({" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)})


def _make_index(threshold: float) -> Any:
    from rensa import RMinHashDeduplicator

    return RMinHashDeduplicator(
        threshold, N_HASHES, use_lsh=True, num_bands=_choose_bands(threshold), seed=SEED
    )


def _choose_bands(threshold: float) -> int:
    """As many rows to a band as still find nine of ten pairs at the threshold: 1 - (1 - s^r)^b at s = threshold."""
    for n_bands in (4, 8, 16, 32):
        if 1 - (1 - threshold ** (N_HASHES // n_bands)) ** n_bands >= 0.9:
            return n_bands
    return N_HASHES


def _batch_by_label(
    rows: Iterable[tuple[int, bool, str]],
) -> Iterator[tuple[bool, list[int], list[list[str]]]]:
    waiting: dict[bool, tuple[list[int], list[list[str]]]] = {False: ([], []), True: ([], [])}
    for number, label, text in rows:
        numbers, shingles = waiting[label]
        numbers.append(number)
        shingles.append(cut_shingles(text))
        if len(numbers) == BATCH:
            yield label, numbers, shingles
            waiting[label] = ([], [])
    for label, (numbers, shingles) in waiting.items():
        if numbers:
            yield label, numbers, shingles
