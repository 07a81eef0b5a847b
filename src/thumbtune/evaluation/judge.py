"""Fresh samples of a model on held-out prompts, judged, and scored under the policy and under the base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thumbtune.data.chat import tokenize_prompt
from thumbtune.data.synth.simulate import as_messages
from thumbtune.data.synth.users import Sample, SimulatedUsers
from thumbtune.engine.logprobs import Branch, score_branches
from thumbtune.evaluation.generate import Sampled, sample_completions
from thumbtune.records import Text, text_key
from thumbtune.training.manifest import write_json


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are sampled."""

    samples_per_prompt: int = 1
    max_new_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 128
    seed: int = 0


def sample_with_cache(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    sampling: Sampling,
    path: Path,
    identity: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Sampled]]:
    """Samples of each prompt, read from `path` if the very same were drawn before.

    `identity` names the weights; prompts and sampling settings are added to it.
    """
    key = _digest(identity, [text_key(prompt) for prompt in prompts], asdict(sampling))
    if path.is_file():
        held = json.loads(path.read_text())
        if held["key"] == key:
            return [
                [Sampled(**one | {"token_ids": tuple(one["token_ids"])}) for one in row]
                for row in held["samples"]
            ]
    samples = sample_completions(
        model,
        tokenizer,
        [as_messages(prompt) for prompt in prompts],
        n=sampling.samples_per_prompt,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        batch_size=sampling.batch_size,
        on_progress=on_progress,
    )
    write_json({"key": key, "samples": [[asdict(one) for one in row] for row in samples]}, path)
    return samples


def score_samples(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    samples: Sequence[Sequence[Sampled]],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """log π(y|x) of each sample under a model, nats."""
    encoded = [tokenize_prompt(tokenizer, as_messages(prompt)) for prompt in prompts]
    branches = [
        Branch(ids, sample.scored_ids) for ids, row in zip(encoded, samples, strict=True) for sample in row
    ]
    scores = iter(
        score_branches(model, branches, pad_token_id=tokenizer.pad_token_id, on_progress=on_progress).tolist()
    )
    return [[next(scores) for _ in row] for row in samples]


def as_user_sample(prompt: Text, sample: Sampled) -> Sample:
    """The sample as a simulated user sees it."""
    return Sample(as_messages(prompt), sample.text, len(sample.token_ids), sample.finished)


def judge_samples(
    users: SimulatedUsers, prompts: Sequence[Text], samples: Sequence[Sequence[Sampled]]
) -> list[list[bool]]:
    """What the users truly think of each sample: no noise, no silence."""
    return [
        [users.truth(as_user_sample(prompt, sample)) for sample in row]
        for prompt, row in zip(prompts, samples, strict=True)
    ]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
