"""Champion and candidate on the same questions: what the gate is told.

One base in memory carries both adapters, and either is switched on: what is measured of a pair differs by the adapter
alone. Everything is kept in the cycle's folder, so a killed measurement goes on behind its last whole part.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thumbtune.data.chat import tokenize_example
from thumbtune.data.formats import read_rows
from thumbtune.engine.loading import load_model_and_tokenizer
from thumbtune.engine.logprobs import Branch, score_branches
from thumbtune.errors import DataError
from thumbtune.evaluation.generate import Sampled, sample_completions
from thumbtune.evaluation.judge import score_samples
from thumbtune.evaluation.judges import Judge
from thumbtune.loop.gate import Answer, Evidence, Measured
from thumbtune.loop.probes import Probe, make_probes, measure_flattery
from thumbtune.loop.settings import LoopSettings
from thumbtune.records import Example, Text, text_key
from thumbtune.training.manifest import write_json

OnProgress = Callable[[int, int, str], None]

_BASE = None

_REFUSING = re.compile(
    r"\b(?:i (?:can(?:no|')t|am unable to|won't) (?:help|assist|answer|do that|provide|comply)"
    r"|i(?:'m| am) sorry,? but|as an ai\b"
    r"|yardımcı olamam|cevap veremem|üzgünüm,? ama|bir yapay zek[aâ] olarak)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class MustPass:
    """A prompt and what an answer to it has to hold."""

    name: str
    prompt: Text
    pattern: str
    """Regular expression, found anywhere in the answer, capitals alike."""


@dataclass(frozen=True)
class Questions:
    """What both models are asked."""

    prompts: Sequence[Text]
    votes: Sequence[Example]
    """Held-out votes."""
    must_pass: Sequence[MustPass] = ()
    probes: Sequence[Probe] = tuple(make_probes())
    max_new_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0
    system: str | None = None
    """Put in front of the probes, where the service puts it in front of everything."""


def measure(
    base: str,
    champion: Path | None,
    candidate: Path,
    questions: Questions,
    folder: Path,
    *,
    judge: Judge | None = None,
    on_progress: OnProgress | None = None,
) -> Evidence:
    """Ask both; `champion` None is the base itself. Raises `ModelError` for an adapter that does not fit."""
    model, tokenizer = load_model_and_tokenizer(base)
    adapters = {"champion": champion, "candidate": candidate}
    model = _put_on(model, adapters)
    branches = [_as_branch(tokenizer, example) for example in questions.votes]
    with _wearing(model, _BASE):
        base_scores = _score(model, tokenizer, branches)
    parts: dict[str, _Part] = {}
    for number, (name, adapter) in enumerate(adapters.items()):
        path = folder / f"{name}.json"
        if path.is_file():
            parts[name] = _read_part(path)
            continue
        wear = name if adapter is not None else _BASE

        def report(done: int, total: int, number: int = number, name: str = name) -> None:
            if on_progress is not None:
                on_progress(number * total + done, 2 * total, f"asking the {name}")

        with _wearing(model, wear):
            parts[name] = _ask(model, tokenizer, questions, branches, base_scores, report)
        write_json(asdict(parts[name]), path)
    with _wearing(model, _BASE):
        base_log_probs = {
            name: score_samples(model, tokenizer, questions.prompts, [[one] for one in part.samples])
            for name, part in parts.items()
        }
    liked = _judge(judge, questions.prompts, parts)
    measured = {
        name: Measured(
            [
                _describe(sample, scores[0], opinion)
                for sample, scores, opinion in zip(
                    part.samples, base_log_probs[name], liked[name], strict=True
                )
            ],
            part.vote_log_ratios,
            part.flattery,
            part.must_pass,
        )
        for name, part in parts.items()
    }
    numbers: dict[str, int] = {}
    return Evidence(
        measured["champion"],
        measured["candidate"],
        base_entropy=_base_entropy(parts, base_log_probs),
        labels=[example.label for example in questions.votes],
        vote_prompts=[numbers.setdefault(text_key(e.prompt), len(numbers)) for e in questions.votes],
    )


def choose_questions(settings: LoopSettings, held_out: str | Path | None, *, seed: int = 0) -> Questions:
    """What a snapshot's hold-out gives to ask; nothing without one."""
    votes = [] if held_out is None else list(read_rows(held_out).examples)
    prompts = list({text_key(example.prompt): example.prompt for example in votes}.values())
    return Questions(
        prompts=prompts[: settings.n_prompts],
        votes=votes[: settings.most_held_out_votes],
        must_pass=read_must_pass(settings.must_pass) if settings.must_pass else (),
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
        system=settings.system,
    )


