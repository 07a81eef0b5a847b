"""Thumbs about facts, with the truth beside each label.

Half the rows (or `up_share` of them) hold a good completion; the others have one known flaw. The label is
whether the completion is desirable, turned round for a `label_noise` share of the rows. The draws of text, of
noise and of votes come from three streams of one seed: asking for noise changes labels and nothing else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from thumbtune.data.synth.exercises import draw_message, draw_sum
from thumbtune.data.synth.flaws import Flaw, possible_flaws, write_flawed
from thumbtune.data.synth.number_words import Language
from thumbtune.data.synth.phrasing import answer, ask
from thumbtune.data.synth.places import Fact, Topic, country_facts, province_facts
from thumbtune.errors import ConfigError

TOPIC_SHARES: dict[Topic, float] = {"province": 0.45, "country": 0.25, "arithmetic": 0.15, "style": 0.15}
_REDRAWS = 20


def make_fact_thumbs(
    *,
    rows: int = 5000,
    language: Literal["tr", "en", "both"] = "tr",
    seed: int = 0,
    label_noise: float = 0.0,
    up_share: float | None = None,
    vote_rate: float = 1.0,
    chat: bool = False,
) -> list[dict[str, Any]]:
    """Rows `{prompt, completion, label, truth}`, the same for the same arguments.

    `rows` counts completions; a `vote_rate` under 1 leaves some without a vote, and those are not returned, so
    the number of them is `rows - len(result)`. `up_share` is the share of desirable completions, kept to the
    row, before noise and votes; None is half. `chat` gives prompt and completion as chat messages.

    `truth`: `desirable` (before noise), `flipped` (by noise), `flaw` (None where desirable), `topic`,
    `language`, and `fact` (`about`, `what`, `value`, `source`, `date`). Raises `ConfigError` on a share outside
    0 to 1, a negative `rows` or an unknown language.
    """
    _check_settings(rows, language, label_noise=label_noise, up_share=up_share, vote_rate=vote_rate)
    text = random.Random(f"{seed}:text")
    noise = random.Random(f"{seed}:noise")
    votes = random.Random(f"{seed}:votes")
    desirable = _draw_desirable(text, rows, 0.5 if up_share is None else up_share)
    seen: set[tuple[str, str]] = set()
    result = []
    for good in desirable:
        spoken: Language = text.choice(("tr", "en")) if language == "both" else language
        row = _draw_row(text, spoken, good, seen)
        flipped = noise.random() < label_noise
        row["label"] = good != flipped
        row["truth"]["flipped"] = flipped
        if votes.random() < vote_rate:
            result.append(_as_chat(row) if chat else row)
    return result


def count_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many rows, 👍, 👎, turned labels, and how many of each flaw and topic."""
    flaws = Counter(row["truth"]["flaw"] or "none" for row in rows)
    return {
        "rows": len(rows),
        "up": sum(row["label"] for row in rows),
        "down": sum(not row["label"] for row in rows),
        "flipped": sum(row["truth"]["flipped"] for row in rows),
        "flaws": dict(sorted(flaws.items())),
        "topics": dict(sorted(Counter(row["truth"]["topic"] for row in rows).items())),
    }


def _draw_row(
    rng: random.Random, language: Language, good: bool, seen: set[tuple[str, str]]
) -> dict[str, Any]:
    """A row without its label. Draws again, a few times, where the very same row is there already."""
    for _ in range(_REDRAWS):
        fact, rivals = _draw_fact(rng, language)
        prompt = ask(rng, fact, language)
        flaw: Flaw | None = None
        if good:
            completion = answer(rng, fact, language)
        else:
            flaw = _draw_flaw(rng, fact, language)
            completion = write_flawed(rng, fact, language, flaw, rivals)
        if (prompt, completion) not in seen:
            break
    seen.add((prompt, completion))
    truth = {
        "desirable": good,
        "flaw": flaw,
        "topic": fact.topic,
        "language": language,
        "fact": fact.record(language),
    }
    return {"prompt": prompt, "completion": completion, "truth": truth}


def _draw_fact(rng: random.Random, language: Language) -> tuple[Fact, Sequence[Fact]]:
    """A fact to ask about in this language, and the facts of its kind that can stand in for it wrongly."""
    topic = rng.choices(list(TOPIC_SHARES), weights=list(TOPIC_SHARES.values()))[0]
    if topic == "arithmetic":
        return draw_sum(rng), ()
    if topic == "style":
        return draw_message(rng), ()
    facts = province_facts() if topic == "province" else country_facts()
    while True:
        fact = rng.choice(facts)
        if language in fact.words:
            return fact, [other for other in facts if other.what == fact.what]


def _draw_flaw(rng: random.Random, fact: Fact, language: Language) -> Flaw:
    """One of the possible flaws, wrong answers twice as often: they are the ones that only the facts tell."""
    flaws = possible_flaws(fact, language)
    return rng.choices(
        flaws, weights=[2 if flaw in ("wrong_number", "wrong_answer") else 1 for flaw in flaws]
    )[0]


def _draw_desirable(rng: random.Random, rows: int, up_share: float) -> list[bool]:
    ups = round(rows * up_share)
    desirable = [True] * ups + [False] * (rows - ups)
    rng.shuffle(desirable)
    return desirable


def _as_chat(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


def _check_settings(rows: int, language: str, **shares: float | None) -> None:
    if rows < 0:
        raise ConfigError(f"rows is {rows}, expected 0 or more")
    if language not in ("tr", "en", "both"):
        raise ConfigError(f"language is {language!r}, expected one of tr, en, both")
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise ConfigError(f"{name} is {share}, expected a share between 0 and 1")
