"""Losses as numbers: worked by hand, by their laws, against plain loops, and against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thumbtune.preference.losses import (
    kto_logsigmoid_loss,
    kto_loss,
    kto_prospect_loss,
    kto_threshold_loss,
)

UP, DOWN = torch.tensor([True]), torch.tensor([False])
ZERO = torch.tensor(0.0)

ratios = st.floats(-300, 300, width=32)
betas = st.sampled_from([0.01, 0.1, 0.5, 1.0])
weights = st.floats(0.1, 15)
examples = st.lists(st.tuples(ratios, st.booleans()), min_size=1, max_size=12)
many = settings(deadline=None, max_examples=60)


def sigmoid(x: float) -> float:
    """σ by the textbook, without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def tensors(rows: list[tuple[float, bool]], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor([ratio for ratio, _ in rows], dtype=dtype, requires_grad=True),
        torch.tensor([label for _, label in rows]),
    )


def gradient(loss: Tensor, log_ratio: Tensor) -> list[float]:
    (slope,) = torch.autograd.grad(loss.sum(), log_ratio)
    return slope.tolist()


# ---- worked by hand


def test_kto_of_one_thumb_up_and_one_thumb_down_worked_by_hand() -> None:
    # β = 0.1, z0 = 2, weights 1 and 3
    # 👍 at r = 12: σ(0.1 × (12 − 2)) = σ(1) = 0.731059, loss 1 × (1 − 0.731059) = 0.268941
    # 👎 at r = −8: σ(0.1 × (2 − (−8))) = σ(1) = 0.731059, loss 3 × (1 − 0.731059) = 0.806824
    loss = kto_loss(
        torch.tensor([12.0, -8.0]),
        torch.tensor([True, False]),
        torch.tensor(2.0),
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=3.0,
    )
    assert loss.tolist() == pytest.approx([0.268941, 0.806824], abs=1e-6)


def test_the_gradient_of_kto_worked_by_hand() -> None:
    # dL/dr = −λ β σ(x) (1 − σ(x)) for 👍 with x = β (r − z0) = 1: −1 × 0.1 × 0.731059 × 0.268941 = −0.0196612
    # and + 3 × 0.0196612 = 0.0589836 for 👎 with weight 3
    log_ratio = torch.tensor([12.0, -8.0], requires_grad=True)
    loss = kto_loss(
        log_ratio, torch.tensor([True, False]), torch.tensor(2.0), beta=0.1, undesirable_weight=3.0
    )
    assert gradient(loss, log_ratio) == pytest.approx([-0.0196612, 0.0589836], abs=1e-7)


def test_thresholds_worked_by_hand() -> None:
    # β = 0.5; 👍 r = 4, z_yes = 1: 2 × (1 − σ(0.5 × 4 − 1)) = 2 × (1 − 0.731059) = 0.537883
    # 👎 r = 4, z_no = −1: 1 − σ(−1 − 2) = 1 − 0.047426 = 0.952574
    loss = kto_threshold_loss(
        torch.tensor([4.0, 4.0]),
        torch.tensor([True, False]),
        z_yes=1.0,
        z_no=-1.0,
        beta=0.5,
        desirable_weight=2.0,
    )
    assert loss.tolist() == pytest.approx([0.537883, 0.952574], abs=1e-6)


def test_the_prospect_loss_worked_by_hand() -> None:
    # β = 0.1, z0 = 1. 👍 at r = 21: outcome 2, value 2^0.88 = 1.840375, loss −1.840375
    # 👎 at r = 21: outcome −2, value −2.25 × 1.840375 = −4.140844, loss with weight 2: 8.281688
    loss = kto_prospect_loss(
        torch.tensor([21.0, 21.0]),
        torch.tensor([True, False]),
        torch.tensor(1.0),
        beta=0.1,
        undesirable_weight=2.0,
    )
    assert loss.tolist() == pytest.approx([-1.840375, 8.281688], abs=1e-5)


