"""Samples of a model and simulated users in, rows of thumbs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from thumbtune.data.synth.users import Sample, SimulatedUsers
from thumbtune.records import Text


class SampledText(Protocol):
    """What is needed of `thumbtune.evaluation.generate.Sampled`."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def finished(self) -> bool: ...


def collect_votes(
    prompts: Sequence[Text],
    samples: Sequence[Sequence[SampledText]],
    users: SimulatedUsers,
    facts: Sequence[Mapping[str, Any] | None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows `{prompt, completion, label, truth}` of the samples that got a vote, and the counts of all.

    `samples[i]` are the completions of `prompts[i]`, and `facts[i]` is what is known about it. Completions
    that were cut at the limit stay, text as it is. Empty ones are left out, since there is nothing to show a
    user. Counts: `samples`, `up`, `down`, `silent`, `empty`, `unfinished` (of the rows), `flipped` (by noise).
    `finished` is false where the limit cut the completion; `truth` holds `liked` (before noise) and `n_tokens`.
    """
    names = ("samples", "up", "down", "silent", "empty", "unfinished", "flipped")
    counts = dict.fromkeys(names, 0)
    rows = []
    known = facts or [None] * len(prompts)
    for prompt_number, (prompt, completions, fact) in enumerate(zip(prompts, samples, known, strict=True)):
        for sample_number, completion in enumerate(completions):
            counts["samples"] += 1
            if not completion.text.strip():
                counts["empty"] += 1
                continue
            sample = Sample(prompt, completion.text, len(completion.token_ids), completion.finished, fact)
            label = users.vote(sample, key=f"{prompt_number}/{sample_number}")
            if label is None:
                counts["silent"] += 1
                continue
            row = _make_row(sample, label, users.truth(sample))
            counts["up" if label else "down"] += 1
            counts["unfinished"] += not sample.finished
            counts["flipped"] += label != row["truth"]["liked"]
            rows.append(row)
    return rows, counts


def as_messages(prompt: Text) -> list[dict[str, Any]]:
    """The prompt as chat messages: text becomes one message of the user."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def _make_row(sample: Sample, label: bool, liked: bool) -> dict[str, Any]:
    return {
        "prompt": as_messages(sample.prompt),
        "completion": [{"role": "assistant", "content": sample.text}],
        "label": label,
        "finished": sample.finished,
        "truth": {"liked": liked, "n_tokens": sample.n_tokens},
    }
