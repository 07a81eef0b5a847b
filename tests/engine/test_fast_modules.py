"""Faster twins of a model's modules: the same numbers, never stale, taken only where they are the same."""

from __future__ import annotations

import contextlib
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
    build,
    gradients,
    slow_log_probs,
)
from thumbtune.engine import low_precision
from thumbtune.engine.fast_modules import FastGatedMLP, FastRMSNorm, sped_up, speed_up_modules
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.low_precision import FastLinear, drop_low_precision_copies, low_precision_copy
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
    assert counts == {"FastLinear": 15, "FastRMSNorm": 5, "FastGatedMLP": 2, "FastRotaryAttention": 2}
    assert isinstance(model.model.norm, FastRMSNorm)
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"


@pytest.mark.parametrize("fails", [True, False])
def test_a_model_that_was_sped_up_for_a_while_is_as_it_was(fails: bool) -> None:
    model = build("llama")
    model.lm_head.__class__ = FastLinear  # what was fast before stays so
    kinds = [type(module) for module in model.modules()]
    with contextlib.suppress(KeyError), sped_up(model):
        assert len(twins(model, FastLinear)) == 15
        with bf16(), torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))
        assert hasattr(model.lm_head.weight, "_low_precision")
        if fails:
            raise KeyError
    assert [type(module) for module in model.modules()] == kinds
    assert not any(hasattr(weight, "_low_precision") for weight in model.parameters())


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_norm_of_one_plus_weight_and_a_gelu_are_left_alone(family: str) -> None:
    model = build(family)
    counts = speed_up_modules(model)
    assert counts.keys() == {"FastLinear", "FastRotaryAttention"}


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
    low_precision._watch_optimizers.cache_clear()
    yield
    hooks.clear()
    hooks.update(before)
    low_precision._watch_optimizers.cache_clear()


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


def test_a_copy_on_another_device_than_its_parameter_is_not_written_to() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    left_behind = torch.empty(4, 4, dtype=torch.bfloat16, device="meta")
    weight._low_precision = low_precision._Kept(None, left_behind)  # type: ignore[attr-defined]
    assert torch.equal(low_precision.kept_copy(weight, torch.bfloat16), weight.bfloat16())


def test_copies_are_dropped_when_told() -> None:
    model = build("llama")
    path = pack(model)
    with bf16():
        path.log_probs(model, BRANCHES)
    held = [p for p in model.parameters() if "_low_precision" in p.__dict__]
    assert len(held) == 15
    drop_low_precision_copies(model)
    assert not any("_low_precision" in p.__dict__ for p in model.parameters())


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
