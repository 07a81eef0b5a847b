"""Everyday questions for a small model, and prompts from a file."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thumbtune.errors import ConfigError, DataError
from thumbtune.records import Text


def _split(words: str) -> list[str]:
    return words.split()


# Things that stand alone ("What is rain?"), one of a kind ("What is a river?"), and what people do.
_SUBSTANCES = _split("""
    rain snow wind thunder fog ice salt sugar bread cheese chocolate coffee tea honey rice milk paper glass gold
    iron plastic wood cotton soap music poetry money electricity gravity light sound friendship sleep memory
    happiness democracy chess football yoga photography
    """)
_MATERIALS = [
    "ice",
    "salt",
    "sugar",
    "honey",
    "rice",
    "milk",
    "paper",
    "glass",
    "gold",
    "iron",
    "plastic",
    "wood",
    "cotton",
    "soap",
    "electricity",
]
_THINGS = _split("""
    river mountain desert volcano forest beach rainbow bicycle train bridge clock camera computer battery magnet
    telescope microwave fridge library museum hospital market school garden tree cat dog bee whale butterfly
    spider
    """)
_MACHINES = _split("""
    bicycle train clock camera computer battery magnet telescope microwave fridge compass rocket lighthouse
    telephone printer thermometer submarine windmill zip piano
    """)
_HABITS = [
    "drink coffee", "drink tea", "keep pets", "plant trees", "read books", "learn languages", "travel by train",
    "play chess", "listen to music", "sleep at night", "eat breakfast", "wear hats", "save money", "take photos",
    "ride bicycles", "go to museums", "grow tomatoes", "write letters", "dance", "laugh", "dream", "cook at home",
    "run in the morning", "use maps", "celebrate birthdays",
]  # fmt: skip
_SKILLS = [
    "bake bread", "make tea", "plant a tree", "save money", "learn a language", "fall asleep faster",
    "clean a window", "fix a flat tyre", "write a letter", "boil an egg", "cook rice", "grow tomatoes",
    "take better photos", "remember names", "stay calm", "make new friends", "start running", "pack a suitcase",
    "read a map", "play chess",
]  # fmt: skip
_GROUPS = _split("""
    fruits vegetables animals birds flowers countries rivers cities sports colours planets oceans instruments
    games dances trees insects desserts drinks tools metals languages hobbies jobs shapes
    """)

_TEMPLATES: list[tuple[str, list[str]]] = [
    ("What is {}?", _SUBSTANCES),
    ("What is {a}?", _THINGS),
    ("Why do people {}?", _HABITS),
    ("How does {a} work?", _MACHINES),
    ("How do I {}?", _SKILLS),
    ("Name three {}.", _GROUPS),
    ("Tell me about {}.", _SUBSTANCES),
    ("Tell me something about {a}.", _THINGS),
    ("Why is {} important?", _SUBSTANCES),
    ("Describe {a} in one sentence.", _THINGS + _MACHINES),
    ("What should I know about {}?", _SUBSTANCES),
    ("Give me a tip to {}.", _SKILLS),
    ("Is it good to {}?", _HABITS + _SKILLS),
    ("Explain {} to a child.", _SUBSTANCES),
    ("What is {} used for?", _MATERIALS),
    ("When do people {}?", _HABITS),
    ("What are your favourite {}?", _GROUPS),
    ("Write a short sentence about {}.", _SUBSTANCES),
    ("What do {} have in common?", _GROUPS),
    ("Who invented the {}?", _MACHINES),
    ("Where can I find {a}?", _THINGS),
    ("How is {} made?", _MATERIALS[:-1]),
]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a file, and the fact behind it where the file says so."""

    text: Text
    fact: dict[str, Any] | None = None


def ask(question: str, system: str | None) -> Text:
    """A question as a prompt: behind a system message where there is one."""
    if system is None:
        return question
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def count_questions() -> int:
    """How many everyday questions there are."""
    return len(_compose_all())


def question_prompts(n: int, seed: int = 0) -> list[str]:
    """`n` different short English questions (12 words at most), in an order that the seed decides.

    A larger `n` with the same seed begins with the same questions. Raises `ConfigError` where there are not
    that many.
    """
    questions = _compose_all()
    if not 0 <= n <= len(questions):
        raise ConfigError(
            f"asked for {n} prompts, there are {len(questions)}: ask for fewer, or use --prompts FILE"
        )
    random.Random(seed).shuffle(questions)
    return questions[:n]


def read_prompts(path: str | Path) -> list[Text]:
    """The prompts of a file, in order: a line of text each (.txt), or the `prompt` field of each JSONL row.

    Blank lines are passed over. A JSONL prompt is text or a list of chat messages. The same prompt in several
    rows is given once, at its first place. Raises `DataError` with the line where a row cannot be used.
    """
    return [prompt.text for prompt in read_known_prompts(path)]


def read_known_prompts(path: str | Path) -> list[Prompt]:
    """As `read_prompts`, with the fact behind each prompt where a row of `thumbtune synth facts` gives it."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({error}): name a .txt or .jsonl file"
        ) from error
    is_jsonl = path.suffix.lower() in {".jsonl", ".json", ".ndjson"}
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = _read_row(line, f"{path} line {number}") if is_jsonl else Prompt(line.strip())
            prompts.setdefault(json.dumps(prompt.text, sort_keys=True), prompt)
    if not prompts:
        raise DataError(f"{path} has no prompt: write one a line")
    return list(prompts.values())


def _read_row(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}): write one object a line") from error
    text: Any = row.get("prompt") if isinstance(row, dict) else None
    is_chat = isinstance(text, list) and text and all(isinstance(m, dict) and "role" in m for m in text)
    if not (is_chat or (isinstance(text, str) and text.strip())):
        raise DataError(f"{where}: no usable `prompt` field: give it text or a list of chat messages")
    truth = row.get("truth")
    fact = truth.get("fact") if isinstance(truth, dict) else None
    return Prompt(text, fact if isinstance(fact, dict) else None)


def _compose_all() -> list[str]:
    questions = [
        template.format(topic, a=f"{'an' if topic[0] in 'aeiou' else 'a'} {topic}")
        for template, topics in _TEMPLATES
        for topic in topics
    ]
    return list(dict.fromkeys(questions))