def test_the_log_sigmoid_value_worked_by_hand() -> None:
    # β = 0.1, z0 = 2. 👍 at r = 12: 2 × −log σ(1) = 2 × 0.313262 = 0.626523
    # 👎 at r = 12: −log σ(−1) = 1.313262, with weight 3: 3.939785
    loss = kto_logsigmoid_loss(
        torch.tensor([12.0, 12.0]),
        torch.tensor([True, False]),
        torch.tensor(2.0),
        beta=0.1,
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    assert loss.tolist() == pytest.approx([0.626523, 3.939785], abs=1e-6)


def test_before_the_first_step_each_loss_stands_where_it_is_known_to_stand() -> None:
    # Policy = reference: every log ratio is 0 and so is z0. KTO: λ (1 − σ(0)) = λ / 2. Log-sigmoid:
    # λ log 2. Prospect: 0.
    zeros, labels = torch.zeros(2), torch.tensor([True, False])
    shared = {"beta": 0.1, "desirable_weight": 2.0, "undesirable_weight": 6.0}
    assert kto_loss(zeros, labels, ZERO, **shared).tolist() == [1.0, 3.0]
    assert kto_threshold_loss(zeros, labels, z_yes=0.0, z_no=0.0, **shared).tolist() == [1.0, 3.0]
    assert kto_prospect_loss(zeros, labels, ZERO, **shared).tolist() == [0.0, 0.0]
    logarithmic = kto_logsigmoid_loss(zeros, labels, ZERO, **shared).tolist()
    assert logarithmic == pytest.approx([2 * math.log(2), 6 * math.log(2)])


def test_before_the_first_step_each_loss_already_teaches() -> None:
    # A log ratio of exactly zero is where every run starts: a gradient of zero there would be the end of training.
    log_ratio, labels = torch.zeros(2, requires_grad=True), torch.tensor([True, False])
    for loss in (
        kto_loss(log_ratio, labels, ZERO, beta=0.1),
        kto_threshold_loss(log_ratio, labels, z_yes=0.0, z_no=0.0, beta=0.1),
        kto_prospect_loss(log_ratio, labels, ZERO, beta=0.1),
        kto_logsigmoid_loss(log_ratio, labels, ZERO, beta=0.1),
    ):
        up, down = gradient(loss, log_ratio)
        assert up < 0 < down


# ---- laws


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kto": lambda r, y: kto_loss(r, y, torch.tensor(1.5, dtype=r.dtype), beta=0.1, desirable_weight=1.3),
    "thresholds": lambda r, y: kto_threshold_loss(
        r, y, z_yes=0.3, z_no=-0.2, beta=0.1, undesirable_weight=2.0
    ),
    "prospect": lambda r, y: kto_prospect_loss(
        r, y, torch.tensor(1.5, dtype=r.dtype), beta=0.1, desirable_weight=1.3
    ),
    "log-sigmoid": lambda r, y: kto_logsigmoid_loss(
        r, y, torch.tensor(1.5, dtype=r.dtype), beta=0.1, desirable_weight=1.3
    ),
}


@many
@given(ratio=ratios, reference_point=st.floats(0, 50), beta=betas, weight=weights)
def test_flipping_the_label_turns_the_loss_into_weight_minus_loss(
    ratio: float, reference_point: float, beta: float, weight: float
) -> None:
    shared: dict[str, Any] = {"beta": beta, "desirable_weight": weight, "undesirable_weight": weight}
    log_ratio, z0 = torch.tensor([ratio]).double(), torch.tensor(reference_point).double()
    up, down = kto_loss(log_ratio, UP, z0, **shared), kto_loss(log_ratio, DOWN, z0, **shared)
    assert float(up + down) == pytest.approx(weight, rel=1e-6)


@many
@given(reference_point=st.floats(0, 50), beta=betas, weight=weights, label=st.booleans())
def test_at_the_reference_point_the_loss_is_half_the_weight(
    reference_point: float, beta: float, weight: float, label: bool
) -> None:
    z0 = torch.tensor(reference_point)
    loss = kto_loss(
        z0.view(1), torch.tensor([label]), z0, beta=beta, desirable_weight=weight, undesirable_weight=weight
    )
    assert loss.item() == pytest.approx(weight / 2, rel=1e-6)


