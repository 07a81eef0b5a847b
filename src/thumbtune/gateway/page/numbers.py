"""Numbers, shares and days as a language writes them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from thumbtune.gateway.page.words import Words


def write_number(value: float, digits: int = 0, *, words: Words) -> str:
    """1,234.5 in English, 1.234,5 in Turkish."""
    text = f"{value:,.{digits}f}"
    return text.translate(str.maketrans(",.", ".,")) if words.language == "tr" else text


def write_share(share: float, words: Words) -> str:
    """A share as a percentage; small ones with a decimal."""
    digits = 0 if round(share * 100, 1) == round(share * 100) or share >= 0.1 else 1
    return words.say("percent", n=write_number(share * 100, digits, words=words))


def write_rate(n_up: int, n_down: int, words: Words) -> str:
    """The up-rate with its 95 % interval, after Wilson. The first one imports SciPy."""
    if not n_up + n_down:
        return words["no_rate"]
    from scipy.stats import binomtest

    interval = binomtest(n_up, n_up + n_down).proportion_ci(0.95, method="wilson")
    shares = {"mean": n_up / (n_up + n_down), "low": interval.low, "high": interval.high}
    return words.say("rate", **{name: f"{100 * share:.0f}" for name, share in shares.items()})


def write_evidence(log_value: float, words: Words) -> str:
    """An E-value from its natural logarithm, as exactly as anybody needs it."""
    if log_value < math.log(0.01):
        return f"< {write_number(0.01, 2, words=words)}"
    if log_value > math.log(1e6):
        return f"> {write_number(1e6, words=words)}"
    value = math.exp(log_value)
    digits = 2 if value < 0.995 else 0 if value > 99 or abs(value - round(value)) < 0.05 else 1
    return write_number(value, digits, words=words)


def write_points(difference: float, words: Words) -> str:
    """A difference of up-rates, in points."""
    return words.say("points", n=f"{100 * difference:+.0f}".replace("-", "−"))


def write_span(seconds: float, words: Words) -> str:
    """How long something took, in the unit that suits it."""
    name, n = "days", seconds / 86_400
    for unit, length, most in (("seconds", 1, 120), ("minutes", 60, 120), ("hours", 3_600, 48)):
        if seconds / length < most:
            name, n = unit, max(0.0, seconds / length)
            break
    digits = 1 if n < 10 and n != round(n) else 0
    return words.say(f"{name}_value", n=write_number(n, digits, words=words))


def write_day(at_us: float) -> str:
    """A date, UTC."""
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d")


def write_time(at_us: float) -> str:
    """A date and a time, UTC."""
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
