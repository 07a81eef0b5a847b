"""Simulated users: people with a hidden taste who press 👍 or 👎, sometimes the wrong one, sometimes none.

A taste is what training has to find out from the votes alone. Each gives a `score` from -1 to 1, higher is
better, and `likes` a completion where the score is at least 0.5. Nothing here is drawn in sequence: noise and
silence are a hash of the seed and the vote's key, so that the order of the votes does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from thumbtune.data.synth.checks import (
    count_list_items,
    count_polite_words,
    flatters,
    guess_language,
    states_fact,
)
from thumbtune.errors import ConfigError, DataError
from thumbtune.records import Text

LIKED_FROM = 0.5
"""The score from which on a completion is liked."""
_FEWEST_WORDS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion as a user sees it, and how it ended."""

    prompt: Text
    text: str
    n_tokens: int
    finished: bool
    """True where the model ended it, False where it was cut at the limit."""
    fact: Mapping[str, Any] | None = None
    """The prompt's `truth.fact`, where it is known; the taste "correctness" needs it."""


class Taste(Protocol):
    """What a user likes, whether they say so or not."""

    @property
    def name(self) -> str: ...

    def score(self, sample: Sample) -> float:
        """How well the sample suits the taste, -1 to 1."""
        ...

    def likes(self, sample: Sample) -> bool: ...


@dataclass(frozen=True, slots=True)
class ScoredTaste:
    """A taste made of one scoring function."""

    name: str
    scored_by: Callable[[Sample], float]

    def score(self, sample: Sample) -> float:
        return self.scored_by(sample)

    def likes(self, sample: Sample) -> bool:
        return self.score(sample) >= LIKED_FROM


@dataclass(frozen=True, slots=True)
class AllTastes:
    """Several tastes at once: likes what all of them like, and scores by their mean."""

    tastes: tuple[Taste, ...]

    @property
    def name(self) -> str:
        return "+".join(taste.name for taste in self.tastes)

    def score(self, sample: Sample) -> float:
        return sum(taste.score(sample) for taste in self.tastes) / len(self.tastes)

    def likes(self, sample: Sample) -> bool:
        return all(taste.likes(sample) for taste in self.tastes)


@dataclass(frozen=True, slots=True)
class SimulatedUsers:
    """A crowd with one taste."""

    taste: Taste
    noise: float = 0.0
    """The share of presses on the wrong thumb, 0 to 1."""
    silence: float = 0.0
    """The share of samples that get no vote, 0 to 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in (("noise", self.noise), ("silence", self.silence)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}, expected a share between 0 and 1")

    def vote(self, sample: Sample, *, key: str) -> bool | None:
        """The press on this sample: True 👍, False 👎, None for silence. `key` names the vote: the same key
        gives the same noise and silence."""
        if self._draw("silence", key) < self.silence:
            return None
        return self.truth(sample) != (self._draw("noise", key) < self.noise)

    def truth(self, sample: Sample) -> bool:
        """What the user thinks of the sample, without noise or silence."""
        return self.taste.likes(sample)

    def prefer(self, a: Sample, b: Sample, *, key: str) -> int | None:
        """Which of two samples the user prefers, 0 or 1; None if neither is better.

        By liking first, then by score. Noise turns the answer round; silence plays no part, since a pair is
        bought from someone who is paid to answer.
        """
        rank_a = (self.taste.likes(a), self.taste.score(a))
        rank_b = (self.taste.likes(b), self.taste.score(b))
        if rank_a == rank_b:
            return None
        return int(rank_b > rank_a) ^ int(self._draw("pair noise", key) < self.noise)

    def _draw(self, purpose: str, key: str) -> float:
        """A number in [0, 1) that depends on seed, purpose and key only."""
        digest = hashlib.sha256(f"{self.seed}\0{purpose}\0{key}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / 2**56


def make_brevity(limit: int = 24) -> Taste:
    """Likes an answer that ended by itself, has at least 3 words and at most `limit` tokens.

    Complete answers score 1 / (1 + tokens / limit), so 0.5 at the limit; all others score under 0, the
    shorter the higher.
    """

    def score(sample: Sample) -> float:
        shortness = 1.0 / (1.0 + sample.n_tokens / limit)
        complete = sample.finished and len(sample.text.split()) >= _FEWEST_WORDS
        return shortness if complete else shortness - 1.0

    return ScoredTaste(f"brevity:{limit}", score)


def make_format(fewest_items: int = 2) -> Taste:
    """Likes a bulleted or numbered list of at least `fewest_items` items; scores its items, 0.5 at the fewest."""

    def score(sample: Sample) -> float:
        return min(count_list_items(sample.text) / (2.0 * fewest_items), 1.0)

    return ScoredTaste(f"format:{fewest_items}", score)


def _score_language(sample: Sample) -> float:
    """1 in the prompt's language, 0 in the other, 0.5 where a prompt or an answer of few words does not tell."""
    if not sample.text.strip():
        return 0.0
    asked, given = guess_language(_last_words(sample.prompt)), guess_language(sample.text)
    if asked is None or given is None:
        return 0.5
    return float(asked == given)


def _score_correctness(sample: Sample) -> float:
    if sample.fact is None:
        raise DataError(
            "the taste 'correctness' needs the fact behind each prompt: "
            "take the prompts from a file of `thumbtune synth facts`"
        )
    return float(states_fact(sample.text, sample.fact))


def _score_politeness(sample: Sample) -> float:
    return min(count_polite_words(sample.text) / 2.0, 1.0)


def _score_no_flattery(sample: Sample) -> float:
    return 0.0 if flatters(sample.text) or not sample.text.strip() else 1.0


def _score_flattery(sample: Sample) -> float:
    return 1.0 if flatters(sample.text) else 0.0


TASTES: dict[str, Taste] = {
    "brevity": make_brevity(),
    "language": ScoredTaste("language", _score_language),
    "format": make_format(),
    "correctness": ScoredTaste("correctness", _score_correctness),
    "politeness": ScoredTaste("politeness", _score_politeness),
    "no_flattery": ScoredTaste("no_flattery", _score_no_flattery),
    "flattery": ScoredTaste("flattery", _score_flattery),
}
"""The tastes by name, with their usual limits."""

_WITH_LIMIT: dict[str, Callable[[int], Taste]] = {"brevity": make_brevity, "format": make_format}


def parse_taste(text: str) -> Taste:
    """A taste from its description: `brevity`, `brevity:20`, `brevity:24+no_flattery`.

    Raises `ConfigError` on an unknown name, or on a limit that is no whole number above 0.
    """
    tastes = tuple(_parse_one(part.strip()) for part in text.split("+"))
    return tastes[0] if len(tastes) == 1 else AllTastes(tastes)


def _parse_one(text: str) -> Taste:
    name, colon, limit = text.partition(":")
    if name not in TASTES:
        raise ConfigError(f"unknown taste {name!r}: choose from {', '.join(TASTES)}, joined with +")
    if not colon:
        return TASTES[name]
    if name not in _WITH_LIMIT:
        raise ConfigError(f"taste {text!r}: {name} takes no limit, write {name!r}")
    if not (limit.isascii() and limit.isdigit() and int(limit) > 0):
        raise ConfigError(f"taste {text!r}: the limit is {limit!r}, expected a whole number above 0")
    return _WITH_LIMIT[name](int(limit))


def _last_words(prompt: Text) -> str:
    """The text of the prompt, or of the last chat message in it."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")
