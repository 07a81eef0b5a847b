"""The rows that the benchmarks train on: made-up English chat turns with labels, the same for the same seed.

Lengths are lognormal, as lengths of prompts and answers are. The words mean nothing; only their number and their
tokens count for speed. A workload is a record, so a benchmark can vary one number of it.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

Row = dict[str, Any]
"""{"prompt": messages, "completion": messages, "label": bool}."""


@dataclass(frozen=True)
class Workload:
    """How long rows are, in words, and how many completions a prompt has."""

    prompt_words: int
    """Median."""
    completion_words: int
    """Median."""
    most_words: int
    """Longer prompts and completions are drawn as this long."""
    sigma: float = 0.8
    """Spread of the logarithm of a length."""
    completions_per_prompt: int = 1


_MIXED = Workload(prompt_words=110, completion_words=90, most_words=450)
WORKLOADS = {
    "mixed": _MIXED,
    "long_prompt": Workload(prompt_words=330, completion_words=35, most_words=900),
    "siblings": replace(_MIXED, completions_per_prompt=4),
    "short": Workload(prompt_words=20, completion_words=16, most_words=60),
}


def make_rows(workload: Workload, n_rows: int, seed: int = 0) -> list[Row]:
    """So many rows, 👍 and 👎 in turn.

    The k-th completions of all prompts stand together, so that rows in order meet other prompts, and each prompt has
    both labels where it has more than one completion.
    """
    rng = random.Random(seed)
    n_prompts = math.ceil(n_rows / workload.completions_per_prompt)
    prompts = [_write(rng, workload.prompt_words, workload) for _ in range(n_prompts)]
    return [
        {
            "prompt": [{"role": "user", "content": prompts[index % n_prompts]}],
            "completion": [
                {"role": "assistant", "content": _write(rng, workload.completion_words, workload)}
            ],
            "label": (index % n_prompts + index // n_prompts) % 2 == 0,
        }
        for index in range(n_rows)
    ]


def _write(rng: random.Random, median_words: int, workload: Workload) -> str:
    n_words = round(median_words * math.exp(workload.sigma * rng.gauss(0, 1)))
    return _write_sentences(rng, max(3, min(n_words, workload.most_words)))


def _write_sentences(rng: random.Random, n_words: int) -> str:
    words = rng.choices(_WORDS, k=n_words)
    sentences = []
    while words:
        length = rng.randrange(6, 15)
        sentence, words = words[:length], words[length:]
        sentences.append(" ".join(sentence).capitalize() + ".")
    return " ".join(sentences)


_TEXT = """
the a this that each some many few other such and but or so because while after before until where
we you they people children teachers doctors farmers neighbours workers customers visitors students friends
house street river mountain garden market school hospital library kitchen window table bridge station harbour
morning evening winter summer week month year hour minute moment history future story question answer problem
water bread coffee paper letter number picture music language village city country machine engine model
light heavy small large early late quiet loud warm cold simple careful honest difficult different important
goes comes takes gives makes finds keeps leaves brings opens closes reads writes explains measures compares
changes grows falls begins ends works waits learns teaches remembers forgets describes follows answers
quickly slowly often rarely together again almost always never only still already perhaps however therefore
with without between under over through against during about across into from toward behind beside
temperature government information experiment population organization environment communication agriculture
seven twelve thirty hundred thousand first second third last half double several
"""
_WORDS = _TEXT.split()


def main() -> None:
    parser = argparse.ArgumentParser(description="Show a workload: its lengths in words, and its first row.")
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = make_rows(WORKLOADS[arguments.workload], arguments.rows, arguments.seed)
    for part in ("prompt", "completion"):
        lengths = sorted(len(row[part][0]["content"].split()) for row in rows)
        print(f"{part}: {lengths[0]} to {lengths[-1]} words, median {median(lengths):g}, sum {sum(lengths)}")
    n_prompts = len({row["prompt"][0]["content"] for row in rows})
    print(f"{len(rows)} rows, {n_prompts} prompts, {sum(row['label'] for row in rows)} 👍")
    print(rows[0])


if __name__ == "__main__":
    main()
