"""Claim: a million short rows are tokenized and planned in five minutes and 3 GiB on two cores.

The rows are a `datasets.Dataset` on disk, chat messages (or plain text, by --plain) of some 60 tokens with the packaged
model's template; 422,500 different prompts. Made in a process of their own, and not counted. Prints the seconds of each
stage, and the most memory that the process held in it.

    python benchmarks/million_rows.py [--rows 1000000] [--plain] [--tokens-in-memory 67108864]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_from_disk
from datasets.utils.logging import disable_progress_bar

from thumbtune.data.formats import stream_dataset
from thumbtune.data.synth.prompts import question_prompts
from thumbtune.engine.loading import PACKAGED_MODEL, load_tokenizer
from thumbtune.engine.plan import BatchPlan
from thumbtune.training.method_configs import KTOConfig
from thumbtune.training.peak_memory import PeakMemory
from thumbtune.training.token_storage import TOKENS_IN_MEMORY
from thumbtune.training.tokens import tokenize_rows

EPOCHS, BATCH_SIZE = 2, 16


def write_rows(n_rows: int, plain: bool, folder: str) -> None:
    """The rows of the benchmark, the same each time, as a dataset's folder."""
    text: Any = Value("string")
    messages: Any = text if plain else List({"role": text, "content": text})
    features = Features({"prompt": messages, "completion": messages, "label": Value("bool")})
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as cache:
        dataset = Dataset.from_generator(
            make_rows, features, cache_dir=cache, gen_kwargs={"n_rows": n_rows, "plain": plain}
        )
        dataset.save_to_disk(folder)


def make_rows(n_rows: int, plain: bool) -> Iterator[dict[str, Any]]:
    """Two questions in one prompt, and a sentence of their words, in any order, as the answer."""
    rng = random.Random(0)
    questions = question_prompts(650)
    words = sorted({word for question in questions for word in question.split()})
    for _ in range(n_rows):
        prompt = f"{rng.choice(questions)} {rng.choice(questions)}"
        completion = " ".join(rng.choices(words, k=rng.randrange(8, 24)))
        yield {
            "prompt": prompt if plain else [{"role": "user", "content": prompt}],
            "completion": f" {completion}" if plain else [{"role": "assistant", "content": completion}],
            "label": rng.random() < 0.7,
        }


def measure(what: str, stage: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the stage gives, its seconds and its peak in MiB; prints both."""
    started = time.perf_counter()
    with PeakMemory() as memory:
        result = stage()
    seconds, peak_mib = time.perf_counter() - started, memory.peak_mb * 1e6 / 2**20
    print(f"{what:<36} {seconds:7.1f} s   {peak_mib:7.0f} MiB", flush=True)
    return result, seconds, peak_mib


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--plain", action="store_true", help="plain text instead of chat messages")
    parser.add_argument("--tokens-in-memory", type=int, default=TOKENS_IN_MEMORY)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(PACKAGED_MODEL)
    with tempfile.TemporaryDirectory() as output:
        config = KTOConfig(output_dir=output, use_cpu=True, bf16=False, report_to="none")
        folder = str(Path(output) / "rows")
        maker = multiprocessing.get_context("spawn").Process(
            target=write_rows, args=(arguments.rows, arguments.plain, folder)
        )
        maker.start()
        maker.join()
        dataset = load_from_disk(folder)
        stages = [
            measure(
                "read, parse, tokenize",
                lambda: tokenize_rows(
                    stream_dataset(dataset),
                    tokenizer,
                    config,
                    paired=False,
                    tokens_in_memory=arguments.tokens_in_memory,
                ),
            )
        ]
        rows = stages[0][0]
        stages.append(measure("number the prompts", lambda: rows.prompt_keys))
        plan = BatchPlan(rows.labels, rows.prompt_keys, BATCH_SIZE, seed=0, mismatched=True)
        stages.append(
            measure(
                f"plan {EPOCHS} epochs, batch by batch",
                lambda: sum(1 for epoch in range(EPOCHS) for _ in plan.batches(epoch)),
            )
        )
        stages.append(
            measure(
                f"digests of tokens and {EPOCHS} epochs", lambda: (rows.digest_tokens(), plan.digest(EPOCHS))
            )
        )
        seconds, peak_mib = sum(stage[1] for stage in stages), max(stage[2] for stage in stages)
        print(f"{'together':<36} {seconds:7.1f} s   {peak_mib:7.0f} MiB")
        n_tokens, n_prompts = len(rows.ids), rows.prompt_keys.max() + 1
        print(f"{len(rows):,} rows, {n_tokens:,} tokens, {n_prompts:,} prompts, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
