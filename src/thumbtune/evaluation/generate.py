"""Completions sampled from a model, many at once.

transformers' `generate` encodes a prompt once per sample and carries finished rows to the end. Here a prompt is
encoded once for all its samples and a finished row leaves the batch; docs/decisions/004 has the measurement.
Sampling is plain: temperature and top-p, nothing else, so that log-probs mean what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from thumbtune.data.chat import tokenize_prompt
from thumbtune.engine.logprobs import encode_prompts, evaluating, forward_logits
from thumbtune.errors import ConfigError
from thumbtune.records import Text


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion as it was sampled."""

    text: str
    token_ids: tuple[int, ...]
    """Without the end-of-turn token."""
    end_id: int | None
    """The token that ended the turn, None where the limit cut it."""
    log_prob: float
    """log π(y|x) of the tokens as sampled, end of turn included, at temperature 1, nats."""

    @property
    def finished(self) -> bool:
        """True where the model ended its turn."""
        return self.end_id is not None

    @property
    def scored_ids(self) -> tuple[int, ...]:
        """The tokens that `log_prob` is about."""
        return self.token_ids if self.end_id is None else (*self.token_ids, self.end_id)


@torch.no_grad()
def sample_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    *,
    n: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Sampled]]:
    """`n` completions of each prompt, in order.

    `temperature` 0 takes the likeliest token. `batch_size` bounds the rows that are decoded together. Each row draws
    from its own stream of random numbers, seeded by its place in the list: batching changes nothing but the last
    bits of the logits. `on_progress(done, total)` counts completions, a batch by the share of its longest one.
    """
    if n < 1 or max_new_tokens < 1:
        raise ConfigError(f"sampling needs n >= 1 and max_new_tokens >= 1, got {n} and {max_new_tokens}")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"sampling needs temperature >= 0 and 0 < top_p <= 1, got {temperature} and {top_p}"
        )
    encoded = [tokenize_prompt(tokenizer, prompt) for prompt in prompts]
    prompts_at_once = max(1, batch_size // n)
    by_length = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    results: list[list[Sampled]] = [[] for _ in prompts]
    stops = stop_token_ids(model, tokenizer)

    def report(before: int, n_rows: int, share: float) -> None:
        if on_progress is not None:
            on_progress(before + int(share * n_rows), len(prompts) * n)

    with evaluating(model):
        for start in range(0, len(prompts), prompts_at_once):
            members = by_length[start : start + prompts_at_once]
            rows = _decode(
                model,
                tokenizer,
                [encoded[i] for i in members],
                noise=[_row_noise(seed, i * n + k) for i in members for k in range(n)],
                n=n,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                stops=stops,
                on_step=partial(report, start * n, len(members) * n),
            )
            for position, i in enumerate(members):
                results[i] = rows[position * n : (position + 1) * n]
    return results


def stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion: the generation config's and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    noise: list[torch.Generator],
    n: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stops: frozenset[int],
    on_step: Callable[[float], None],
) -> list[Sampled]:
    cache, logits, mask = encode_prompts(model, prompts, tokenizer.pad_token_id)
    cache.batch_repeat_interleave(n)
    logits, mask = logits.repeat_interleave(n, dim=0), mask.repeat_interleave(n, dim=0)
    device = logits.device
    stop_ids = torch.tensor(sorted(stops), device=device)
    n_rows = len(prompts) * n
    tokens: list[list[int]] = [[] for _ in range(n_rows)]
    log_probs = torch.zeros(n_rows, device=device)
    end_ids: list[int | None] = [None] * n_rows
    alive = torch.arange(n_rows, device=device)
    positions = mask.sum(-1, keepdim=True)  # (rows alive, 1): the next token's position
    for step in range(max_new_tokens):
        on_step((step + 1) / max_new_tokens)
        logits = logits.float()
        uniforms = torch.tensor([torch.rand((), generator=noise[row]).item() for row in alive.tolist()])
        if temperature == 0:
            chosen = logits.argmax(-1)  # (rows alive,)
        else:
            cut = None if top_p == 1 else logits.new_full((len(logits),), top_p)
            chosen = pick_tokens(
                logits, uniforms.to(device), logits.new_full((len(logits),), temperature), cut
            )
        log_probs[alive] += logits.log_softmax(-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        stopped = torch.isin(chosen, stop_ids)
        for row, token, is_stop in zip(alive.tolist(), chosen.tolist(), stopped.tolist(), strict=True):
            if is_stop:
                end_ids[row] = token
            else:
                tokens[row].append(token)
        if bool(stopped.all()) or step == max_new_tokens - 1:
            break
        if bool(stopped.any()):
            keep = (~stopped).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            alive, chosen, mask, positions = alive[keep], chosen[keep], mask[keep], positions[keep]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        logits = forward_logits(
            model,
            keep=1,
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        positions = positions + 1
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [
        Sampled(text.strip(), tuple(ids), end_id, float(log_prob))
        for text, ids, end_id, log_prob in zip(texts, tokens, end_ids, log_probs, strict=True)
    ]


def pick_tokens(
    logits: Tensor,  # (B, V)
    uniforms: Tensor,  # (B,) in [0, 1)
    temperature: Tensor,  # (B,) above 0
    top_p: Tensor | None = None,  # (B,) in (0, 1]
) -> Tensor:  # (B,) token ids
    """One token a row, by inverting the cumulative distribution at a uniform number."""
    probs = (logits / temperature.unsqueeze(1)).softmax(-1)
    order = None
    if top_p is not None:
        probs, order = probs.sort(-1, descending=True)
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p.unsqueeze(1), 0.0)
    cumulative = probs.cumsum(-1)
    target = uniforms.unsqueeze(1) * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, target, right=True).clamp(max=probs.shape[-1] - 1)
    return (picked if order is None else order.gather(1, picked)).squeeze(1)


def _row_noise(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + row * 7_919) % 2**63)
