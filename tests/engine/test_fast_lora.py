"""A LoRA layer's fast forward against PEFT's own: values, gradients, and who is left to PEFT."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from engine.families import (
    assert_same,
    assert_same_gradients,
    build,
    gradients,
    slow_log_probs,
)
from engine.test_fast_modules import BRANCHES, MANY, bf16, measure_errors, pack, twins
from thumbtune.engine import lora
from thumbtune.engine.fast_modules import speed_up_modules
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.lora import FastLoraLinear
from thumbtune.engine.low_precision import drop_low_precision_copies

ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.3},
    "with a bias": {"bias": "lora_only"},
}


def adapt(family: str, **settings: Any) -> Any:
    """A model under an adapter that is not fresh: a fresh one changes nothing, and hides as much."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = get_peft_model(
            build(family), LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", **settings)
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_packed_lora_has_the_values_and_gradients_of_peft_s_own_forward(adapter: str, family: str) -> None:
    own, model = (adapt(family, **ADAPTERS[adapter]) for _ in range(2))
    path = pack(model)
    assert len(twins(model, FastLoraLinear)) == 14
    expected, found = slow_log_probs(own, BRANCHES), path.log_probs(model, BRANCHES)
    assert_same(found, expected)
    slow = gradients(own, expected)
    assert any("lora_B" in name for name in slow)
    assert_same_gradients(gradients(model, found), slow)
    log_probs, carrier = path.carry(model, BRANCHES)
    riders = [Branch([9, 10], [6, 7, 8]), Branch([14, 15, 16], [12])]
    with torch.no_grad():
        assert_same(carrier.ride(model, riders), slow_log_probs(own, riders))
        assert_same(log_probs.detach(), expected.detach())


@pytest.mark.parametrize("trains_base", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adapter", ["plain", "rslora", "dora"])
def test_one_lora_layer_equals_peft_s_own_value_and_gradient(
    adapter: str, bias: bool, trains_base: bool
) -> None:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = nn.Linear(5, 4, bias=bias).requires_grad_(trains_base)
        config = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, **ADAPTERS[adapter])
        own = Linear(base, "default", config, r=2, lora_alpha=6)
        nn.init.normal_(own.lora_B["default"].weight)
        x = torch.randn(2, 3, 5).requires_grad_()
    fast = copy.deepcopy(own)
    assert speed_up_modules(nn.Sequential(fast))["FastLoraLinear"] == 1
    weights = torch.linspace(1, 2, 24).view(2, 3, 4)
    found, expected = fast(x), own(x)
    assert_same(found, expected, tolerance=1e-6)
    trained = [[p for p in layer.parameters() if p.requires_grad] for layer in (fast, own)]
    assert len(trained[0]) == 2 + (adapter == "dora") + trains_base * (1 + bias)
    quick = torch.autograd.grad((found * weights).sum(), [x, *trained[0]])
    slow = torch.autograd.grad((expected * weights).sum(), [x, *trained[1]])
    for gradient, wanted in zip(quick, slow, strict=True):
        assert_same(gradient, wanted, tolerance=1e-6)


