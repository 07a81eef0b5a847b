"""A loss corrected for flips is right on average, and flips are counted right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.errors import ConfigError
from thumbtune.preference.label_noise import correct_for_flips, estimate_flip_rate

many = settings(deadline=None, max_examples=60)


def test_the_correction_worked_by_hand() -> None:
    # ρ_👍 = 0.2, ρ_👎 = 0.1, kept 0.7; losses 1 as labelled and 3 flipped
    # pressed 👍: (0.9 × 1 − 0.2 × 3) / 0.7 = 0.428571; pressed 👎: (0.8 × 1 − 0.1 × 3) / 0.7 = 0.714286
    loss = correct_for_flips(
        torch.tensor([1.0, 1.0]),
        torch.tensor([3.0, 3.0]),
        torch.tensor([True, False]),
        desirable_flip_rate=0.2,
        undesirable_flip_rate=0.1,
    )
    assert loss.tolist() == pytest.approx([0.428571, 0.714286], abs=1e-6)


@many
@given(
    up=st.floats(-5, 5),
    down=st.floats(-5, 5),
    rates=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    truly_up=st.booleans(),
)
def test_its_mean_over_flips_is_the_loss_under_the_true_label(
    up: float, down: float, rates: tuple[float, float], truly_up: bool
) -> None:
    """L(👍) = up, L(👎) = down; a completion that deserves a 👍 is pressed 👎 with the chance of its class."""
    flip = rates[0] if truly_up else rates[1]

    def corrected(pressed_up: bool) -> float:
        labelled, flipped = (up, down) if pressed_up else (down, up)
        loss = correct_for_flips(
            torch.tensor([labelled], dtype=torch.float64),
            torch.tensor([flipped], dtype=torch.float64),
            torch.tensor([pressed_up]),
            desirable_flip_rate=rates[0],
            undesirable_flip_rate=rates[1],
        )
        return loss.item()

    mean = (1 - flip) * corrected(truly_up) + flip * corrected(not truly_up)
    assert mean == pytest.approx(up if truly_up else down, rel=1e-4, abs=1e-5)


def test_a_flip_rate_worked_by_hand() -> None:
    # ρ = 0.1: two presses disagree with chance 2 × 0.1 × 0.9 = 0.18
    assert estimate_flip_rate(82, 18) == pytest.approx(0.1)
    assert estimate_flip_rate(7, 0) == 0.0


@pytest.mark.parametrize(("agreeing", "disagreeing"), [(0, 0), (5, 5), (1, 9)])
def test_without_repeats_or_with_chance_alone_nothing_is_estimated(agreeing: int, disagreeing: int) -> None:
    with pytest.raises(ConfigError):
        estimate_flip_rate(agreeing, disagreeing)
