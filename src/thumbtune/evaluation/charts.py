"""The figures of the results: a comparison in, a Plotly figure out, or None where nothing was measured.

Rules: the up-rate's axis runs from 0 to 1 and a bar starts at 0; a mean carries its interval where it is known;
an arm has the same colour and mark in every figure; names stand beside the points unless they would collide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot
from typing import Any

from thumbtune.evaluation.comparison_record import Arm, Comparison, Interval
from thumbtune.evaluation.name_placement import place_names
from thumbtune.evaluation.palette import GREY, assign_looks, make_template
from thumbtune.evaluation.wording import (
    say_interval,
    say_megabytes,
    say_points,
    say_seconds,
    say_share,
    say_up_rate,
    write_label,
)


def draw_up_rates(comparison: Comparison) -> Any | None:
    """Up-rate of each arm, best on top, on an axis from 0 to 1; the base runs through as a reference."""
    axis = {
        "range": [0, 1],
        "tickformat": ".0%",
        "dtick": 0.25,
        "title": {"text": "Up-rate on held-out prompts"},
    }
    return _draw_dots_and_whiskers(
        comparison, lambda arm: arm.up_rate, axis, lambda rate: say_share(rate.mean, rate.n), say_up_rate
    )


def draw_lengths(comparison: Comparison) -> Any | None:
    """Mean length of a completion by arm: a policy that learned only to be short or long shows here."""
    lengths = [arm.length for arm in comparison.measured if arm.length]
    longest = max((max(length.mean, length.high or 0.0) for length in lengths), default=1.0)
    axis = {"range": [0, 1.08 * longest or 1.0], "nticks": 6, "title": {"text": "Tokens in a completion"}}
    return _draw_dots_and_whiskers(
        comparison,
        lambda arm: arm.length,
        axis,
        lambda length: f"{length.mean:.0f}",
        lambda length: f"{say_interval(length, 1)} tokens{_say_n(length)}",
    )


def draw_seconds(comparison: Comparison) -> Any | None:
    """Training time of each trained arm."""
    return _draw_bars(comparison, lambda arm: arm.seconds, "Seconds of training", say_seconds)


def draw_peak_memory(comparison: Comparison) -> Any | None:
    """Peak resident memory of each trained arm."""
    return _draw_bars(comparison, lambda arm: arm.peak_rss_mb, "Peak memory (MB)", say_megabytes)


def measure_gain(arm: Arm, base: Arm) -> Interval | None:
    """Up-rate of an arm minus that of the base: as the comparison measured it, else from the two intervals.

    The ends are Newcombe's (1998, method 10: square and add), which take the two samples for independent;
    on the same prompts that is rather too wide than too narrow.
    """
    if arm.gain is not None:
        return arm.gain
    ours, theirs = arm.up_rate, base.up_rate
    if ours is None or theirs is None:
        return None
    gain = ours.mean - theirs.mean
    if None in (ours.low, ours.high, theirs.low, theirs.high):
        return Interval(gain, n=ours.n)
    low = gain - hypot(ours.mean - ours.low, theirs.high - theirs.mean)  # type: ignore[operator]
    high = gain + hypot(ours.high - ours.mean, theirs.mean - theirs.low)  # type: ignore[operator]
    return Interval(gain, max(low, -1.0), min(high, 1.0), ours.n)


def draw_gain_against_kl(comparison: Comparison) -> Any | None:
    """What an arm won over the base (points of up-rate) and how far it moved from it (nats per token).

    Where the names do not fit beside the points, the figure has no annotations and the page prints a key.
    """
    import plotly.graph_objects as go

    base, looks = comparison.base, _looks(comparison)
    if base is None or base.up_rate is None:
        return None
    points = [(base, Interval(0.0), Interval(0.0, n=base.up_rate.n))]
    for arm in comparison.measured:
        kl, gain = arm.kl_per_token, measure_gain(arm, base)
        if arm is not base and kl and gain:
            points.append((arm, kl, gain))
    if len(points) == 1:
        return None
    x_range = _span([end for _, kl, _ in points for end in (kl.mean, kl.low, kl.high)])
    y_range = _span([end for _, _, gain in points for end in (gain.mean, gain.low, gain.high)])
    crosses = [(kl, gain) for _, kl, gain in points]
    names = place_names([arm.name for arm, _, _ in points], crosses, x_range, y_range) or []
    for name, (arm, _, _) in zip(names, points, strict=False):
        name["font"] = {"color": looks[arm.key].colour, "size": 12.5}
    figure = go.Figure()
    for arm, kl, gain in points:
        look = looks[arm.key]
        figure.add_scatter(
            x=[kl.mean],
            y=[100 * gain.mean],
            mode="markers",
            name=write_label(arm.name, 40, 1),
            marker={"color": look.colour, "symbol": look.symbol, "size": 12},
            error_x=_whisker(kl, look.colour),
            error_y=_whisker(gain, look.colour, scale=100),
            cliponaxis=False,
            hovertemplate=f"<b>{write_label(arm.name, 40)}</b><br>{say_points(gain.mean)}{_say_point_ends(gain)}"
            f"<br>{say_interval(kl, 3)} nats per token{_say_n(gain)}<extra></extra>",
        )
    figure.update_layout(
        template=make_template(),
        height=430,
        annotations=names,
        xaxis={"range": x_range, "nticks": 6, "title": {"text": "KL to the base (nats per token)"}},
        yaxis={
            "range": [100 * end for end in y_range],
            "nticks": 7,
            "zeroline": True,
            "title": {"text": "Gain in up-rate (points)"},
        },
    )
    return figure


def _span(ends: Sequence[float | None]) -> list[float]:
    """A range that holds 0 and all ends, with room around them for names."""
    known = [0.0, *(end for end in ends if end is not None)]
    low, high = min(known), max(known)
    room = 0.18 * (high - low) or 0.1
    return [low - room, high + room]


def _draw_dots_and_whiskers(
    comparison: Comparison,
    pick: Callable[[Arm], Interval | None],
    axis: dict[str, Any],
    say_mean: Callable[[Interval], str],
    say_all: Callable[[Interval], str],
) -> Any | None:
    """One row an arm, the largest on top: a dot with its value above it, and a whisker where it is known."""
    import plotly.graph_objects as go

    rows = [(arm, interval) for arm in comparison.measured if (interval := pick(arm))]
    rows.sort(key=lambda row: row[1].mean)
    if not rows:
        return None
    looks, figure = _looks(comparison), go.Figure()
    base = pick(comparison.base) if comparison.base else None
    if base is not None:
        figure.add_vline(x=base.mean, line={"color": GREY, "width": 1, "dash": "dot"}, layer="below")
    for place, (arm, interval) in enumerate(rows):
        look = looks[arm.key]
        figure.add_scatter(
            x=[interval.mean],
            y=[place],
            mode="markers+text",
            name=write_label(arm.name, 40, 1),
            text=[f"<b>{say_mean(interval)}</b>"],
            textposition="top right" if arm is comparison.base else "top center",
            textfont={"color": look.colour, "size": 13},
            marker={"color": look.colour, "symbol": look.symbol, "size": 12},
            error_x=_whisker(interval, look.colour),
            cliponaxis=False,
            hovertemplate=f"<b>{write_label(arm.name, 40)}</b><br>{say_all(interval)}<extra></extra>",
        )
    figure.update_layout(
        template=make_template(),
        height=90 + 58 * len(rows),
        margin={"r": 28, "t": 14},
        xaxis=axis,
        yaxis=_name_rows([(arm, interval.n) for arm, interval in rows]),
    )
    return figure


def _draw_bars(
    comparison: Comparison, pick: Callable[[Arm], float | None], title: str, say: Callable[[float], str]
) -> Any | None:
    """One bar a trained arm, from 0, in the order of the comparison, with its value at its end."""
    import plotly.graph_objects as go

    trained = [arm for arm in comparison.measured if arm is not comparison.base]
    rows = [(arm, value) for arm in reversed(trained) if (value := pick(arm)) is not None]
    if not rows:
        return None
    looks, figure = _looks(comparison), go.Figure()
    for place, (arm, value) in enumerate(rows):
        figure.add_bar(
            x=[value],
            y=[place],
            orientation="h",
            width=0.5,
            marker={"color": looks[arm.key].colour},
            name=write_label(arm.name, 40, 1),
            text=[say(value)],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"<b>{write_label(arm.name, 40)}</b><br>{say(value)}<extra></extra>",
        )
    most = max(value for _, value in rows)
    figure.update_layout(
        template=make_template(),
        height=80 + 46 * len(rows),
        xaxis={
            "range": [0, 1.65 * most or 1.0],
            "nticks": 4,
            "tickformat": ",",
            "showgrid": False,
            "title": {"text": title},
        },
        yaxis=_name_rows([(arm, None) for arm, _ in rows]),
    )
    return figure


def _name_rows(rows: Sequence[tuple[Arm, int | None]]) -> dict[str, Any]:
    """The axis that carries the arms' names, each with its n below where there is one."""
    texts = [
        write_label(arm.name, lines=2)
        + ("" if n is None else f'<br><span style="font-size:11px">n = {n:,}</span>')
        for arm, n in rows
    ]
    return {
        "tickvals": list(range(len(rows))),
        "ticktext": texts,
        "range": [-0.6, len(rows) - 0.25],
        "showgrid": False,
        "showline": True,
        "ticklabelstandoff": 8,
    }


def _whisker(interval: Interval, colour: str, scale: float = 1.0) -> dict[str, Any]:
    if interval.low is None or interval.high is None:
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * max(interval.high - interval.mean, 0.0)],
        "arrayminus": [scale * max(interval.mean - interval.low, 0.0)],
        "color": colour,
        "thickness": 1.6,
        "width": 4,
    }


def _say_point_ends(gain: Interval) -> str:
    if gain.low is None or gain.high is None:
        return ""
    return f" ({say_points(gain.low)} to {say_points(gain.high)})".replace(" points to", " to")


def _say_n(interval: Interval) -> str:
    return "" if interval.n is None else f"<br>n = {interval.n:,}"


def _looks(comparison: Comparison) -> dict[str, Any]:
    return assign_looks(arm.key for arm in comparison.arms)
