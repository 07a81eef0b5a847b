"""Thumbs on the wrong button: a loss that is right on average in spite of them, and how many there are.

With equal flip rates and equal class weights the sigmoid value of KTO needs no correction but a factor, since its
losses under both labels add up to a constant (Ghosh et al. 2017, arXiv:1712.09482, call such losses symmetric). Unequal
rates or weights move the balance of the classes, and a value that does not saturate is moved by any rate: there the
correction matters. With such a value the corrected loss has no lower bound: rows that the model knows by heart go on
pulling, so watch the rewards and train for few epochs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thumbtune.errors import ConfigError


def correct_for_flips(
    loss_as_labelled: Tensor,  # (B,)
    loss_if_flipped: Tensor,  # (B,) the loss under the other label
    desirable: Tensor,  # (B,) bool, as pressed
    *,
    desirable_flip_rate: float,
    undesirable_flip_rate: float,
) -> Tensor:  # (B,) may be below zero
    """A loss whose mean over flipped labels is the loss under the true one.

    ((1 − ρ_other) L(as labelled) − ρ_own L(flipped)) / (1 − ρ_👍 − ρ_👎), where ρ_👍 is the chance that a completion
    which deserves a 👍 gets a 👎, and ρ_👎 the reverse; own and other are classes as pressed.

    Source: Natarajan et al. 2013, "Learning with Noisy Labels", Lemma 1.
    """
    own = torch.where(desirable, desirable_flip_rate, undesirable_flip_rate)
    other = torch.where(desirable, undesirable_flip_rate, desirable_flip_rate)
    kept = 1 - desirable_flip_rate - undesirable_flip_rate
    return ((1 - other) * loss_as_labelled - own * loss_if_flipped) / kept


def estimate_flip_rate(n_agreeing: int, n_disagreeing: int) -> float:
    """The flip rate of both classes from two presses on one completion each: disagreement d = 2 ρ (1 − ρ), ρ < 1/2.

    Taken for granted: one truth per completion, equal rates, and presses that err independently. People who differ in
    taste look like noise here. Where the rates are far apart, their mean in the place of both does no good, and with
    the log-sigmoid value harm: give the rates. Raises `ConfigError` without repeated presses, or with as much
    disagreement as chance.
    """
    n = n_agreeing + n_disagreeing
    if n == 0:
        raise ConfigError(
            "the flip rate cannot be estimated: no completion was voted on twice. Give a rate, or leave it at 0"
        )
    disagreement = n_disagreeing / n
    if disagreement >= 0.5:
        raise ConfigError(
            f"repeated votes on one completion disagree in {n_disagreeing} of {n} cases, as often as chance would: "
            "there is no taste to learn, or several; look at the votes first"
        )
    return (1 - math.sqrt(1 - 2 * disagreement)) / 2
