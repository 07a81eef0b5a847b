"""Faster twins of a model's modules: the same numbers, never stale, taken only where they are the same."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.families import (
    PAD,
    assert_same,
    assert_same_gradients,
    build,
    gradients,
    slow_log_probs,
)
from thumbtune.engine import fast_modules
from thumbtune.engine.fast_modules import (
    FastGatedMLP,
    FastLinear,
    FastLoraLinear,
    FastRMSNorm,
    drop_low_precision_copies,
    low_precision_copy,
    speed_up_modules,
)
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.paths import choose_path

BRANCHES = [
    Branch([1, 2, 3, 4, 5], [6, 7, 8]),
    Branch([9, 10], [11]),
    Branch([1, 2, 3, 4, 5], [12, 13]),
    Branch([14, 15, 16], [17, 18, 19, 20, 21, 22]),
]


MANY = [Branch([n, n + 1, n + 2], [(7 * n + k) % 38 for k in range(1 + n % 6)]) for n in range(30)]


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def pack(model: Any, *, fast: bool = True) -> Any:
    path = choose_path(model, "packed", pad_token_id=PAD)
    if fast:
        speed_up_modules(model)
    return path


# ---- which modules are taken


def twins(model: nn.Module, mixin: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, mixin)]


def test_llama_s_modules_are_all_taken() -> None:
    model = build("llama")
    counts = speed_up_modules(model)
    # 7 linear layers in each of 2 layers and the head; 2 norms a layer and the last
    assert counts == {"FastLinear": 15, "FastRMSNorm": 5, "FastGatedMLP": 2}
    assert isinstance(model.model.norm, FastRMSNorm)
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_norm_of_one_plus_weight_and_a_gelu_are_left_alone(family: str) -> None:
    model = build(family)
    counts = speed_up_modules(model)
    assert counts.keys() == {"FastLinear"}


def test_a_trial_tells_one_plus_weight_and_gelu_apart_even_where_the_attributes_are_the_same() -> None:
    model = build("llama")

    class OnePlusRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(0.1 * torch.ones(16)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    model.model.norm = OnePlusRMSNorm()
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()
    speed_up_modules(model)
    assert twins(model, FastGatedMLP) == []
    assert not isinstance(model.model.norm, FastRMSNorm)
    assert len(twins(model, FastRMSNorm)) == 4


def test_one_kind_with_two_activations_is_tried_twice() -> None:
    model = build("llama")
    model.model.layers[1].mlp.act_fn = nn.GELU()
    speed_up_modules(model)
    assert twins(model, FastGatedMLP) == ["model.layers.0.mlp"]


def test_a_subclass_of_linear_is_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Linear(3, 3), Scaled(3, 3))
    assert speed_up_modules(model) == {"FastLinear": 1}
    assert type(model[1]) is Scaled


def test_speeding_up_twice_changes_nothing_more() -> None:
    model = build("llama")
    speed_up_modules(model)
    kinds = [type(module) for module in model.modules()]
    assert speed_up_modules(model) == {}
    assert [type(module) for module in model.modules()] == kinds


def test_a_sped_up_model_is_copied_and_saved_as_it_was(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = build("llama")
    speed_up_modules(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = slow_log_probs(model, BRANCHES)
        for parameter in other.parameters():
            parameter.mul_(1.1)
        assert torch.equal(slow_log_probs(model, BRANCHES), before)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_same(slow_log_probs(loaded, BRANCHES), before)


# ---- norm and MLP: value and gradient in float64's eyes


@pytest.mark.parametrize("shape", [(1, 7, 16), (5, 16), (2, 3, 4, 16)])
def test_the_norm_equals_its_naive_form_value_and_gradient(shape: tuple[int, ...]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    own = LlamaRMSNorm(16, eps=0.1)  # large, or its place under the root would not show
    draw = torch.Generator().manual_seed(0)
    nn.init.normal_(own.weight, generator=draw)
    norm = nn.Sequential(own)
    x = torch.randn(shape, generator=draw).requires_grad_()
    exact, weight = x.detach().double().requires_grad_(), own.weight.detach().double().requires_grad_()
    expected = weight * exact / (exact.square().mean(-1, keepdim=True) + 0.1).sqrt()
    assert speed_up_modules(norm) == {"FastRMSNorm": 1}
    found = norm(x)
    slope = torch.randn(shape, generator=draw)
    assert_same(found.double(), expected, tolerance=1e-6)
    slopes = torch.autograd.grad((found * slope).sum(), (x, own.weight))
    for gradient, wanted in zip(
        slopes, torch.autograd.grad((expected * slope).sum(), (exact, weight)), strict=True
    ):
        assert_same(gradient.double(), wanted, tolerance=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_the_gated_mlp_equals_its_own_class_value_and_gradient(bias: bool) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = LlamaMLP(LlamaConfig(hidden_size=6, num_attention_heads=2, intermediate_size=9, mlp_bias=bias))
        x = torch.randn(2, 5, 6).requires_grad_()
    fast = copy.deepcopy(own)
    speed_up_modules(fast_holder := nn.Sequential(fast))
    assert isinstance(fast_holder[0], FastGatedMLP)
    weights = torch.linspace(1, 2, 60).view(2, 5, 6)
    found, expected = fast(x), own(x)
    assert_same(found, expected, tolerance=1e-6)
    names = [name for name, _ in own.named_parameters()]
    assert len(names) == (6 if bias else 3)
    slow = torch.autograd.grad((expected * weights).sum(), [x, *own.parameters()])
    quick = torch.autograd.grad((found * weights).sum(), [x, *fast.parameters()])
    for gradient, wanted in zip(quick, slow, strict=True):
        assert_same(gradient, wanted, tolerance=1e-6)


# ---- under autocast


def measure_errors(
    model: Any, log_probs: Tensor, exact: Tensor, slow: dict[str, Tensor]
) -> tuple[float, float]:
    """Root mean square error of the log-probs, and of all gradients together as a part of their size."""
    found = gradients(model, log_probs)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    off = sum(float((found[name] - slow[name]).square().sum()) for name in slow)
    size = sum(float(gradient.square().sum()) for gradient in slow.values())
    value = float((log_probs.detach() - exact.detach()).square().mean()) ** 0.5
    return value, (off / size) ** 0.5


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mistral", "cohere2"])
def test_autocast_is_as_near_to_float32_as_the_model_s_own(family: str) -> None:
    """The yardstick is the error of a plain forward under autocast, row by row."""
    own, model = build(family), build(family)
    path = pack(model)
    exact = slow_log_probs(own, MANY)
    slow = gradients(own, exact)
    with bf16():
        plain, packed = slow_log_probs(own, MANY), path.log_probs(model, MANY)
    assert packed.dtype == torch.float32
    value, slope = measure_errors(model, packed, exact, slow)
    own_value, own_slope = measure_errors(own, plain, exact, slow)
    assert 0 < value <= 1.5 * own_value
    assert 0 < slope <= 1.5 * own_slope


@pytest.fixture
def no_watch() -> Iterator[None]:
    """No optimizer is watched as yet, not even by an earlier import of these modules."""
    hooks = importlib.import_module("torch.optim.optimizer")._global_optimizer_post_hooks
    before = dict(hooks)
    hooks.clear()
    fast_modules._watch_optimizers.cache_clear()
    yield
    hooks.clear()
    hooks.update(before)
    fast_modules._watch_optimizers.cache_clear()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=False),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
}


@pytest.mark.usefixtures("no_watch")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_the_optimizer_makes_new_low_precision_copies(optimizer: str) -> None:
    # a fused one, transformers' usual choice, changes weights without a new version
    model = build("llama")
    path = pack(model)
    step = OPTIMIZERS[optimizer](list(model.parameters()))
    with bf16():
        before = path.log_probs(model, BRANCHES)
    before.sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in model.parameters())
    step.step()
    fresh = copy.deepcopy(model)
    drop_low_precision_copies(fresh)
    with bf16(), torch.no_grad():
        after, expected = path.log_probs(model, BRANCHES), path.log_probs(fresh, BRANCHES)
    assert torch.equal(after, expected)
    assert float((after - before.detach()).abs().max()) > 0.1


def test_a_copy_is_made_once_per_change_of_the_weight() -> None:
    weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    first = low_precision_copy(weight, torch.bfloat16)
    assert low_precision_copy(weight, torch.bfloat16).data_ptr() == first.data_ptr()
    assert torch.equal(first, weight.bfloat16())
    with torch.no_grad():
        weight += 1
    second = low_precision_copy(weight, torch.bfloat16)
    assert torch.equal(second, weight.bfloat16())
    assert second.data_ptr() == first.data_ptr()  # written anew where it was, so memory stays in one piece
    assert low_precision_copy(weight, torch.float16).dtype == torch.float16
    assert low_precision_copy(weight, torch.float32) is weight
    assert low_precision_copy(None, torch.bfloat16) is None


def test_new_weights_behind_the_parameter_s_back_are_seen() -> None:
    # `.data` tells no version: PEFT merges so
    model = build("llama")
    path = pack(model)
    with bf16(), torch.no_grad():
        before = path.log_probs(model, BRANCHES)
        for parameter in model.parameters():
            parameter.data = 1.1 * parameter.data
        fresh = copy.deepcopy(model)
        drop_low_precision_copies(fresh)
        after = path.log_probs(model, BRANCHES)
        assert torch.equal(after, path.log_probs(fresh, BRANCHES))
    assert float((after - before.detach()).abs().max()) > 0.1


def test_copies_are_dropped_when_told() -> None:
    model = build("llama")
    path = pack(model)
    with bf16():
        path.log_probs(model, BRANCHES)
    held = [p for p in model.parameters() if "_low_precision" in p.__dict__]
    assert len(held) == 15
    drop_low_precision_copies(model)
    assert not any("_low_precision" in p.__dict__ for p in model.parameters())


# ---- LoRA

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
    own = fast_modules._is_plain_lora
    monkeypatch.setattr(fast_modules, "_is_plain_lora", lambda *given: taken.append(own(*given)) or taken[-1])
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


def test_a_fast_linear_equals_linear_and_learns_under_autocast() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = nn.Linear(4, 3)
        x = torch.randn(5, 4)
    fast = nn.Sequential(copy.deepcopy(own))
    speed_up_modules(fast)
    assert isinstance(fast[0], FastLinear)
    assert torch.equal(fast(x), own(x))
    with bf16():
        assert torch.equal(fast(x), own(x))
        fast(x).float().square().sum().backward()
        own(x).float().square().sum().backward()
    for mine, theirs in zip(fast.parameters(), own.parameters(), strict=True):
        assert mine.grad.dtype == torch.float32
        assert torch.equal(mine.grad, theirs.grad)
