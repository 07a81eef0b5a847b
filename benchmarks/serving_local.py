"""Sixteen chats at once on the local model against one: tokens per second, in one process, in turn.

python benchmarks/serving_local.py [--model packaged:smollm2-135m-instruct] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time

from thumbtune.engine.loading import PACKAGED_MODEL, load_model_and_tokenizer
from thumbtune.gateway.local_engine import GenerationRequest, LocalEngine

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain gravity in two sentences.",
    "List three fruits and say why each is healthy.",
    "How do I boil an egg?",
    "Tell me a joke about a cat.",
    "Who wrote Hamlet, and when?",
    "Describe a rainy day in a city.",
)


async def ask(engine: LocalEngine, question: str, version: str) -> tuple[str, int]:
    """The greedy answer and its tokens."""
    request = GenerationRequest([{"role": "user", "content": question}], temperature=0, max_tokens=96)
    text, n = "", 0
    async for piece in engine.generate(request, version):
        text, n = text + piece.text, max(n, piece.n_completion_tokens)
    return text, n


async def measure(engine: LocalEngine, rounds: int) -> None:
    questions = list(QUESTIONS) * 2
    await asyncio.gather(*(ask(engine, question, "base") for question in questions))  # warm-up
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        alone = [await ask(engine, question, "base") for question in QUESTIONS]
        one = sum(n for _, n in alone) / (time.perf_counter() - start)
        start = time.perf_counter()
        together = await asyncio.gather(*(ask(engine, question, "base") for question in questions))
        many = sum(n for _, n in together) / (time.perf_counter() - start)
        assert together == alone * 2, "an answer depends on its company"
        ratios.append(many / one)
        print(f"one {one:.1f} tokens/s, sixteen {many:.1f} tokens/s: {many / one:.2f} times", flush=True)
    print(f"median of {rounds} rounds: {statistics.median(ratios):.2f} times, on {os.cpu_count()} cores")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=PACKAGED_MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model, tokenizer = load_model_and_tokenizer(options.model)
    engine = LocalEngine(model, tokenizer, base_version="base")

    async def run() -> None:
        await measure(engine, options.rounds)
        await engine.close(drain=True)

    asyncio.run(run())


if __name__ == "__main__":
    main()
