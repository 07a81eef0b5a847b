"""Rotary positions in few passes: a family's own numbers and gradients; left alone where it turns otherwise."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.families import FAMILIES, assert_same, build
from engine.test_fast_modules import bf16, twins
from thumbtune.engine import rotary
from thumbtune.engine.fast_modules import speed_up_modules
from thumbtune.engine.rotary import FastRotaryAttention

LLAMA = importlib.import_module("transformers.models.llama.modeling_llama")


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def gradients_of(function: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """Both results, and what q and k get from a weighted sum of them."""
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    turned = function(q, k, cos, sin)
    weights = draw(*(tuple(x.shape) for x in turned))
    total = sum((x.to(cos.dtype) * w).sum() for x, w in zip(turned, weights, strict=True))
    assert isinstance(total, Tensor)
    return [*turned, *torch.autograd.grad(total, (q, k))]


@pytest.mark.parametrize("n_positions", [1, 5, rotary.STRETCH, 2 * rotary.STRETCH + 3])
@pytest.mark.parametrize("n_rows", [1, 2])
def test_it_equals_the_written_out_form_value_and_gradient(n_positions: int, n_rows: int) -> None:
    q, k, cos, sin = draw(
        (n_rows, 3, n_positions, 8),
        (n_rows, 1, n_positions, 8),
        (n_rows, n_positions, 8),  # halves that differ, as no family has them: nothing is taken for equal
        (n_rows, n_positions, 8),
    )

    def turn(x: Tensor) -> Tensor:
        a, b = x.double().chunk(2, -1)
        first, second = cos[:, None].double().chunk(2, -1), sin[:, None].double().chunk(2, -1)
        return torch.cat([a * first[0] - b * second[0], b * first[1] + a * second[1]], -1)

    fast = rotary._faster(LLAMA.apply_rotary_pos_emb)
    found = gradients_of(fast, q, k, cos, sin)
    wanted = gradients_of(lambda q, k, *_: (turn(q), turn(k)), q, k, cos, sin)
    for mine, exact in zip(found, wanted, strict=True):
        assert_same(mine.double(), exact.double(), tolerance=1e-6)


def test_under_autocast_it_is_the_family_s_own_rounded_once() -> None:
    q, k = draw((1, 3, 70, 8), (1, 2, 70, 8), dtype=torch.bfloat16)
    cos, sin = draw((1, 70, 8), (1, 70, 8))
    own = LLAMA.apply_rotary_pos_emb
    fast = rotary._faster(own)
    with bf16():
        mine, theirs = gradients_of(fast, q, k, cos, sin), gradients_of(own, q, k, cos, sin)
    for x in mine:
        assert x.dtype == torch.bfloat16
    for found, wanted in zip(
        mine[:2], theirs[:2], strict=True
    ):  # one ulp where a fused product rounds the other way
        assert float((found != wanted.bfloat16()).float().mean()) < 0.01
        assert_same(found.float(), wanted.float(), tolerance=2**-7)
    for found, wanted in zip(mine[2:], theirs[2:], strict=True):
        assert_same(found.float(), wanted.float(), tolerance=2**-6)


def test_without_autocast_precision_is_the_family_s_own() -> None:
    q, k = draw((1, 3, 4, 8), (1, 2, 4, 8), dtype=torch.bfloat16)
    cos, sin = draw((1, 4, 8), (1, 4, 8))
    for module, expected in ((LLAMA, torch.float32), (_family_module("olmo2"), torch.bfloat16)):
        own = module.apply_rotary_pos_emb
        for found, wanted in zip(rotary._faster(own)(q, k, cos, sin), own(q, k, cos, sin), strict=True):
            assert found.dtype == wanted.dtype == expected
            assert torch.equal(found, wanted)


def _family_module(name: str) -> Any:
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_family_s_attention_is_taken_or_left_as_its_way_of_turning_is(family: str) -> None:
    """Interleaved pairs (Cohere), no rotation (GPT-2) and another call (DeepSeek, by the trial) are left alone."""
    model = build(family)
    kinds = {name: type(module) for name, module in model.named_modules()}
    speed_up_modules(model)
    taken = twins(model, FastRotaryAttention)
    assert bool(taken) == (family not in LEFT_ALONE)
    for name in taken:
        module = model.get_submodule(name)
        assert type(module).__name__ == kinds[name].__name__
        assert type(module).__module__ == kinds[name].__module__


LEFT_ALONE = {"gpt2", "cohere2"}


def test_part_of_a_head_that_turns_is_left_to_the_family() -> None:
    q, k, cos, sin = draw((1, 2, 4, 8), (1, 2, 4, 8), (1, 4, 4), (1, 4, 4))
    own = _family_module("gpt_neox").apply_rotary_pos_emb
    for found, wanted in zip(rotary._faster(own)(q, k, cos, sin), own(q, k, cos, sin), strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(own(q, k, cos, sin)[0], q)


def test_a_twin_is_copied_and_a_model_without_gradient_keeps_none() -> None:
    model = build("llama")
    speed_up_modules(model)
    ids = torch.tensor([[1, 2, 3, 4]])
    other = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(other(ids).logits, model(ids).logits)
    assert model(ids).logits.requires_grad


def test_a_forward_that_is_wrapped_is_left_alone() -> None:
    class Wrapped(LLAMA.LlamaAttention):  # type: ignore[misc, name-defined]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert rotary.derive_rotary_twin(Wrapped) is None
    assert rotary.derive_rotary_twin(nn.Linear) is None
