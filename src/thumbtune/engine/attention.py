"""Attention over a packed row: each piece sees its prompt and itself, and nothing else.

Registered with transformers under the name of the model's own attention plus a prefix, so that a forward without a
packed batch runs as before. A GPU takes all pieces in one kernel call (`thumbtune.engine.varlen`). On a CPU, and where
that kernel does not fit, each piece is computed by plain matrix products, a block of queries at a time: on pieces of a
few hundred tokens torch's fused CPU kernel takes twice as long, forward and backward together (docs/decisions/006).
Scores are never kept: the backward computes them again.

Sliding windows and soft caps are honoured. What is not (attention sinks, learned biases, dropout) raises
`NotPackable`, and the model runs on the padded path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thumbtune.engine.allocator import scratch
from thumbtune.engine.low_precision import autocast_dtype
from thumbtune.engine.packing import PackedBatch, Piece
from thumbtune.engine.varlen import attend_varlen, has_varlen_kernel

PREFIX = "thumbtune_"
QUERY_BLOCK = 160
"""Queries of one block: bounds the scores that exist at once to heads × block × keys."""
QUERY_STEP, KEY_STEP = 16, 32
"""A block is filled up with zeros to multiples of these. oneDNN keeps 0.6 MB of code for each shape of a product in low
precision, a thousand shapes long, and takes 0.7 ms to make it: shapes have to come again from batch to batch.
Keys in multiples of the queries' step: so a query of zeros sees a key of zeros, where a window hides all others."""
KEY_STRETCH = 1024
"""oneDNN's sums over more keys than these are of another order with every number of keys, zeros counted."""

_UNSUPPORTED = ("s_aux", "position_bias", "cache")


class NotPackable(Exception):  # noqa: N818 (no error: the padded path serves)
    """This model computes in a way that a packed row cannot have."""


