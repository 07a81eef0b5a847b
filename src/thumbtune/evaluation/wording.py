"""How the report says a number, the same way in table, chart and Markdown. A missing one is an en dash."""

from __future__ import annotations

import html
from datetime import datetime
from textwrap import wrap

from thumbtune.evaluation.comparison_record import Interval

MISSING = "–"


def say_share(share: float, n: int | None = None) -> str:
    """0.344 as `34%`; from 1000 cases on, one decimal is worth printing."""
    return f"{100 * share:.{1 if (n or 0) >= 1000 else 0}f}%"


def say_up_rate(rate: Interval | None) -> str:
    """`34% (23% to 46%), n = 64`."""
    if rate is None:
        return MISSING
    n = "" if rate.n is None else f", n = {rate.n:,}"
    return f"{say_share(rate.mean, rate.n)}{say_ends(rate, lambda end: say_share(end, rate.n))}{n}"


def say_interval(interval: Interval | None, decimals: int = 2) -> str:
    """`0.71 (0.66 to 0.76)`."""
    if interval is None:
        return MISSING

    def say(number: float) -> str:
        return f"{number:.{decimals}f}".replace("-", "−")

    return say(interval.mean) + say_ends(interval, say)


def say_ends(interval: Interval, say) -> str:
    """` (low to high)` with a leading space, or nothing where the interval is not known."""
    if interval.low is None or interval.high is None:
        return ""
    return f" ({say(interval.low)} to {say(interval.high)})"


def say_points(gain: float) -> str:
    """0.22 as `+22 points`, with a true minus sign."""
    return f"{100 * gain:+.0f} points".replace("-", "−")


def say_seconds(seconds: float | None) -> str:
    """`8.2 s`, `3 min 30 s`, `2 h 05 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds else "0 s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say_megabytes(megabytes: float | None) -> str:
    return MISSING if megabytes is None else f"{megabytes:,.0f} MB"


def say_count(count: float | int | None) -> str:
    return MISSING if count is None else f"{count:,.0f}"


def say_date(stamp: object) -> str:
    """`22 November 2026` from an ISO time stamp; the stamp itself where it is none."""
    try:
        moment = datetime.fromisoformat(str(stamp))
    except ValueError:
        return str(stamp)
    return f"{moment.day} {moment:%B %Y}"


def write_label(name: str, width: int = 17, lines: int = 3) -> str:
    """A name as Plotly's text: marks escaped, broken into short lines, cut with an ellipsis if it is endless."""
    broken = wrap(name, width, max_lines=lines, placeholder=" …") or [name]
    return "<br>".join(html.escape(line, quote=False) for line in broken)