@many
@given(rows=examples, reference_point=st.floats(0, 50), beta=betas, up=weights, down=weights)
def test_kto_lies_between_zero_and_the_class_weight(
    rows: list[tuple[float, bool]], reference_point: float, beta: float, up: float, down: float
) -> None:
    log_ratio, labels = tensors(rows)
    loss = kto_loss(
        log_ratio,
        labels,
        torch.tensor(reference_point),
        beta=beta,
        desirable_weight=up,
        undesirable_weight=down,
    )
    for value, (_, label) in zip(loss.tolist(), rows, strict=True):
        assert 0 <= value <= (up if label else down) * (1 + 1e-6)


@pytest.mark.parametrize("name", LOSSES)
@many
@given(rows=st.lists(st.tuples(ratios, st.booleans()), min_size=2, max_size=12), data=st.data())
def test_neither_order_nor_the_cut_into_microbatches_changes_a_loss(
    name: str, rows: list[tuple[float, bool]], data: st.DataObject
) -> None:
    log_ratio, labels = tensors(rows)
    whole = LOSSES[name](log_ratio, labels)
    last_bits: dict[str, Any] = {"rtol": 1e-14, "atol": 0.0}  # a vectorised and a scalar σ differ there
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    torch.testing.assert_close(LOSSES[name](log_ratio[order], labels[order]), whole[order], **last_bits)
    cut = data.draw(st.integers(1, len(rows) - 1))
    parts = [LOSSES[name](log_ratio[part], labels[part]) for part in (slice(0, cut), slice(cut, None))]
    torch.testing.assert_close(torch.cat(parts), whole, **last_bits)


@pytest.mark.parametrize("name", LOSSES)
@given(label=st.booleans())
@settings(deadline=None, max_examples=4)
def test_a_one_sided_batch_is_no_special_case(name: str, label: bool) -> None:
    log_ratio = torch.tensor([-3.0, 0.0, 2.0])
    mixed = LOSSES[name](log_ratio, torch.tensor([label, not label, label]))
    one_sided = LOSSES[name](log_ratio[[0, 2]], torch.tensor([label, label]))
    assert torch.equal(mixed[[0, 2]], one_sided)


@many
@given(rows=examples, reference_point=st.floats(0, 50), beta=betas, up=weights, down=weights)
def test_thresholds_of_beta_times_z0_are_kto(
    rows: list[tuple[float, bool]], reference_point: float, beta: float, up: float, down: float
) -> None:
    log_ratio, labels = tensors(rows)
    shared: dict[str, Any] = {"beta": beta, "desirable_weight": up, "undesirable_weight": down}
    kto = kto_loss(log_ratio, labels, torch.tensor(reference_point).double(), **shared)
    z = beta * reference_point
    by_threshold = kto_threshold_loss(log_ratio, labels, z_yes=z, z_no=z, **shared)
    # the threshold is one float32 number: β z0 up to 50 is rounded by at most 2e-6
    torch.testing.assert_close(by_threshold, kto, rtol=5e-6, atol=1e-12)
    assert gradient(by_threshold, log_ratio) == pytest.approx(gradient(kto, log_ratio), rel=5e-6, abs=1e-12)


def test_each_threshold_moves_its_own_class_only() -> None:
    log_ratio, labels = torch.tensor([1.0, 1.0]), torch.tensor([True, False])

    def loss(z_yes: float, z_no: float) -> list[float]:
        return kto_threshold_loss(log_ratio, labels, z_yes=z_yes, z_no=z_no, beta=0.1).tolist()

    plain, strict_yes, strict_no = loss(0, 0), loss(1, 0), loss(0, 1)
    assert strict_yes[0] > plain[0]  # more is asked of a 👍
    assert strict_yes[1] == plain[1]
    assert strict_no[0] == plain[0]
    assert strict_no[1] < plain[1]  # a 👎 may score up to z_no


