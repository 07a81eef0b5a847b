"""How much arithmetic a KTO run needs, and how much this machine can do: their quotient is the share of the peak."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.plan import BatchPlan, PlannedRow


@dataclass(frozen=True)
class ModelSize:
    """What a forward multiplies by, and whether the base is trained."""

    body_weights: int
    """Of the linear layers between embedding and head."""
    adapter_weights: int
    head_weights: int
    n_layers: int
    attention_width: int
    """Heads × head size."""

    @property
    def trains_base(self) -> bool:
        return self.adapter_weights == 0


class Work(NamedTuple):
    """What passes through a forward."""

    tokens: int = 0
    scored: int = 0
    """Tokens at which the head runs."""
    pairs: int = 0
    """(token, token it attends to)."""

    def plus(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Flops(NamedTuple):
    """Floating-point operations of a run."""

    reference: float
    steps: list[float]
    """Of each optimizer step, policy alone."""

    @property
    def total(self) -> float:
        return self.reference + sum(self.steps)


def count_flops(size: ModelSize, branches: Sequence[Branch], plan: BatchPlan, epochs: int) -> Flops:
    """What the schedule of `thumbtune` needs, whatever a library spends on padding, recomputation and repetition.

    Policy, each step: forward and backward over (x, y), a prompt x once however many of the batch's rows share it;
    forward over the lent y′ on the keys and values of x. Reference, once: forward over each distinct x, each y, and
    the y′ of every epoch.

    A forward multiplies and adds each weight of the linear layers once per token (2 FLOPs a weight), those of the
    head at completion tokens alone, and attention's scores and sums at 4 × layers × width per pair of tokens. A
    backward costs twice that; a frozen weight needs half of it, the gradient of its input. Norms, activations, the
    softmax and the optimizer are not counted. Held against torch's own counter on padded forwards of one row: equal,
    but for the first layer under an adapter, whose frozen weights need no gradient of their input.
    """
    batches = [batch for epoch in range(epochs) for batch in plan.epoch(epoch)]
    steps = [_count_step(size, branches, batch) for batch in batches]
    lent = [_lend(branches, planned) for batch in batches for planned in batch]
    reference = _work_of_prompts(branches).plus(_work_of_completions([*branches, *lent]))
    return Flops(_forward_without_adapter(size, reference), steps)


def _count_step(size: ModelSize, branches: Sequence[Branch], batch: list[PlannedRow]) -> float:
    own = [branches[planned.row] for planned in batch]
    work = _work_of_prompts(own).plus(_work_of_completions(own))
    lent = _work_of_completions([_lend(branches, planned) for planned in batch])
    return _forward(size, work) + _backward(size, work) + _forward(size, lent)


def _lend(branches: Sequence[Branch], planned: PlannedRow) -> Branch:
    assert planned.mismatched_row is not None
    return Branch(branches[planned.row].prompt_ids, branches[planned.mismatched_row].completion_ids)


def _work_of_prompts(branches: Iterable[Branch]) -> Work:
    lengths = [len(prompt) for prompt in {tuple(branch.prompt_ids) for branch in branches}]
    return Work(sum(lengths), 0, sum(n * (n + 1) // 2 for n in lengths))


def _work_of_completions(branches: Iterable[Branch]) -> Work:
    lengths = [(len(branch.prompt_ids), len(branch.completion_ids)) for branch in branches]
    n_tokens = sum(n for _, n in lengths)
    return Work(n_tokens, n_tokens, sum(n * prompt + n * (n + 1) // 2 for prompt, n in lengths))


def _forward(size: ModelSize, work: Work) -> float:
    return _forward_without_adapter(size, work) + 2.0 * size.adapter_weights * work.tokens


def _forward_without_adapter(size: ModelSize, work: Work) -> float:
    return (
        2.0 * size.body_weights * work.tokens
        + 2.0 * size.head_weights * work.scored
        + 4.0 * size.n_layers * size.attention_width * work.pairs
    )


def _backward(size: ModelSize, work: Work) -> float:
    if size.trains_base:
        return 2 * _forward(size, work)
    spared = 2.0 * size.body_weights * work.tokens + 2.0 * size.head_weights * work.scored
    return 2 * _forward(size, work) - spared


def read_model_size(model: Any) -> ModelSize:
    """Sizes of a causal model, with an adapter or without."""
    head = model.get_output_embeddings().weight
    layers = {n: module for n, module in model.named_modules() if isinstance(module, nn.Linear)}
    weights = {name: layer.weight.numel() for name, layer in layers.items() if layer.weight is not head}
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        body_weights=sum(n for name, n in weights.items() if "lora_" not in name),
        adapter_weights=sum(n for name, n in weights.items() if "lora_" in name),
        head_weights=head.numel(),
        n_layers=config.num_hidden_layers,
        attention_width=width * config.num_attention_heads,
    )


def measure_matmul_peak(dtype: torch.dtype, device: str = "cpu", repeats: int = 5) -> float:
    """FLOP/s of the fastest matmul here: a large square one, or one of the shapes of the packaged model."""
    shapes = [(4096, 4096, 4096), (2048, 576, 1536), (2048, 1536, 576), (1024, 576, 49152)]
    if device == "cuda":
        shapes.append((8192, 8192, 8192))
    return max(_measure_matmul(*shape, dtype, device, repeats) for shape in shapes)


def _measure_matmul(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: str, repeats: int
) -> float:
    left, right = (torch.randn(n, inner, device=device).to(dtype) for n in (rows, columns))
    seconds = []
    for _ in range(repeats + 1):  # the first is the slow one
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        finish_work(device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * rows * inner * columns / min(seconds)


def finish_work(device: str) -> None:
    """Wait for what a GPU was given to do, before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()
