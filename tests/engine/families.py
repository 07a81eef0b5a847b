"""Tiny models of many families, with weights large enough that a wrong position, window or cap shows.

`slow_log_probs` is what all paths are held against: one unpadded row at a time, by the model's own plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from thumbtune.engine.logprobs import Branch

N_TOKENS = 40  # token ids 0 … 39 are drawn; 39 is the padding and is never drawn as content
PAD = N_TOKENS - 1
WINDOW = 4  # of every family that has one: shorter than most branches, and than many prompts

token_ids = st.integers(0, PAD - 1)
prompts = st.lists(token_ids, min_size=1, max_size=9)
completions = st.lists(token_ids, min_size=1, max_size=7)
some = partial(settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def branch_lists(draw: st.DrawFn, max_size: int = 6) -> list[Branch]:
    """Branches of up to three prompts in any order, some of them twice."""
    shared = draw(st.lists(prompts, min_size=1, max_size=3))
    drawn = st.builds(Branch, st.sampled_from(shared), completions)
    branches = draw(st.lists(drawn, min_size=1, max_size=max_size - 1))
    return [*branches, *draw(st.lists(st.sampled_from(branches), max_size=1))]


def _make(family: str, **changed: Any) -> Any:
    """A model of a family by its name in transformers: "Llama" is LlamaConfig and LlamaForCausalLM."""
    import transformers

    shape = {
        "vocab_size": N_TOKENS,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config = kind(**{**shape, **changed})
    model = getattr(transformers, f"{family}ForCausalLM", None) or getattr(
        transformers, f"{family}LMHeadModel"
    )
    return model(config)


_gpt2 = partial(
    _make,
    "GPT2",
    n_positions=64,
    n_embd=16,
    n_layer=2,
    n_head=2,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
)
_gemma2 = partial(
    _make,
    "Gemma2",
    head_dim=8,
    sliding_window=WINDOW,
    final_logit_softcapping=3.0,
    attn_logit_softcapping=5.0,
    query_pre_attn_scalar=8,
    attn_implementation="eager",
)
_mixed_windows = {"num_hidden_layers": 3, "sliding_window": WINDOW}
_gpt_oss = partial(
    _make,
    "GptOss",
    head_dim=8,
    sliding_window=WINDOW,
    num_local_experts=4,
    num_experts_per_tok=2,
    attn_implementation="eager",
)

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": partial(_make, "Llama", tie_word_embeddings=False),
    "mistral": partial(_make, "Mistral", sliding_window=WINDOW, tie_word_embeddings=False),
    "qwen2": partial(_make, "Qwen2", tie_word_embeddings=True),
    # the upper layer alone slides
    "qwen2 sliding": partial(
        _make, "Qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": partial(_make, "Qwen3", head_dim=8),
    "gemma2": _gemma2,  # soft-capped logits and attention, every other layer slides
    "gemma3": partial(
        _make,
        "Gemma3",
        head_dim=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **_mixed_windows,
    ),
    "phi3": partial(_make, "Phi3", sliding_window=WINDOW),
    "gpt2": _gpt2,  # learned absolute positions: a wrong position is a wrong embedding
    "gpt-neox": partial(_make, "GPTNeoX", rotary_pct=0.5),
    "olmo2": partial(_make, "Olmo2"),
    # rotations in some layers only
    "smollm3": partial(_make, "SmolLM3", no_rope_layers=[1, 0]),
    "granite": partial(
        _make, "Granite", logits_scaling=0.7, attention_multiplier=0.4, residual_multiplier=0.6
    ),
    "cohere2": partial(
        _make,
        "Cohere2",
        logit_scale=0.4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **_mixed_windows,
    ),
    "mixtral": partial(_make, "Mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW),
    "qwen3-moe": partial(
        _make, "Qwen3Moe", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12
    ),
    "phi": partial(_make, "Phi", partial_rotary_factor=0.5),  # a head with a bias
    "starcoder2": partial(_make, "Starcoder2", sliding_window=WINDOW, use_bias=True),
    "deepseek-v3": partial(
        _make,
        "DeepseekV3",
        num_key_value_heads=4,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=6,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=12,
    ),
}
"""Families that take packed batches."""

PADDED_ONLY: dict[str, tuple[Callable[[], Any], str]] = {
    "gpt-oss": (_gpt_oss, "s_aux"),  # attention sinks
    "qwen3-next": (
        partial(
            _make,
            "Qwen3Next",
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=4,
            linear_value_head_dim=4,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=12,
        ),
        "linear_attention",
    ),
    "mamba": (partial(_make, "Mamba", state_size=4), "linear_attention"),
    "rwkv": (
        partial(_make, "Rwkv", attention_hidden_size=16, context_length=64),
        "state",
    ),  # its state runs over padding
    "roberta": (
        partial(
            _make,
            "Roberta",
            is_decoder=True,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            max_position_embeddings=80,
        ),
        "other log-probs",
    ),  # positions start behind the padding token's number
    "bloom": (partial(_make, "Bloom", n_layer=2, n_head=2), "position"),  # ALiBi
}
"""Families that cannot, and what their reason names."""


def build(family: str) -> Any:
    """A seeded model in evaluation mode."""
    make = FAMILIES[family] if family in FAMILIES else PADDED_ONLY[family][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(family))
        model = make().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
            else:  # norms and biases that are all one number would hide a mix-up
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def slow_log_probs(model: Any, branches: Sequence[Branch]) -> Tensor:
    """log π(y|x), one row at a time, one token at a time, nothing padded."""
    sums = []
    for prompt_ids, completion_ids in branches:
        ids = [*prompt_ids, *completion_ids]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        total = logits.new_zeros(())
        for place in range(len(prompt_ids), len(ids)):
            scores = logits[place - 1 - len(ids)].float()  # from the end: virtual tokens may stand in front
            total = total + scores[ids[place]] - scores.logsumexp(0)
        sums.append(total)
    return torch.stack(sums)


def gradients(model: Any, log_probs: Tensor) -> dict[str, Tensor]:
    """Gradient of a weighted sum, so that rows cannot stand in for each other."""
    weights = torch.linspace(1, 2, len(log_probs))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((log_probs * weights).sum(), list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def assert_same(found: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> None:
    """Equal up to a part of the largest expected number."""
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    off = float((found - expected).abs().max())
    assert off <= tolerance * max(1.0, float(expected.abs().max())), f"off by {off:.3g}"


def assert_same_gradients(
    found: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float = 1e-5
) -> None:
    """Equal up to a part of the largest entry of all, name by name."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    off = {name: float((found[name] - gradient).abs().max()) for name, gradient in expected.items()}
    worst = max(off, key=lambda name: off[name])
    assert off[worst] <= tolerance * largest, f"{worst} is off by {off[worst]:.3g} of {largest:.3g}"


class CountedForwards:
    """Notes the shape of the token ids of each of a model's forwards."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.shapes: list[tuple[int, ...]] = []

    @property
    def count(self) -> int:
        return len(self.shapes)

    def __enter__(self) -> CountedForwards:
        self.hook = self.model.register_forward_pre_hook(
            lambda module, args, kwargs: self.shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()
