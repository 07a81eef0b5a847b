"""Token ids in, log-probs out: log π(y|x) of each completion, summed over its tokens.

This is the padded path: plain forwards of any causal model, exact, with no assumption about its layers. Prompts are
padded on the left and completions on the right, so that all completions start in one column and the model's own head
(soft caps, scaling and all) runs on completion positions alone. Losses never see how a log-prob was made.

`completion_log_probs` takes gradients, one row per branch. `score_branches` is for passes without gradient: it
encodes each prompt once, however many completions hang on it, and lets them ride on its keys and values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Branch(NamedTuple):
    """One completion under one prompt, as token ids."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


def pad_branches(branches: Sequence[Branch], pad_token_id: int, multiple: int = 1) -> dict[str, Tensor]:
    """Tensors of a microbatch: `input_ids`, `attention_mask`, `position_ids`, `completion_mask`, each (B, P + C).

    P is the longest prompt and C the longest completion, widened until P + C is a `multiple`; a prompt ends in column
    P − 1, its completion starts in P.
    `completion_mask` is (B, C).
    """
    prompt_width = max(len(branch.prompt_ids) for branch in branches)
    completion_width = max(len(branch.completion_ids) for branch in branches)
    completion_width += -(prompt_width + completion_width) % multiple
    shape = (len(branches), prompt_width + completion_width)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, (prompt_ids, completion_ids) in enumerate(branches):
        columns = slice(prompt_width - len(prompt_ids), prompt_width + len(completion_ids))
        input_ids[row, columns] = torch.tensor([*prompt_ids, *completion_ids], dtype=torch.long)
        attention_mask[row, columns] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
        "completion_mask": attention_mask[:, prompt_width:].bool(),
    }


def count_padded_tokens(branches: Sequence[Branch], multiple: int = 1) -> int:
    """Tokens of the rectangle that `pad_branches` would make."""
    if not branches:
        return 0
    width = max(len(branch.prompt_ids) for branch in branches)
    width += max(len(branch.completion_ids) for branch in branches)
    return (width + -width % multiple) * len(branches)


def completion_log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:  # (B,) float32, nats
    """log π(y|x) of each branch of a padded microbatch, with gradient where the model takes one."""
    completion_mask = batch["completion_mask"]
    width = completion_mask.shape[1]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
    logits = forward_logits(model, keep=width + 1, use_cache=False, **inputs).logits[:, :-1]  # (B, C, V)
    return _sum_token_log_probs(logits, batch["input_ids"][:, -width:], completion_mask)


@torch.no_grad()
def score_branches(
    model: Any,
    branches: Sequence[Branch],
    *,
    pad_token_id: int,
    max_tokens: int = 4096,
    on_progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> Tensor:  # (N,) float32, nats, on the CPU, in the order given
    """log π(y|x) of many branches without gradient; branches of one prompt share its encoding.

    `max_tokens` bounds the padded tokens of one forward. `on_progress(done, total)` counts branches. `part` (first,
    step) takes every `step`-th chunk and leaves the other log-probs at 0.
    """
    first, step = part
    scores = torch.zeros(len(branches))
    done = 0
    with evaluating(model):
        for members in list(chunk_by_prompt(branches, max_tokens))[first::step]:
            chunk = [branches[index] for index in members]
            scores[members] = _score_chunk(model, chunk, pad_token_id).cpu()
            done += len(members)
            if on_progress is not None:
                on_progress(min(done * step, len(branches)), len(branches))
    return scores


def encode_prompts(
    model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[Any, Tensor, Tensor]:
    """Keys and values of left-padded prompts, and what continues them.

    Returns the cache, the logits behind each prompt's last token (B, V), and the attention mask (B, P).
    """
    padded = pad_branches([Branch(prompt, ()) for prompt in prompts], pad_token_id)
    device = next(model.parameters()).device
    inputs = {key: padded[key].to(device) for key in ("input_ids", "attention_mask", "position_ids")}
    output = forward_logits(model, keep=1, use_cache=True, **inputs)
    return output.past_key_values, output.logits[:, -1], inputs["attention_mask"]


def forward_logits(model: Any, *, keep: int, **inputs: Any) -> Any:
    """The model's own forward, with the head on the last `keep` positions where it knows how."""
    accepted = _forward_parameters(model)
    if "position_ids" not in accepted:
        inputs.pop("position_ids", None)
    if "logits_to_keep" in accepted:
        return model(**inputs, logits_to_keep=keep)
    output = model(**inputs)
    output.logits = output.logits[:, -keep:]
    return output


class evaluating:  # noqa: N801 (a context manager reads as a verb)
    """Dropout and the like off inside the block, as they were afterwards."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.was_training = model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was_training)


def _score_chunk(model: Any, branches: Sequence[Branch], pad_token_id: int) -> Tensor:
    device = next(model.parameters()).device
    prompts = list(dict.fromkeys(tuple(branch.prompt_ids) for branch in branches))
    position = {prompt: index for index, prompt in enumerate(prompts)}
    cache, first_logits, prompt_mask = encode_prompts(model, prompts, pad_token_id)
    owner = torch.tensor([position[tuple(branch.prompt_ids)] for branch in branches], device=device)
    cache.batch_select_indices(owner)
    prompt_mask = prompt_mask[owner]

    padded = pad_branches([Branch((), branch.completion_ids) for branch in branches], pad_token_id)
    tokens = padded["input_ids"].to(device)
    completion_mask = padded["completion_mask"].to(device)
    logits = first_logits[owner].unsqueeze(1)
    if tokens.shape[1] > 1:
        later = forward_logits(
            model,
            keep=tokens.shape[1] - 1,
            input_ids=tokens[:, :-1],
            attention_mask=torch.cat([prompt_mask, completion_mask[:, :-1].long()], dim=1),
            position_ids=prompt_mask.sum(-1, keepdim=True) + torch.arange(tokens.shape[1] - 1, device=device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        logits = torch.cat([logits, later], dim=1)  # (B, C, V)
    return _sum_token_log_probs(logits, tokens, completion_mask)


def _sum_token_log_probs(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, C, V) logits, (B, C) tokens and mask -> (B,) float32 log-probs; sums in float32."""
    nats = -functional.cross_entropy(
        logits.float().flatten(0, 1), tokens.flatten(), reduction="none"
    ).view_as(tokens)
    return nats.masked_fill(~mask, 0.0).sum(-1)


def chunk_by_prompt(branches: Sequence[Branch], max_tokens: int) -> Iterator[list[int]]:
    """Indices of branches, prompts kept together and of like length, at most `max_tokens` padded tokens a chunk."""
    order = sorted(
        range(len(branches)),
        key=lambda i: (
            len(branches[i].prompt_ids),
            tuple(branches[i].prompt_ids),
            len(branches[i].completion_ids),
            i,
        ),
    )
    chunk: list[int] = []
    for index in order:
        candidate = [*chunk, index]
        width = max(len(branches[i].prompt_ids) for i in candidate)
        width += max(len(branches[i].completion_ids) for i in candidate)
        if chunk and width * len(candidate) > max_tokens:
            yield chunk
            candidate = [index]
        chunk = candidate
    if chunk:
        yield chunk


def _forward_parameters(model: Any) -> frozenset[str]:
    inner = model
    while hasattr(inner, "module"):  # unwrap DDP and the like
        inner = inner.module
    if hasattr(inner, "get_base_model"):  # unwrap PEFT
        inner = inner.get_base_model()
    return frozenset(inspect.signature(inner.forward).parameters)
