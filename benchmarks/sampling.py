"""Claim: our sampling loop draws more tokens a second than transformers' `generate`, on the same prompts.

Both draw 4 samples of each prompt at temperature 1, in turn, several rounds. Prints medians and the ratio by pairs.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

from thumbtune.data.chat import render_messages
from thumbtune.data.synth.prompts import question_prompts
from thumbtune.engine.loading import PACKAGED_MODEL, load_model_and_tokenizer
from thumbtune.evaluation.generate import sample_completions

ROUNDS, PROMPTS, SAMPLES, NEW_TOKENS = 3, 16, 4, 40


def draw_with_generate(model: Any, tokenizer: Any, prompts: list[Any], seed: int) -> int:
    """Tokens drawn by transformers, all rows in one batch."""
    torch.manual_seed(seed)
    ids = [render_messages(tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]
    padded = tokenizer.pad({"input_ids": ids}, padding=True, padding_side="left", return_tensors="pt")
    out = model.generate(
        **padded,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        num_return_sequences=SAMPLES,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = out[:, padded["input_ids"].shape[1] :]
    return sum(_length(row.tolist(), tokenizer.eos_token_id) for row in new)


def draw_with_thumbtune(model: Any, tokenizer: Any, prompts: list[Any], seed: int) -> int:
    """Tokens drawn by our loop."""
    rows = sample_completions(
        model,
        tokenizer,
        prompts,
        n=SAMPLES,
        max_new_tokens=NEW_TOKENS,
        seed=seed,
        batch_size=PROMPTS * SAMPLES,
    )
    return sum(len(sample.scored_ids) for row in rows for sample in row)


def main() -> None:
    model, tokenizer = load_model_and_tokenizer(PACKAGED_MODEL)
    model.eval()
    prompts = [[{"role": "user", "content": question}] for question in question_prompts(PROMPTS)]
    speeds: dict[str, list[float]] = {"generate": [], "thumbtune": []}
    for seed in range(ROUNDS + 1):
        for name, draw in (("generate", draw_with_generate), ("thumbtune", draw_with_thumbtune)):
            started = time.perf_counter()
            n_tokens = draw(model, tokenizer, prompts, seed)
            if seed:  # the first round warms up
                speeds[name].append(n_tokens / (time.perf_counter() - started))
    ratios = [ours / theirs for ours, theirs in zip(speeds["thumbtune"], speeds["generate"], strict=True)]
    for name, values in speeds.items():
        print(
            f"{name:<10} {statistics.median(values):7.1f} tokens/s (of {', '.join(f'{v:.1f}' for v in values)})"
        )
    print(f"ratio      {statistics.median(ratios):7.2f} (of {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {sys.version.split()[0]}")


def _length(tokens: list[int], end: int) -> int:
    return tokens.index(end) + 1 if end in tokens else len(tokens)


if __name__ == "__main__":
    main()
