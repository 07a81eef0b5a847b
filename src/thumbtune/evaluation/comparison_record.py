"""`compare.json` and `completions.jsonl`, read once into records that the report can trust.

A comparison is written by one version of thumbtune and read by another, so every field may be missing.
What is missing becomes `None` or empty here, and nowhere later is a type asked for again.
What cannot be read at all is a `DataError`: an empty report would look like a result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thumbtune.errors import DataError

BASE = "base"
"""The key of the arm that was not trained: what every gain is measured against."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, the ends of its interval where they are known, and the number of cases behind it."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train (or not to), with what came of it. `None` is "not measured"."""

    key: str
    name: str
    method: str | None = None
    error: str | None = None
    """Why the arm has no results, where it failed."""
    up_rate: Interval | None = None
    gain: Interval | None = None
    """Up-rate minus that of the base, where the comparison measured it itself."""
    auc: Interval | None = None
    kl_per_token: Interval | None = None
    """Nats per token, policy to base."""
    length: Interval | None = None
    """Tokens in a completion."""
    seconds: float | None = None
    peak_rss_mb: float | None = None
    spent: Mapping[str, Any] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    adjustments: tuple[str, ...] = ()
    """Settings that could not hold on the machine and gave way."""
    curve: tuple[Mapping[str, Any], ...] = ()
    reward_histogram: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of `compare.json`: the arms as records, the rest as it was written."""

    title: str
    arms: tuple[Arm, ...]
    verdict: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The whole file: data, judge, sampling, budget, hardware, versions."""

    @property
    def base(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.key == BASE and arm.error is None), None)

    @property
    def seed_count(self) -> int:
        seeds = self.facts.get("seeds")
        return len(seeds) if isinstance(seeds, list) else 1

    @property
    def measured(self) -> tuple[Arm, ...]:
        """The arms that did not fail."""
        return tuple(arm for arm in self.arms if arm.error is None)


def read_comparison(folder: Path) -> Comparison:
    """The comparison that a run folder holds."""
    path = Path(folder) / "compare.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file. Name the folder that `thumbtune compare` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). It may have been cut short: run `thumbtune compare` again"
        ) from None
    arms = facts.get("arms") if isinstance(facts, dict) else None
    if not isinstance(arms, dict) or not arms:
        raise DataError(
            f"{path}: holds no arms, so there is nothing to report. Run `thumbtune compare` again"
        )
    return Comparison(
        title=_read_text(facts.get("title")) or "thumbtune comparison",
        arms=tuple(_read_arm(str(key), arm, path) for key, arm in arms.items()),
        verdict=_read_sentences(facts.get("verdict")),
        caveats=_read_sentences(facts.get("caveats")),
        facts=facts,
    )


def read_completions(folder: Path) -> list[dict[str, Any]]:
    """The completions of each arm, a row a held-out prompt; empty where the run kept none."""
    path = Path(folder) / "completions.jsonl"
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            arms = {str(key): _read_samples(samples) for key, samples in row["arms"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path} line {number}: is not a prompt with its arms. "
                "Delete the line, or run `thumbtune compare` again"
            ) from None
        rows.append({"prompt": _read_text(row.get("prompt")), "arms": arms})
    return rows


def read_number(value: Any) -> float | None:
    """A finite number, or None: `nan` is not a measurement."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def read_interval(value: Any) -> Interval | None:
    """An interval from `{"mean", "low", "high", "n"}` or from a bare number."""
    if not isinstance(value, Mapping):
        value = {"mean": value}
    mean, n = read_number(value.get("mean")), read_number(value.get("n"))
    if mean is None:
        return None
    low, high = read_number(value.get("low")), read_number(value.get("high"))
    return Interval(mean, low, high, None if n is None else int(n))


def _read_arm(key: str, arm: Any, path: Path) -> Arm:
    if not isinstance(arm, Mapping):
        raise DataError(f"{path}: arm {key!r} is not an object. Run `thumbtune compare` again")
    error = arm.get("error")
    intervals = ("up_rate", "gain", "auc", "kl_per_token", "length")
    return Arm(
        key=key,
        name=_read_text(arm.get("name")) or key,
        method=_read_text(arm.get("method")) or None,
        error=None if error is None else _read_text(error) or "no reason given",
        seconds=read_number(arm.get("seconds")),
        peak_rss_mb=read_number(arm.get("peak_rss_mb")),
        spent=_read_mapping(arm.get("spent")),
        alarms=_read_sentences(arm.get("alarms")),
        adjustments=_read_sentences(arm.get("adjustments")),
        curve=tuple(point for point in arm.get("curve") or () if isinstance(point, Mapping)),
        reward_histogram=_read_mapping(arm.get("reward_histogram")) or None,
        config=_read_mapping(arm.get("config")),
        **{name: read_interval(arm.get(name)) for name in intervals},
    )


def _read_samples(samples: Any) -> list[dict[str, Any]]:
    """The samples of one arm: text, label (0.5 = undecided, None = not judged), tokens, whether the end was reached."""
    kept = []
    for sample in [samples] if isinstance(samples, Mapping) else samples or ():
        label, finished = sample.get("label"), sample.get("finished")
        kept.append(
            {
                "text": _read_text(sample.get("text")),
                "label": label if isinstance(label, bool) or label == 0.5 else None,
                "n_tokens": read_number(sample.get("n_tokens")),
                "finished": finished if isinstance(finished, bool) else None,
            }
        )
    return kept


def _read_text(value: Any) -> str:
    """Text as it stands; one chat message as its text, several under their roles; other values as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and value and all(_is_plain_message(message) for message in value):
        if len(value) == 1:
            return value[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in value)
    return json.dumps(value, ensure_ascii=False)


def _is_plain_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and all(isinstance(part, str) for part in value.values())
    )


def _read_sentences(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    return tuple(_read_text(sentence) for sentence in value or () if sentence)


def _read_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
