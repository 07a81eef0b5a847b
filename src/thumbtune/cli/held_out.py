"""The prompts that judge an arm: none that it was trained on, and none both held out and for the search of settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thumbtune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a comparison's arms are judged on, and its trials."""

    prompts: list[Any]
    voted: list[Any]
    """Held-out thumbs, in place of prompts, where these alone judge."""
    validation: list[Any]


def hold_out(
    thumbs: Sequence[Any],
    *,
    judge: str,
    prompts: Path | None,
    n_prompts: int,
    system: str | None,
    validation_prompts: Path | None,
    n_validation: int,
    skip_refused: bool,
) -> HeldOut:
    """Prompts from a file, or everyday questions; what the thumbs hold is left out and counted on stderr.

    Nothing is held out for trials where `n_validation` is 0. Raises `ConfigError` where options contradict each other,
    and where nothing is left.
    """
    kind, _, path = judge.partition(":")
    if (prompts and system is not None) or (kind == "votes" and (prompts or system is not None)):
        raise ConfigError(
            "--prompts brings its own system messages, --judge votes its own prompts: leave out the other"
        )
    from thumbtune.data.synth.prompts import read_prompts

    trained = {_last_text(example.prompt) for example in thumbs}
    voted: list[Any] = []
    clean: list[Any] = []
    if kind == "votes":
        voted = _read_votes(Path(path), trained, skip_refused=skip_refused)
    elif prompts:
        clean = _leave_out(
            trained, read_prompts(prompts), _itself, "held-out rows have prompts of the thumbs"
        )
    else:
        clean = _draw_questions(n_prompts, 1, trained, system)
    seen = trained | {_last_text(prompt) for prompt in clean}
    validation: list[Any] = []
    if n_validation and validation_prompts:
        what = "validation rows have prompts of the thumbs or held out"
        validation = _leave_out(seen, read_prompts(validation_prompts), _itself, what)
    elif n_validation:
        validation = _draw_questions(n_validation, 2, seen, system)
    return HeldOut(clean, voted, validation)


def as_thumbs(rows: Any) -> Any:
    """Pairs become thumbs: the budget is counted in labels."""
    from thumbtune.data.pairs import unpair

    return rows if rows.examples else replace(rows, examples=unpair(rows.pairs), pairs=[])


def _read_votes(path: Path, trained: set[str], *, skip_refused: bool) -> list[Any]:
    from thumbtune.data.formats import read_rows

    rows = as_thumbs(read_rows(path, skip_refused=skip_refused)).examples
    voted = _leave_out(trained, rows, lambda row: row.prompt, "held-out rows have prompts of the thumbs")
    if not voted:
        raise ConfigError(
            f"--judge votes:{path}: every vote is on a prompt of the thumbs, so none is held out"
        )
    return voted


def _draw_questions(n: int, seed: int, known: set[str], system: str | None) -> list[Any]:
    """So many everyday questions that are not known yet."""
    from thumbtune.data.synth.prompts import ask, count_questions, question_prompts

    drawn = [question for question in question_prompts(count_questions(), seed) if question not in known]
    if n > len(drawn):
        raise ConfigError(
            f"asked for {n} everyday questions, {len(drawn)} are not in the thumbs: use a file of prompts"
        )
    return [ask(question, system) for question in drawn[:n]]


def _leave_out(taken: set[str], rows: Sequence[Any], prompt_of: Callable[[Any], Any], what: str) -> list[Any]:
    """Those whose prompt is not taken; says how many are."""
    clean = [row for row in rows if _last_text(prompt_of(row)) not in taken]
    if len(clean) < len(rows):
        print(f"{len(rows) - len(clean)} {what}: left out", file=sys.stderr)
    return clean


def _itself(prompt: Any) -> Any:
    return prompt


def _last_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
