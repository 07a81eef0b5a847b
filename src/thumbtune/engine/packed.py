"""The packed path: log-probs of a whole microbatch from one row of tokens, each prompt encoded once.

`enable_packing` lets a causal model take a `PackedBatch`, and says why where it cannot; then `packed_log_probs` gives
what the padded path gives, gradients too. Whether a family can is not looked up but tried: the model's packed
log-probs of a few made-up rows are held against its own plain forward. What a trial of a few tokens cannot show, a
sliding window of thousands, is checked by what each layer was told.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from thumbtune.engine.attention import NotPackable, install_packed_attention
from thumbtune.engine.head import Head, describe_head, token_log_probs
from thumbtune.engine.logprobs import evaluating
from thumbtune.engine.low_precision import FastLinear, autocast_dtype, kept_copy
from thumbtune.engine.packing import PackedBatch, pack_branches, pack_riders
from thumbtune.engine.ranks import call_as_forward, is_sharded
from thumbtune.engine.trial import find_difference, make_trial, plain_log_probs

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def packed_log_probs(model: Any, batch: PackedBatch) -> Tensor:  # (N,) float32, nats
    """log π(y|x) of each branch of a packed batch, with gradient where the model takes one."""
    return model(input_ids=batch.input_ids, position_ids=batch.position_ids, packed=batch)["log_probs"]


def enable_packing(model: Any, *, tried: bool = False) -> None:
    """Let a model take packed batches; it computes as before without one. Raises `NotPackable` with the reason.

    `tried` says that another process has tried the model.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    _refuse_adapted_head(causal)
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise NotPackable("its adapter puts tokens of its own before the prompt")
    if isinstance(causal, _TakesPackedBatches):
        return
    _refuse_impossible(causal)
    own: Any = type(causal)
    attention = causal.config._attn_implementation
    try:
        install_packed_attention(causal)
        causal.__class__ = _derive_class(own)
        if not tried:
            _hold_against_own_forward(model, causal)
    except NotPackable:
        _leave_as_it_was(causal, own, attention)
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        _leave_as_it_was(causal, own, attention)
        raise NotPackable(f"its forward fails on a packed row ({type(error).__name__}: {error})") from error


def _leave_as_it_was(causal: Any, own: type, attention: str) -> None:
    causal.__class__ = own
    causal.set_attn_implementation(attention)


class _TakesPackedBatches:
    """Mixed into a causal model's class: a forward for packed batches beside its own."""

    def forward(self, *args: Any, packed: PackedBatch | None = None, **kwargs: Any) -> Any:
        if packed is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        hidden = _compute_hidden(self, packed, kwargs)
        head: Any = self.get_output_embeddings()  # type: ignore[attr-defined]
        score = functools.partial(_score_tokens, head, packed.targets, self._packed_head)  # type: ignore[attr-defined]
        scores = call_as_forward(head, score, hidden) if is_sharded(head) else score(hidden)
        return {"log_probs": scores.new_zeros(packed.n_branches).index_add(0, packed.owners, scores)}


def _score_tokens(head: Any, targets: Tensor, kind: Head, hidden: Tensor) -> Tensor:  # (C,) float32, nats
    dtype = autocast_dtype(hidden) or hidden.dtype
    # the weight of a module that is not ours may change without saying so
    copy = kept_copy(head.weight, dtype) if isinstance(head, FastLinear) else head.weight.to(dtype)
    return token_log_probs(
        hidden.to(dtype), head.weight, getattr(head, "bias", None), targets, kind, copy=copy
    )


def _compute_hidden(causal: Any, packed: PackedBatch, inputs: dict[str, Any]) -> Tensor:  # (C, hidden)
    """The states that predict the scored tokens."""
    states = packed.states
    inputs = {name: inputs[name] for name in ("input_ids", "position_ids")}
    output = causal.base_model(
        **inputs, attention_mask=_no_mask(states.device), use_cache=False, packed=packed
    )
    hidden = output.last_hidden_state[0]
    if packed.keeps is not None:
        ends = torch.tensor([stop - 1 for _, stop in packed.prompts], device=states.device)
        packed.keeps.last_hidden = hidden.detach()[ends]
    if packed.rides_on is not None:
        kept = packed.rides_on.last_hidden
        assert kept is not None, "the carrier goes first"
        hidden = torch.cat([hidden, kept.to(hidden.dtype)])
        states = states % len(hidden)  # a state below zero is counted from the end
    return hidden[states]


def _no_mask(device: torch.device) -> Tensor:
    """A mask that transformers takes for a finished one and hands on; packed attention needs none."""
    return torch.zeros(1, 1, 1, 1, device=device)


@functools.lru_cache
def _derive_class(own: type) -> type:
    """`own` that takes packed batches; its name stays, since it is written into saved configs."""
    derived = type(
        own.__name__,
        (_TakesPackedBatches, own),
        {"__module__": own.__module__, "__qualname__": own.__qualname__},
    )

    @functools.wraps(own.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _TakesPackedBatches.forward(self, *args, **kwargs)

    derived.forward = forward  # type: ignore[attr-defined]
    return derived


def _refuse_adapted_head(causal: Any) -> None:
    """The head is read by its weight, which an adapter on it is no part of: it would never be trained."""
    if hasattr(causal, "get_output_embeddings") and hasattr(causal.get_output_embeddings(), "base_layer"):
        raise NotPackable("an adapter sits on its head")


def _refuse_impossible(causal: Any) -> None:
    config = causal.config
    others = set(getattr(config, "layer_types", None) or []) - _ATTENTION_LAYERS
    if others:
        raise NotPackable(
            f"it has layers of another kind than attention, full or sliding ({', '.join(sorted(others))})"
        )
    if getattr(causal, "_is_stateful", False):
        raise NotPackable("its layers carry a state along the row")
    backbone = getattr(causal, "base_model", None)
    if backbone is None or backbone is causal or causal.get_output_embeddings() is None:
        raise NotPackable("its head cannot be told from its body")
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        raise NotPackable("it takes no position of its own for each token")
    causal._packed_head = describe_head(config)


def _hold_against_own_forward(model: Any, causal: Any) -> None:
    """Raise `NotPackable` unless a trial gives the numbers of the model's own forward, and windows were told."""
    branches, riders = make_trial(causal)
    device = next(causal.parameters()).device
    with evaluating(model), torch.no_grad():
        _let_attention_train(causal)
        batch = pack_branches(branches, keep_prompts=True).to(device)
        packed = packed_log_probs(model, batch)
        riding = packed_log_probs(model, pack_riders(riders, batch, branches).to(device))
        plain = plain_log_probs(model, [*branches, *riders])
    off = find_difference(model, torch.cat([packed, riding]), plain)
    if off is not None:
        raise NotPackable(f"a packed row gives other log-probs than its own forward (off by {off:.2g} nats)")
    assert batch.keeps is not None
    _check_windows(causal.config, batch.keeps.windows)


def _let_attention_train(causal: Any) -> None:
    """Have attention say whether it drops weights in training, which it does not say in evaluation."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in causal.modules():
        if hasattr(module, "layer_idx") and not isinstance(module, GradientCheckpointingLayer):
            module.training = True


def _check_windows(config: Any, told: dict[int, int | None]) -> None:
    """Raise `NotPackable` unless each layer was told the window that its config gives it."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(told)
    for layer, kind in enumerate(kinds):
        expected = window if kind == "sliding_attention" else None
        if told.get(layer) != expected:
            raise NotPackable(
                f"layer {layer} tells its attention of a window of {told.get(layer)}, not {expected}"
            )
