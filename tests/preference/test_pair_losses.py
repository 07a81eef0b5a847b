"""Losses of pairs as numbers: worked by hand, by their laws, and against plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thumbtune.preference.pair_losses import (
    apo_zero_loss,
    bco_pair_loss,
    cpo_loss,
    dpo_loss,
    ipo_loss,
    negative_log_likelihood,
    odds_ratio_loss,
    simpo_loss,
)

ratios = st.floats(-300, 300, width=32)
log_probs = st.floats(-20, -0.001)
betas = st.sampled_from([0.01, 0.1, 0.5, 1.0])
many = settings(deadline=None, max_examples=60)
HALF_WAY = math.log(2)


def sigmoid(x: float) -> float:
    """σ by the textbook, without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    """−log σ(−x) by the textbook, without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def gradient(loss: Tensor, log_ratio: Tensor) -> list[float]:
    (slope,) = torch.autograd.grad(loss.sum(), log_ratio)
    return slope.tolist()


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


# ---- worked by hand


def test_ipo_worked_by_hand() -> None:
    # β = 0.5: aims at a margin of 1 / (2 × 0.5) = 1. At 3 − (−1) = 4: (4 − 1)² = 9; at 1: 0; at 0: 1
    loss = ipo_loss(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0]), beta=0.5)
    assert loss.tolist() == [9.0, 0.0, 1.0]


def test_simpo_worked_by_hand() -> None:
    # β = 2, γ = 1; −0.5 and −1.5 nats per token: 2 × 1 − 1 = 1, −log σ(1) = 0.313262
    # smoothing 0.1: 0.9 × 0.313262 + 0.1 × 1.313262 = 0.413262
    chosen, rejected = torch.tensor([-0.5]), torch.tensor([-1.5])
    loss = simpo_loss(chosen, rejected, beta=2.0, gamma=1.0)
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    smoothed = simpo_loss(chosen, rejected, beta=2.0, gamma=1.0, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.413262, abs=1e-6)


def test_cpo_worked_by_hand() -> None:
    # β = 0.1; −20 and −30 nats: 0.1 × 10 = 1, −log σ(1) = 0.313262
    assert cpo_loss(torch.tensor([-20.0]), torch.tensor([-30.0]), beta=0.1).item() == pytest.approx(
        0.313262, abs=1e-6
    )


def test_apo_zero_worked_by_hand() -> None:
    # β = 0.1: chosen r = 10: 1 − σ(1) = 0.268941; rejected r = 10: σ(1) = 0.731059, together 1
    # rejected r = −10: σ(−1) = 0.268941, together 0.537883
    loss = apo_zero_loss(torch.tensor([10.0, 10.0]), torch.tensor([10.0, -10.0]), beta=0.1)
    assert loss.tolist() == pytest.approx([1.0, 0.537883], abs=1e-6)


def test_bco_on_pairs_worked_by_hand() -> None:
    # β = 0.1: chosen r = 10: −log σ(1) = 0.313262; rejected r = 10: −log σ(−1) = 1.313262
    loss = bco_pair_loss(torch.tensor([10.0]), torch.tensor([10.0]), beta=0.1)
    assert loss.item() == pytest.approx(1.626523, abs=1e-6)


def test_the_odds_ratio_worked_by_hand() -> None:
    # chosen p = 0.8: odds 4; rejected p = 0.5: odds 1. log 4 − log 1 = 1.386294, −log σ of it = log(1 + 1/4) = 0.223144
    loss = odds_ratio_loss(torch.tensor([math.log(0.8)]), torch.tensor([math.log(0.5)]))
    assert loss.item() == pytest.approx(0.223144, abs=1e-6)


def test_the_likelihood_is_a_mean_over_the_batch_s_tokens() -> None:
    # −12 nats over 4 tokens, −4 over 8: −(−16) / 12 = 1.333333 a token; mean tokens (4 + 8) / 2 = 6
    loss = negative_log_likelihood(torch.tensor([-12.0, -4.0]), torch.tensor(6.0))
    assert loss.tolist() == pytest.approx([2.0, 0.666667], abs=1e-6)
    assert loss.mean().item() == pytest.approx(16 / 12)


def test_dpo_worked_by_hand() -> None:
    # β = 0.1, Δ = 0.1 × (6 − (−4)) = 1: −log σ(1) = log(1 + e^−1) = 0.313262
    # smoothing 0.1: 0.9 × 0.313262 + 0.1 × (0.313262 + 1) = 0.413262, since −log σ(−x) = −log σ(x) + x
    chosen, rejected = torch.tensor([6.0]), torch.tensor([-4.0])
    assert float(dpo_loss(chosen, rejected, beta=0.1)) == pytest.approx(0.313262, abs=1e-6)
    assert float(dpo_loss(chosen, rejected, beta=0.1, label_smoothing=0.1)) == pytest.approx(
        0.413262, abs=1e-6
    )


@many
@given(chosen=ratios, rejected=ratios, beta=betas, smoothing=st.sampled_from([0.0, 0.1, 0.3, 0.49]))
def test_swapping_the_pair_swaps_what_smoothing_assumes(
    chosen: float, rejected: float, beta: float, smoothing: float
) -> None:
    a, b = torch.tensor([chosen]).double(), torch.tensor([rejected]).double()
    # the pair read backwards, with its smoothing read backwards, is the same statement
    forwards = dpo_loss(a, b, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(dpo_loss(b, a, beta=beta, label_smoothing=1 - smoothing), forwards)
    # −log σ(x) − (−log σ(−x)) = −x
    difference = dpo_loss(a, b, beta=beta) - dpo_loss(b, a, beta=beta)
    torch.testing.assert_close(difference, -beta * (a - b))


@many
@given(chosen=ratios, rejected=ratios, shift=ratios, beta=betas)
def test_dpo_sees_only_the_difference_of_a_pair(
    chosen: float, rejected: float, shift: float, beta: float
) -> None:
    a, b = torch.tensor([chosen]).double(), torch.tensor([rejected]).double()
    torch.testing.assert_close(
        dpo_loss(a + shift, b + shift, beta=beta), dpo_loss(a, b, beta=beta), rtol=1e-9, atol=1e-9
    )


def test_half_smoothing_is_symmetric_and_lowest_at_a_margin_of_zero() -> None:
    margins = torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0], dtype=torch.float64)
    loss = dpo_loss(margins, torch.zeros(5).double(), beta=1.0, label_smoothing=0.5)
    torch.testing.assert_close(loss, loss.flip(0))
    assert int(loss.argmin()) == 2


def test_smoothing_bounds_the_margin_that_dpo_asks_for() -> None:
    # (1 − ε) L(Δ) + ε L(−Δ) is lowest where σ(Δ) = 1 − ε: at ε = 0.1, Δ = log 9 = 2.197225
    margin = torch.tensor([math.log(9)], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(margin, torch.zeros(1), beta=1.0, label_smoothing=0.1)
    assert gradient(loss, margin) == pytest.approx([0.0], abs=1e-9)


@many
@given(
    pairs=st.lists(st.tuples(ratios, ratios), min_size=1, max_size=12),
    beta=betas,
    smoothing=st.floats(0, 0.49),
)
def test_dpo_equals_its_naive_form_in_a_loop(
    pairs: list[tuple[float, float]], beta: float, smoothing: float
) -> None:
    chosen = torch.tensor([a for a, _ in pairs], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([b for _, b in pairs], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(chosen, rejected, beta=beta, label_smoothing=smoothing)
    slopes = torch.autograd.grad(loss.sum(), [chosen, rejected])
    for row, (a, b) in enumerate(pairs):
        margin = beta * (a - b)
        # log σ(x) = min(x, 0) − log(1 + e^−|x|)
        log_sigmoid = {s: min(s * margin, 0) - math.log1p(math.exp(-abs(margin))) for s in (1, -1)}
        naive = -(1 - smoothing) * log_sigmoid[1] - smoothing * log_sigmoid[-1]
        assert loss[row].item() == pytest.approx(naive, rel=1e-9, abs=1e-12)
        slope = beta * (smoothing * sigmoid(margin) - (1 - smoothing) * sigmoid(-margin))
        assert float(slopes[0][row]) == pytest.approx(slope, rel=1e-9, abs=1e-12)
        assert float(slopes[1][row]) == pytest.approx(-slope, rel=1e-9, abs=1e-12)


def test_dpo_in_float32_stays_within_its_rounding_of_float64() -> None:
    # With x = β Δ, rounding x by 2^−24 moves e^x by |x| 2^−24. Measured over these 20,000 values: at most
    # 0.61 of the bound below.
    generator = torch.Generator().manual_seed(0)
    log_ratio = torch.randn(20_000, generator=generator) * 100
    exact = dpo_loss(log_ratio.double(), -log_ratio.double(), beta=0.1)
    error = (dpo_loss(log_ratio, -log_ratio, beta=0.1).double() - exact).abs()
    bound = (2 + 0.2 * log_ratio.double().abs()) * 2**-23 * exact.abs() + 1e-37
    assert bool((error <= bound).all())


# ---- laws of the family


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dpo": lambda a, b: dpo_loss(a, b, beta=0.1),
    "cpo": lambda a, b: cpo_loss(a, b, beta=0.1),
    "simpo": lambda a, b: simpo_loss(a, b, beta=2.0, gamma=1.0),
    "apo_zero": lambda a, b: apo_zero_loss(a, b, beta=0.1),
    "bco_pair": lambda a, b: bco_pair_loss(a, b, beta=0.1),
    "odds_ratio": lambda a, b: odds_ratio_loss(a, b),
    "ipo": lambda a, b: ipo_loss(a, b, beta=0.1),
}


@pytest.mark.parametrize("name", LOSSES)
@many
@given(chosen=log_probs, rejected=log_probs, step=st.floats(1e-4, 1e-3))
def test_a_better_chosen_completion_costs_less_and_a_better_rejected_one_more(
    name: str, chosen: float, rejected: float, step: float
) -> None:
    # of IPO this holds below its margin of 1 / (2 × 0.1) = 5 only
    if name == "ipo" and chosen - rejected > 4.9:
        return
    loss = LOSSES[name]
    here = loss(one(chosen), one(rejected)).item()
    assert loss(one(chosen + step * -chosen), one(rejected)).item() < here
    assert loss(one(chosen), one(rejected + step * -rejected)).item() > here


@pytest.mark.parametrize("name", LOSSES)
@many
@given(pairs=st.lists(st.tuples(log_probs, log_probs), min_size=2, max_size=8), data=st.data())
def test_neither_order_nor_the_cut_changes_a_loss(
    name: str, pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    chosen, rejected = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    whole = LOSSES[name](chosen, rejected)
    order = torch.tensor(data.draw(st.permutations(range(len(pairs)))))
    torch.testing.assert_close(LOSSES[name](chosen[order], rejected[order]), whole[order])
    cut = data.draw(st.integers(1, len(pairs) - 1))
    parts = [LOSSES[name](chosen[part], rejected[part]) for part in (slice(0, cut), slice(cut, None))]
    torch.testing.assert_close(torch.cat(parts), whole)


@many
@given(chosen=ratios, rejected=ratios, beta=betas)
def test_ipo_is_indifferent_to_which_side_of_its_margin_it_misses(
    chosen: float, rejected: float, beta: float
) -> None:
    margin = chosen - rejected
    mirrored = 1 / beta - margin  # as far beyond 1 / (2 β) as the margin is short of it
    torch.testing.assert_close(
        ipo_loss(one(mirrored), one(0), beta=beta), ipo_loss(one(margin), one(0), beta=beta)
    )


@many
@given(chosen=ratios, rejected=ratios, beta=betas)
def test_simpo_without_a_margin_is_dpo_s_form(chosen: float, rejected: float, beta: float) -> None:
    a, b = one(chosen), one(rejected)
    torch.testing.assert_close(simpo_loss(a, b, beta=beta, gamma=0.0), dpo_loss(a, b, beta=beta))
    torch.testing.assert_close(cpo_loss(a, b, beta=beta), dpo_loss(a, b, beta=beta))


@many
@given(chosen=ratios, rejected=ratios, beta=betas)
def test_apo_zero_and_bco_hold_each_half_by_itself(chosen: float, rejected: float, beta: float) -> None:
    a = one(chosen).requires_grad_()
    for loss in (apo_zero_loss, bco_pair_loss):
        alone = gradient(loss(a, one(0), beta=beta), a)
        assert gradient(loss(a, one(rejected), beta=beta), a) == alone


def test_before_the_first_step_each_loss_stands_where_it_is_known_to_stand() -> None:
    # policy = reference: DPO log 2, IPO (1 / 2β)² = 25, APO-zero 1, BCO 2 log 2; equal completions have odds of 1
    zero = torch.zeros(1)
    assert dpo_loss(zero, zero, beta=0.1).item() == pytest.approx(HALF_WAY)
    assert ipo_loss(zero, zero, beta=0.1).item() == pytest.approx(25.0)
    assert apo_zero_loss(zero, zero, beta=0.1).item() == 1.0
    assert bco_pair_loss(zero, zero, beta=0.1).item() == pytest.approx(2 * HALF_WAY)
    assert odds_ratio_loss(zero - 1, zero - 1).item() == pytest.approx(HALF_WAY)


# ---- slow references in plain loops


@many
@given(
    pairs=st.lists(st.tuples(log_probs, log_probs), min_size=1, max_size=12),
    beta=betas,
    gamma=st.floats(0, 2),
)
def test_the_family_equals_its_naive_forms_in_a_loop(
    pairs: list[tuple[float, float]], beta: float, gamma: float
) -> None:
    chosen, rejected = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    found = {
        "simpo": simpo_loss(chosen, rejected, beta=beta, gamma=gamma),
        "ipo": ipo_loss(chosen, rejected, beta=beta),
        "apo_zero": apo_zero_loss(chosen, rejected, beta=beta),
        "bco_pair": bco_pair_loss(chosen, rejected, beta=beta),
        "odds_ratio": odds_ratio_loss(chosen, rejected),
    }
    for row, (a, b) in enumerate(pairs):
        p, q = math.exp(a), math.exp(b)
        odds = math.log(p / (1 - p)) - math.log(q / (1 - q))
        naive = {
            "simpo": softplus(gamma - beta * (a - b)),
            "ipo": (a - b - 1 / (2 * beta)) ** 2,
            "apo_zero": 1 - sigmoid(beta * a) + sigmoid(beta * b),
            "bco_pair": softplus(-beta * a) + softplus(beta * b),
            "odds_ratio": softplus(-odds),
        }
        for name, value in naive.items():
            assert found[name][row].item() == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("certain", [0.0, -1e-9, -1e-7, -88.0, -1e4])
def test_odds_stay_finite_near_certainty_and_far_from_it(certain: float) -> None:
    log_prob = torch.tensor([certain], requires_grad=True)
    for loss in (odds_ratio_loss(log_prob, one(-1).float()), odds_ratio_loss(one(-1).float(), log_prob)):
        assert math.isfinite(loss.item())
        assert math.isfinite(gradient(loss, log_prob)[0])