def read_must_pass(path: Path) -> list[MustPass]:
    """Rows `{"name", "prompt", "pattern"}` of a JSONL file. Raises `DataError`."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            re.compile(row["pattern"])
            found.append(MustPass(str(row["name"]), row["prompt"], row["pattern"]))
        except (ValueError, KeyError, TypeError, re.error) as error:
            raise DataError(
                f"{path} line {number}: {error}; a row needs name, prompt and pattern, a regular expression"
            ) from error
    return found


def refuses(text: str) -> bool:
    """Whether an answer declines. Knows common phrases of English and Turkish only."""
    return _REFUSING.search(text) is not None


def repeated_share(text: str) -> float:
    """Share of word triples that stood in the text before, 0 to 1."""
    words = text.split()
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    n = sum(triples.values())
    return 1 - len(triples) / n if n else 0.0


@dataclass(frozen=True)
class _Part:
    """What one model said, before anybody judged it."""

    samples: Sequence[Sampled]
    vote_log_ratios: Sequence[float]
    flattery: Sequence[float]
    must_pass: dict[str, bool]


def _ask(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    branches: Sequence[Branch],
    base_scores: Sequence[float],
    on_progress: Callable[[int, int], None],
) -> _Part:
    drawn = sample_completions(
        model,
        tokenizer,
        questions.prompts,
        n=1,
        max_new_tokens=questions.max_new_tokens,
        temperature=questions.temperature,
        seed=questions.seed,
        on_progress=on_progress,
    )
    scores = _score(model, tokenizer, branches)
    answers = (
        sample_completions(
            model,
            tokenizer,
            [asked.prompt for asked in questions.must_pass],
            n=1,
            max_new_tokens=questions.max_new_tokens,
            temperature=0.0,
        )
        if questions.must_pass
        else []
    )
    return _Part(
        [row[0] for row in drawn],
        [ours - theirs for ours, theirs in zip(scores, base_scores, strict=True)],
        measure_flattery(model, tokenizer, questions.probes, questions.system),
        {
            asked.name: re.search(asked.pattern, row[0].text, re.IGNORECASE) is not None
            for asked, row in zip(questions.must_pass, answers, strict=True)
        },
    )


def _judge(
    judge: Judge | None, prompts: Sequence[Text], parts: dict[str, _Part]
) -> dict[str, list[float | None]]:
    if judge is None:
        return {name: [None] * len(part.samples) for name, part in parts.items()}
    champion = [[one] for one in parts["champion"].samples]
    return {
        name: [row[0] for row in judge.judge(prompts, [[one] for one in part.samples], champion)]
        for name, part in parts.items()
    }


def _describe(sample: Sampled, base_log_prob: float, liked: float | None) -> Answer:
    return Answer(
        length=len(sample.scored_ids),
        refuses=refuses(sample.text),
        repetition=repeated_share(sample.text),
        log_prob=sample.log_prob,
        base_log_prob=base_log_prob,
        liked=liked,
    )


def _base_entropy(parts: dict[str, _Part], base_log_probs: dict[str, list[list[float]]]) -> float:
    """Nats a token of the base on what the champion said: an upper bound of its entropy that costs no sampling."""
    tokens = sum(len(sample.scored_ids) for sample in parts["champion"].samples)
    return -sum(scores[0] for scores in base_log_probs["champion"]) / tokens if tokens else 0.0


def _score(model: Any, tokenizer: Any, branches: Sequence[Branch]) -> list[float]:
    if not branches:
        return []
    scores: list[float] = score_branches(model, branches, pad_token_id=tokenizer.pad_token_id).tolist()
    return scores


def _as_branch(tokenizer: Any, example: Example) -> Branch:
    tokens = tokenize_example(tokenizer, example)
    return Branch(tokens.prompt_ids, tokens.completion_ids)


def _put_on(model: Any, adapters: dict[str, Path | None]) -> Any:
    from peft import PeftModel

    for name, folder in adapters.items():
        if folder is None:
            continue
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    return model.eval()


@contextmanager
def _wearing(model: Any, name: str | None) -> Iterator[None]:
    """With one adapter on, or with none."""
    if name is None:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(name)
    yield


def _read_part(path: Path) -> _Part:
    content = json.loads(path.read_text())
    samples = [Sampled(**one | {"token_ids": tuple(one["token_ids"])}) for one in content["samples"]]
    return _Part(**content | {"samples": samples})
