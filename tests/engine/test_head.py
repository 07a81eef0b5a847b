"""The log-prob head against its naive equivalent: values and all gradients, whatever the tiles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from engine.families import FAMILIES, assert_same
from thumbtune.engine import head as head_module
from thumbtune.engine.head import Head, describe_head, token_log_probs

heads = st.builds(Head, st.sampled_from([1.0, 0.25, 1.7]), st.none() | st.sampled_from([0.8, 3.0, 30.0]))


def naive(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head = Head()
) -> Tensor:
    logits = functional.linear(hidden, weight, bias) * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * (logits / head.soft_cap).tanh()
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def draw_inputs(n: int, size: int, vocabulary: int, *, bias: bool, seed: int) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, size, generator=draw).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=draw).requires_grad_()
    offset = torch.randn(vocabulary, generator=draw).requires_grad_() if bias else None
    return hidden, weight, offset, torch.randint(vocabulary, (n,), generator=draw)


def test_two_tokens_worked_by_hand() -> None:
    # logits (2, 0, 1) and (0, 3, −1) of hidden states (2, 0), (0, 1) by the rows (1, 0), (0, 3), (½, −1):
    # 2 − log(e² + e⁰ + e¹) = −0.407606 and −1 − log(e⁰ + e³ + e^−1) = −4.065884
    weight = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.5, -1.0]])
    hidden, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2])
    expected = [
        2 - math.log(math.exp(2) + 1 + math.exp(1)),
        -1 - math.log(1 + math.exp(3) + math.exp(-1)),
    ]
    assert expected == pytest.approx([-0.407606, -4.065884], abs=1e-6)
    assert token_log_probs(hidden, weight, None, targets).tolist() == pytest.approx(expected, abs=1e-6)


@given(
    n=st.integers(1, 9),
    size=st.integers(1, 6),
    vocabulary=st.integers(2, 11),
    bias=st.booleans(),
    head=heads,
    tile=st.sampled_from([1, 25, 2**24]),
    frozen=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_it_equals_the_naive_head_value_and_gradient(
    n: int, size: int, vocabulary: int, bias: bool, head: Head, tile: int, frozen: bool, seed: int
) -> None:
    *inputs, targets = draw_inputs(n, size, vocabulary, bias=bias, seed=seed)
    for tensor in inputs[1:] if frozen else []:
        if tensor is not None:
            tensor.requires_grad_(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "TILE_LOGITS", tile)
        found = token_log_probs(*inputs, targets, head)
        exact_inputs = [x if x is None else x.detach().double().requires_grad_() for x in inputs]
        expected = naive(*exact_inputs, targets, head)
        assert_same(found.double(), expected, tolerance=3e-6)
        weights = torch.linspace(1, 2, n)
        trained = [i for i, x in enumerate(inputs) if x is not None and x.requires_grad]
        slopes = torch.autograd.grad((found * weights).sum(), [inputs[i] for i in trained])
    exact = torch.autograd.grad((expected * weights).sum(), [exact_inputs[i] for i in trained])
    for slope, wanted in zip(slopes, exact, strict=True):
        assert_same(slope.double(), wanted, tolerance=3e-6)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(trained: str) -> None:
    hidden, weight, bias, targets = draw_inputs(5, 4, 7, bias=True, seed=0)
    inputs = {"hidden": hidden, "weight": weight, "bias": bias}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == trained)
    token_log_probs(hidden, weight, bias, targets, Head(0.5, 2.0)).sum().backward()
    found = inputs[trained].grad
    inputs[trained].grad = None
    naive(hidden, weight, bias, targets, Head(0.5, 2.0)).sum().backward()
    assert_same(found, inputs[trained].grad)
    assert all(tensor.grad is None for name, tensor in inputs.items() if name != trained)


def test_no_tokens_give_no_log_probs_and_no_slope() -> None:
    hidden, weight, _, targets = draw_inputs(0, 4, 7, bias=False, seed=0)
    found = token_log_probs(hidden, weight, None, targets)
    assert found.shape == (0,)
    found.sum().backward()
    assert bool((weight.grad == 0).all())


def test_bf16_hidden_states_give_float32_log_probs_of_their_own_logits() -> None:
    hidden, weight, _, targets = draw_inputs(40, 16, 50, bias=False, seed=1)
    hidden, weight = hidden.detach().bfloat16(), weight.detach().bfloat16()
    found = token_log_probs(hidden, weight, None, targets)
    logits = functional.linear(hidden, weight)  # rounded to bf16, as the model's own head gives them
    assert found.dtype == torch.float32
    expected = logits.double().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert_same(found.double(), expected, tolerance=1e-6)


@pytest.mark.parametrize("sureness", [0.1, 4.0])
def test_a_frozen_head_pulls_at_bf16_states_as_exactly_as_a_trained_one(sureness: float) -> None:
    # a sure token's slope is a small difference: rounded before it is taken, nothing of it would be left
    _, weight, _, _ = draw_inputs(1, 16, 50, bias=False, seed=3)
    targets = torch.arange(40)
    weight = functional.normalize(weight.detach(), dim=-1).bfloat16()
    hidden = (5 * sureness * weight[:40]).detach().requires_grad_()
    exact = hidden.detach().double().requires_grad_()
    naive(exact, weight.double(), None, targets).sum().backward()
    errors = {}
    for is_trained in (False, True):
        hidden.grad = None
        token_log_probs(hidden, weight.detach().requires_grad_(is_trained), None, targets).sum().backward()
        errors[is_trained] = float((hidden.grad.double() - exact.grad).norm() / exact.grad.norm())
    assert errors[False] < 1.2 * errors[True]
    assert errors[True] < 0.05


@pytest.mark.parametrize("head", [Head(), Head(0.25, 3.0)])
def test_logits_that_were_kept_give_the_gradient_that_new_ones_give(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw_inputs(40, 16, 50, bias=True, seed=4)
    *inputs, targets = (x if x.dtype == torch.int64 else x.detach().bfloat16() for x in drawn)
    monkeypatch.setattr(head_module, "TILE_LOGITS", 100)  # twenty tiles of ten positions and ten tokens
    products: list[tuple[int, ...]] = []
    own = head_module._multiply
    monkeypatch.setattr(head_module, "_multiply", lambda *given: products.append(()) or own(*given))
    slopes, counts = [], []
    for room in (0, 730, 2**26):  # none, seven, all
        monkeypatch.setattr(head_module, "KEPT_LOGITS", room)
        trained = [x.clone().requires_grad_() for x in inputs]
        products.clear()
        found = token_log_probs(*trained, targets, head)
        with torch.no_grad():
            token_log_probs(*trained, targets, head)
        for _ in range(2):  # kept ones are not used up
            gradient = torch.autograd.grad(
                (found * torch.linspace(1, 2, 40)).sum(), trained, retain_graph=True
            )
        slopes.append(gradient)
        counts.append(len(products))
    assert counts == [80, 80 - 14, 40]
    for gradient in slopes[1:]:
        assert all(torch.equal(mine, other) for mine, other in zip(gradient, slopes[0], strict=True))


def test_float32_logits_are_not_kept() -> None:
    *inputs, targets = draw_inputs(40, 16, 50, bias=True, seed=4)
    found = token_log_probs(*inputs, targets)
    assert len(found.grad_fn.saved_tensors) == 5  # type: ignore[union-attr]


def test_a_gradient_summed_over_many_tiles_in_bf16_is_as_good_as_over_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the gradient of the weight is summed in float32, or late tiles would be rounded away
    hidden, weight, _, targets = draw_inputs(600, 4, 8, bias=False, seed=2)
    hidden, weight = hidden.detach().abs().bfloat16(), weight.detach().bfloat16().requires_grad_()
    errors = {}
    exact = weight.detach().double().requires_grad_()
    naive(hidden.double(), exact, None, targets).sum().backward()
    for tile in (8, 2**24):
        monkeypatch.setattr(head_module, "TILE_LOGITS", tile)
        weight.grad = None
        token_log_probs(hidden, weight, None, targets).sum().backward()
        errors[tile] = float((weight.grad.double() - exact.grad).abs().max() / exact.grad.abs().max())
    assert errors[8] < 2 * errors[2**24] + 1e-3
    assert errors[8] < 0.01


def test_no_tensor_of_all_positions_times_vocabulary_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    monkeypatch.setattr(head_module, "TILE_LOGITS", 1000)
    hidden, weight, _, targets = draw_inputs(300, 4, 100, bias=False, seed=0)
    with Watch():
        token_log_probs(hidden, weight, None, targets).sum().backward()
    assert largest <= 1200  # (300, 4) hidden states; 30,000 logits in all


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", Head()),
        ("gemma2", Head(1.0, 3.0)),
        ("granite", Head(1 / 0.7)),
        ("cohere2", Head(0.4)),
    ],
)
def test_a_config_tells_its_family_s_head(family: str, expected: Head) -> None:
    assert describe_head(FAMILIES[family]().config) == expected
