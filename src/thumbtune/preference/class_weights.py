"""Class weights from class counts: how KTO is kept from following the more frequent thumb.

The weighted balance is λ_D·n_D / (λ_U·n_U): how much total weight the desirable rows carry per unit of the
undesirable ones. The paper asks for a balance in [1, 3/2] (its first version said 4/3).

Source: Ethayarajh et al., arXiv:2402.01306, current version, Eq. 9.
"""

from __future__ import annotations

from thumbtune.errors import ConfigError

LOWEST_BALANCE, HIGHEST_BALANCE = 1.0, 1.5


def recommend_class_weights(n_desirable: int, n_undesirable: int) -> tuple[float, float]:
    """`(desirable_weight, undesirable_weight)` that bring the weighted balance into [1, 3/2].

    Weights of (1, 1) stay where the counts already fit. Otherwise the weight of the class that is too
    light is raised, just far enough to reach the nearest bound, and the other stays at 1: so both are at
    least 1 and no row counts for less than it did. Where one class is empty no weight can help, and the
    answer is (1, 1). Dimensionless; the balance holds to float64 rounding. Raises `ConfigError` on a
    negative count.
    """
    if n_desirable < 0 or n_undesirable < 0:
        raise ConfigError(
            f"class counts are {n_desirable} desirable and {n_undesirable} undesirable: counts start at 0"
        )
    if n_desirable == 0 or n_undesirable == 0:
        return 1.0, 1.0
    if n_desirable < LOWEST_BALANCE * n_undesirable:
        return LOWEST_BALANCE * n_undesirable / n_desirable, 1.0
    if n_desirable > HIGHEST_BALANCE * n_undesirable:
        return 1.0, n_desirable / (HIGHEST_BALANCE * n_undesirable)
    return 1.0, 1.0


def weigh_balance(
    n_desirable: int, n_undesirable: int, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> float | None:
    """The weighted balance λ_D·n_D / (λ_U·n_U), or None where a class or its weight is zero."""
    desirable, undesirable = desirable_weight * n_desirable, undesirable_weight * n_undesirable
    return desirable / undesirable if desirable and undesirable else None