@pytest.mark.parametrize(
    ("adapter", "is_taken"), [("plain", True), ("rslora", True), ("dropout", True), ("dora", False)]
)
def test_plain_lora_is_computed_here_and_the_rest_by_peft(
    adapter: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapt("llama", **ADAPTERS[adapter])
    path = pack(model)
    taken: list[bool] = []
    own = lora._is_plain_lora
    monkeypatch.setattr(lora, "_is_plain_lora", lambda *given: taken.append(own(*given)) or taken[-1])
    path.log_probs(model, BRANCHES)
    assert taken == [is_taken] * 14
    path.log_probs(model.train(), BRANCHES)
    assert taken[14:] == [is_taken and adapter != "dropout"] * 14


def test_a_float32_adapter_on_bf16_weights_computes_as_peft_does() -> None:
    own, model = adapt("llama"), adapt("llama")
    for adapted in (own, model):
        adapted.base_model.model.to(torch.bfloat16)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    speed_up_modules(model)
    expected, found = slow_log_probs(own, BRANCHES), slow_log_probs(model, BRANCHES)
    assert torch.equal(found, expected)
    slow, quick = gradients(own, expected), gradients(model, found)
    assert all(torch.equal(quick[name], slow[name]) for name in slow)
    assert {gradient.dtype for gradient in slow.values()} == {torch.float32}


def test_adapter_dropout_in_training_is_peft_s_own_draw_for_draw() -> None:
    own, model = (adapt("llama", lora_dropout=0.3).train() for _ in range(2))
    speed_up_modules(model)
    torch.manual_seed(0)
    expected = slow_log_probs(own, BRANCHES)
    torch.manual_seed(0)
    found = slow_log_probs(model, BRANCHES)
    assert_same(found, expected)
    with torch.no_grad():
        assert float((slow_log_probs(own.eval(), BRANCHES) - expected).abs().max()) > 0.1


def test_adapter_dropout_acts_on_the_packed_path_too() -> None:
    model = adapt("llama", lora_dropout=0.3)
    path = pack(model)
    with torch.no_grad():
        still = path.log_probs(model, BRANCHES)
        model.train()
        torch.manual_seed(0)
        first, second = path.log_probs(model, BRANCHES), path.log_probs(model, BRANCHES)
    assert not torch.equal(first, second)
    assert not torch.equal(first, still)


def test_a_disabled_adapter_leaves_the_base() -> None:
    base, model = build("llama"), adapt("llama")
    path = pack(model)
    with torch.no_grad():
        expected = slow_log_probs(base, BRANCHES)
        with model.disable_adapter():
            assert_same(path.log_probs(model, BRANCHES), expected)
        assert float((path.log_probs(model, BRANCHES) - expected).abs().max()) > 0.1


def test_two_adapters_act_one_at_a_time_and_together() -> None:
    from peft import LoraConfig

    own, model = adapt("llama"), adapt("llama")
    path = pack(model)
    for adapted in (own, model):
        torch.manual_seed(9)
        adapted.add_adapter(
            "other", LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        )
    speed_up_modules(model)
    seen = []
    for active in ("default", "other", ["default", "other"]):
        for adapted in (own, model):
            adapted.base_model.set_adapter(active)
        expected, found = slow_log_probs(own, BRANCHES), path.log_probs(model, BRANCHES)
        assert_same(found, expected)
        assert_same_gradients(gradients(model, found), gradients(own, expected))
        seen.append(found.detach())
    assert all(float((a - b).abs().max()) > 0.1 for a, b in zip(seen, [*seen[1:], seen[0]], strict=True))


def test_a_merged_adapter_gives_the_same_also_under_autocast() -> None:
    model = adapt("llama")
    path = pack(model)
    with torch.no_grad():
        with bf16():
            path.log_probs(model, BRANCHES)  # low-precision copies of the weights before the merge
        expected = path.log_probs(model, BRANCHES)
        model.merge_adapter()
        assert_same(path.log_probs(model, BRANCHES), expected, tolerance=1e-4)
        with bf16():
            merged = path.log_probs(model, BRANCHES)
        fresh = copy.deepcopy(model)
        drop_low_precision_copies(fresh)
        with bf16():
            assert torch.equal(merged, path.log_probs(fresh, BRANCHES))


@pytest.mark.parametrize("adapter", ["plain", "rslora", "dora"])
def test_lora_under_autocast_is_as_near_to_float32_as_peft_s_own(adapter: str) -> None:
    own, model = (adapt("llama", **ADAPTERS[adapter]) for _ in range(2))
    path = pack(model)
    exact = slow_log_probs(own, MANY)
    slow = gradients(own, exact)
    with bf16():
        plain, packed = slow_log_probs(own, MANY), path.log_probs(model, MANY)
    value, slope = measure_errors(model, packed, exact, slow)
    own_value, own_slope = measure_errors(own, plain, exact, slow)
    assert 0 < value <= 1.5 * own_value
    assert 0 < slope <= 1.5 * own_slope


def test_the_input_of_an_adapter_behind_a_gated_mlp_is_made_again_instead_of_kept() -> None:
    model = adapt("llama")
    speed_up_modules(model)
    mlp = model.get_base_model().model.layers[0].mlp
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 5 * 24 and tensor.shape[-1] == 24:
            kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mlp(x).sum().backward()
    assert len(kept) == 2  # gate and up