def test_the_threshold_form_has_the_textbook_s_gradient() -> None:
    # L = −w_yes σ(β r − z_yes) − w_no σ(z_no − β r): the constant in between has no slope
    log_ratio = torch.tensor([3.0, -5.0, 1.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([True, False, False])
    ours = kto_threshold_loss(
        log_ratio, labels, z_yes=0.5, z_no=0.25, beta=0.5, desirable_weight=1.5, undesirable_weight=3.0
    )
    textbook = torch.where(
        labels, -1.5 * torch.sigmoid(0.5 * log_ratio - 0.5), -3.0 * torch.sigmoid(0.25 - 0.5 * log_ratio)
    )
    assert gradient(ours, log_ratio) == pytest.approx(gradient(textbook, log_ratio), rel=1e-12)
    torch.testing.assert_close(ours - textbook, torch.where(labels, 1.5, 3.0).double())


def test_the_reference_point_shifts_the_log_ratio_and_nothing_else() -> None:
    log_ratio, labels = torch.tensor([3.0, -1.0]), torch.tensor([True, False])
    moved = kto_loss(log_ratio + 2, labels, torch.tensor(2.0), beta=0.1)
    torch.testing.assert_close(moved, kto_loss(log_ratio, labels, ZERO, beta=0.1))


# ---- a slow reference in plain loops


@many
@given(rows=examples, reference_point=st.floats(0, 50), beta=betas, up=weights, down=weights)
def test_kto_equals_its_naive_form_in_a_loop(
    rows: list[tuple[float, bool]], reference_point: float, beta: float, up: float, down: float
) -> None:
    log_ratio, labels = tensors(rows)
    loss = kto_loss(
        log_ratio,
        labels,
        torch.tensor(reference_point, dtype=torch.float64),
        beta=beta,
        desirable_weight=up,
        undesirable_weight=down,
    )
    slopes = gradient(loss, log_ratio)
    for value, slope, (ratio, label) in zip(loss.tolist(), slopes, rows, strict=True):
        weight, sign = (up, 1) if label else (down, -1)
        inside = sign * beta * (ratio - reference_point)
        assert value == pytest.approx(weight * (1 - sigmoid(inside)), rel=1e-6, abs=1e-12)
        naive_slope = -sign * weight * beta * sigmoid(inside) * sigmoid(-inside)
        assert slope == pytest.approx(naive_slope, rel=1e-6, abs=1e-12)


@many
@given(
    rows=examples,
    z_yes=st.floats(-3, 3, width=32),
    z_no=st.floats(-3, 3, width=32),
    beta=betas,
    up=weights,
    down=weights,
)
def test_thresholds_equal_their_naive_form_in_a_loop(
    rows: list[tuple[float, bool]], z_yes: float, z_no: float, beta: float, up: float, down: float
) -> None:
    log_ratio, labels = tensors(rows)
    loss = kto_threshold_loss(
        log_ratio,
        labels,
        z_yes=z_yes,
        z_no=z_no,
        beta=beta,
        desirable_weight=up,
        undesirable_weight=down,
    )
    slopes = gradient(loss, log_ratio)
    for value, slope, (ratio, label) in zip(loss.tolist(), slopes, rows, strict=True):
        inside = beta * ratio - z_yes if label else z_no - beta * ratio
        weight, sign = (up, -1) if label else (down, 1)
        assert value == pytest.approx(weight * (1 - sigmoid(inside)), rel=1e-6, abs=1e-12)
        naive_slope = sign * weight * beta * sigmoid(inside) * sigmoid(-inside)
        assert slope == pytest.approx(naive_slope, rel=1e-6, abs=1e-12)


@many
@given(
    rows=examples,
    reference_point=st.floats(0, 50),
    beta=betas,
    alpha=st.floats(0.3, 1.0),
    aversion=st.floats(0.5, 5),
    up=weights,
    down=weights,
)
def test_the_prospect_loss_equals_its_naive_form_in_a_loop(
    rows: list[tuple[float, bool]],
    reference_point: float,
    beta: float,
    alpha: float,
    aversion: float,
    up: float,
    down: float,
) -> None:
    log_ratio, labels = tensors(rows)
    loss = kto_prospect_loss(
        log_ratio,
        labels,
        torch.tensor(reference_point, dtype=torch.float64),
        beta=beta,
        alpha=alpha,
        loss_aversion=aversion,
        desirable_weight=up,
        undesirable_weight=down,
    )
    slopes = gradient(loss, log_ratio)
    for value, slope, (ratio, label) in zip(loss.tolist(), slopes, rows, strict=True):
        weight, sign = (up, 1) if label else (down, -1)
        outcome = sign * beta * (ratio - reference_point)
        if abs(outcome) < 2e-3:
            continue  # the straight piece near zero has its own tests
        lam = 1.0 if outcome > 0 else aversion
        utility = math.copysign(lam * abs(outcome) ** alpha, outcome)
        assert value == pytest.approx(-weight * utility, rel=1e-6)
        naive_slope = -weight * sign * beta * lam * alpha * abs(outcome) ** (alpha - 1)
        assert slope == pytest.approx(naive_slope, rel=1e-6)


@many
@given(rows=examples, reference_point=st.floats(0, 50), beta=betas, up=weights, down=weights)
def test_the_log_sigmoid_value_equals_its_naive_form_in_a_loop(
    rows: list[tuple[float, bool]], reference_point: float, beta: float, up: float, down: float
) -> None:
    log_ratio, labels = tensors(rows)
    loss = kto_logsigmoid_loss(
        log_ratio,
        labels,
        torch.tensor(reference_point, dtype=torch.float64),
        beta=beta,
        desirable_weight=up,
        undesirable_weight=down,
    )
    slopes = gradient(loss, log_ratio)
    for value, slope, (ratio, label) in zip(loss.tolist(), slopes, rows, strict=True):
        weight, sign = (up, 1) if label else (down, -1)
        inside = sign * beta * (ratio - reference_point)
        naive = weight * (math.log1p(math.exp(-abs(inside))) - min(inside, 0))
        assert value == pytest.approx(naive, rel=1e-6, abs=1e-12)
        assert slope == pytest.approx(-sign * weight * beta * sigmoid(-inside), rel=1e-6, abs=1e-12)


# ---- precision


@pytest.mark.parametrize(
    ("dtype", "gain"), [(torch.bfloat16, 8.0), (torch.bfloat16, 40.0), (torch.float32, 18.0)]
)
def test_a_nearly_certain_completion_keeps_the_gradient_that_one_minus_sigmoid_loses(
    dtype: torch.dtype, gain: float
) -> None:
    naive_ratio = torch.tensor([gain], dtype=dtype, requires_grad=True)
    naive = gradient(1 - torch.sigmoid(naive_ratio), naive_ratio)
    log_ratio = torch.tensor([gain], dtype=dtype, requires_grad=True)
    loss = kto_loss(log_ratio, UP, ZERO, beta=1.0)
    assert naive == [0.0]  # σ(x) has rounded to one, and σ (1 − σ) to nothing
    assert gradient(loss, log_ratio) == pytest.approx([-sigmoid(gain) * sigmoid(-gain)], rel=0.02)
    assert loss.item() == pytest.approx(sigmoid(-gain), rel=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_within_its_rounding_of_float64(name: str) -> None:
    # With x = β (r − z0), rounding x by 2^−24 moves e^x by |x| 2^−24. Measured over these 20,000 values: at most
    # 0.61 of the bound below.
    generator = torch.Generator().manual_seed(0)
    log_ratio = torch.randn(20_000, generator=generator) * 100
    labels = torch.rand(20_000, generator=generator) < 0.5

    exact = LOSSES[name](log_ratio.double(), labels)
    error = (LOSSES[name](log_ratio, labels).double() - exact).abs()
    bound = (2 + 0.2 * log_ratio.double().abs()) * 2**-23 * exact.abs() + 1e-37
    assert bool((error <= bound).all())


@pytest.mark.parametrize("extreme", [1e4, -1e4, 3e38, -3e38])
@pytest.mark.parametrize("label", [True, False])
def test_no_finite_log_ratio_gives_a_value_or_a_gradient_that_is_not_a_number(
    extreme: float, label: bool
) -> None:
    for loss_of in (LOSSES["kto"], LOSSES["thresholds"]):
        log_ratio = torch.tensor([extreme], requires_grad=True)
        loss = loss_of(log_ratio, torch.tensor([label]))
        assert math.isfinite(loss.item())
        assert math.isfinite(gradient(loss, log_ratio)[0])