def install_packed_attention(model: Any) -> None:
    """Let a model's attention take packed batches. Without one, it attends as it did."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    before = model.config._attn_implementation
    if before.startswith(PREFIX):
        return
    name = PREFIX + before
    AttentionInterface.register(name, _attention_over(before))
    if before in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise NotPackable("it takes no attention function from outside")


def _attention_over(before: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """transformers' attention function `before`, but for packed batches."""

    def attend(
        module: Any,
        query: Tensor,  # (1, H, T, D)
        key: Tensor,  # (1, K, T, D); H is a multiple of K
        value: Tensor,  # (1, K, T, E)
        attention_mask: Tensor | None,
        *args: Any,
        packed: PackedBatch | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if packed is None:
            return _find_attention(module, before)(module, query, key, value, attention_mask, *args, **kwargs)
        if kwargs.get("dropout"):
            raise NotPackable("attention dropout is on")
        if attention_mask is not None and attention_mask.numel() > 1:
            raise NotPackable("its attention has a mask of its own")
        for name in _UNSUPPORTED:
            if kwargs.get(name) is not None:
                raise NotPackable(f"its attention takes {name}")
        scaling = kwargs.get("scaling")
        rule = Rule(
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            window=kwargs.get("sliding_window"),
            soft_cap=kwargs.get("softcap"),
        )
        return attend_packed(query, key, value, packed, layer=module.layer_idx, rule=rule), None

    return attend


def _find_attention(module: Any, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    from transformers import AttentionInterface

    if name == "eager":  # each family has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface()[name]


class Rule(NamedTuple):
    """How a layer attends, beside who sees whom."""

    scaling: float
    window: int | None = None
    """Keys that a query sees, itself included; None for all."""
    soft_cap: float | None = None


def attend_packed(
    query: Tensor,  # (1, H, T, D)
    key: Tensor,  # (1, K, T, D)
    value: Tensor,  # (1, K, T, E)
    packed: PackedBatch,
    *,
    layer: int,
    rule: Rule,
) -> Tensor:  # (1, T, H, E), contiguous
    """Attention of a packed row, in autocast's precision where that is on."""
    dtype = autocast_dtype(query)
    if dtype is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if packed.keeps is not None and not packed.keeps.closed:
        packed.keeps.keys_values[layer] = key.detach(), value.detach()
        packed.keeps.windows[layer] = rule.window
    kept = packed.rides_on.keys_values[layer] if packed.rides_on is not None else None
    if has_varlen_kernel(query, value, rule.soft_cap):
        return attend_varlen(query, key, value, kept, packed.pieces, scaling=rule.scaling, window=rule.window)
    return _PackedAttention.apply(query, key, value, *(kept or (None, None)), packed.pieces, rule)


class _PackedAttention(torch.autograd.Function):
    """Softmax attention by blocks of queries. Saves query, key and value alone."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kept_key: Tensor | None,
        kept_value: Tensor | None,
        pieces: tuple[Piece, ...],
        rule: Rule,
    ) -> Tensor:
        heads, kv_heads = query.shape[1], key.shape[1]
        output = query.new_empty(1, query.shape[2], heads, value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            for block in _list_blocks(pieces, rule.window):
                q = _group_heads(query, block, kv_heads, rule.scaling)  # (K, R·Bq, D)
                k = _gather_keys(key, kept_key, block)  # (K, Lk, D)
                weights, _ = _attention_weights(q, k, block, rule)
                mixed = _sum_over_keys(weights, _gather_keys(value, kept_value, block))
                _ungroup_heads(output[0, block.start : block.stop].transpose(0, 1), mixed)
        ctx.save_for_backward(query, key, value, kept_key, kept_value)
        ctx.pieces, ctx.rule = pieces, rule
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, kept_key, kept_value = ctx.saved_tensors
        assert kept_key is None, "what rides on kept prompts takes no gradient"
        kv_heads = key.shape[1]
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_output = grad_output.transpose(1, 2).to(query.dtype)
        with torch.autocast(query.device.type, enabled=False):
            for block in _list_blocks(ctx.pieces, ctx.rule.window):
                q = _group_heads(query, block, kv_heads, ctx.rule.scaling)
                k = _gather_keys(key, kept_key, block)
                v = _gather_keys(value, kept_value, block)
                grad = _group_heads(grad_output, block, kv_heads)
                weights, slope = _attention_weights(q, k, block, ctx.rule)
                grad_weights = torch.bmm(grad, v.transpose(1, 2))
                _scatter_keys(grad_value, torch.bmm(weights.transpose(1, 2), grad), block)
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                if slope is not None:
                    grad_scores = (grad_scores * slope).to(q.dtype)
                _ungroup_heads(grad_query[0, :, block.start : block.stop], _sum_over_keys(grad_scores, k))
                _scatter_keys(grad_key, torch.bmm(grad_scores.transpose(1, 2), q), block)
        return grad_query.mul_(ctx.rule.scaling), grad_key, grad_value, None, None, None, None


class _Block(NamedTuple):
    """Queries `start:stop` of the row, and the keys they see: a stretch of a prompt, then one of their own piece."""

    start: int
    stop: int
    prompt: tuple[int, int] | None
    own: tuple[int, int]
    first: int
    """Which of these keys is the first query's own position."""

    @property
    def n_queries(self) -> int:
        """Zeros behind them included."""
        return _round_up(self.stop - self.start, QUERY_STEP)

    @property
    def n_keys(self) -> int:
        """Zeros behind them included: no query sees so far."""
        n_prompt = self.prompt[1] - self.prompt[0] if self.prompt else 0
        return _round_up(n_prompt + self.own[1] - self.own[0], KEY_STEP)


def _round_up(n: int, step: int) -> int:
    return n + -n % step


def _list_blocks(pieces: tuple[Piece, ...], window: int | None) -> Iterator[_Block]:
    for piece in pieces:
        n_prompt = piece.prompt[1] - piece.prompt[0] if piece.prompt else 0
        for start in range(piece.start, piece.stop, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, piece.stop)
            position = n_prompt + start - piece.start
            lowest = 0 if window is None else max(position - window + 1, 0)  # position of the first key seen
            prompt = None
            if piece.prompt and lowest < n_prompt:
                prompt = (piece.prompt[0] + lowest, piece.prompt[1])
            own = (piece.start + max(lowest - n_prompt, 0), stop)
            yield _Block(start, stop, prompt, own, position - lowest)


def _attention_weights(
    q: Tensor, k: Tensor, block: _Block, rule: Rule
) -> tuple[Tensor, Tensor | None]:  # (K, R·Bq, Lk) each, the slope in float32
    """Softmax weights of scaled queries, and the slope of the soft cap at each score where there is one.

    Between the products is float32: torch's softmax of bf16 rounds by how long a row is, and a completion would have
    another log-prob beside its siblings than alone.
    """
    n_queries, n_keys = block.n_queries, block.n_keys
    shape = (len(q), q.shape[1], n_keys)
    product = torch.bmm(q, k.transpose(1, 2), out=scratch("products", shape, q))
    scores, slope = scratch("scores", shape, q, torch.float32).copy_(product), None
    if rule.soft_cap is not None:
        scores.div_(rule.soft_cap).tanh_()
        slope = 1 - scores.square()
        scores.mul_(rule.soft_cap)
    seen_by_all = block.first if rule.window is None else 0
    mask = _build_mask(n_queries, n_keys - seen_by_all, block.first - seen_by_all, rule.window, q.device)
    scores.view(-1, n_queries, n_keys)[:, :, seen_by_all:] += mask
    return product.copy_(torch.softmax(scores, -1, out=scores)), slope


def _sum_over_keys(weights: Tensor, keys: Tensor) -> Tensor:  # (K, R·Bq, Lk), (K, Lk, D) -> (K, R·Bq, D)
    """Their product, one stretch of keys after the other: the same bits however many zeros fill the block up.

    A row's block ends elsewhere beside its siblings than alone, and so has other zeros.
    """
    if weights.shape[-1] <= KEY_STRETCH:
        return torch.bmm(weights, keys)
    total = keys.new_zeros(*weights.shape[:2], keys.shape[-1], dtype=torch.float32)
    for some, those in zip(weights.split(KEY_STRETCH, -1), keys.split(KEY_STRETCH, 1), strict=True):
        total += torch.bmm(some, those)
    return total.to(keys.dtype)


@lru_cache(maxsize=64)
def _build_mask(n_queries: int, n_keys: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """(Bq, Lk) zeros where query i may see key j: j ≤ first + i, and above first + i − window; −inf elsewhere."""
    hidden = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).triu(first + 1)
    if window is not None:
        hidden |= torch.ones_like(hidden).tril(first - window)
    return torch.zeros(n_queries, n_keys, device=device).masked_fill_(hidden, -torch.inf)


def _group_heads(x: Tensor, block: _Block, kv_heads: int, scale: float = 1.0) -> Tensor:
    """(1, K·R, T, D) -> (K, R·Bq, D) of a block: the queries that share keys, one below the other, scaled."""
    n_queries = block.stop - block.start
    grouped = x.new_empty(x.shape[1], block.n_queries, x.shape[-1])
    grouped[:, :n_queries] = x[0, :, block.start : block.stop]
    if n_queries < block.n_queries:
        grouped[:, n_queries:] = 0
    if scale != 1.0:
        grouped.mul_(scale)
    return grouped.view(kv_heads, -1, x.shape[-1])


def _ungroup_heads(target: Tensor, grouped: Tensor) -> None:
    """(K, R·Bq, D) into a view (K·R, Bq, D) without the zeros."""
    heads, n_queries, width = target.shape
    target.copy_(grouped.view(heads, -1, width)[:, :n_queries])


def _gather_keys(own: Tensor, kept: Tensor | None, block: _Block) -> Tensor:
    """(K, Lk, D) keys or values that a block sees; the prompt's from the kept row where there is one."""
    parts = [own[0, :, slice(*block.own)]]
    if block.prompt is not None:
        source = own if kept is None else kept
        parts.insert(0, source[0, :, slice(*block.prompt)])
    n_missing = block.n_keys - sum(part.shape[1] for part in parts)
    if n_missing:
        parts.append(own.new_zeros(own.shape[1], n_missing, own.shape[-1]))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()


def _scatter_keys(target: Tensor, grad: Tensor, block: _Block) -> None:
    """Add a block's gradient to where its keys stand."""
    n_prompt = 0
    if block.prompt is not None:
        n_prompt = block.prompt[1] - block.prompt[0]
        target[0, :, slice(*block.prompt)] += grad[:, :n_prompt]
    n_own = block.own[1] - block.own[0]
    target[0, :, slice(*block.own)] += grad[:, n_prompt : n_prompt + n_own]
