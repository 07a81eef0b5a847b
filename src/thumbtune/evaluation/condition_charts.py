"""Figures of what was asked beside the table: methods under other conditions, and the price of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thumbtune.evaluation.comparison_record import Comparison, Interval, read_interval
from thumbtune.evaluation.palette import GREY, Look, assign_looks, make_template
from thumbtune.evaluation.wording import say_points, say_up_rate, write_label

SIDE_STEP = 0.09
"""How far methods stand apart at one condition, so that their whiskers do not cover each other."""


def draw_sweep(comparison: Comparison, sweep: Mapping[str, Any]) -> Any | None:
    """Up-rate of each method under each condition, with whiskers; a method that failed there has no point."""
    import plotly.graph_objects as go

    points, methods = sweep.get("points") or [], list(sweep.get("methods") or [])
    looks, figure = _looks(comparison, methods), go.Figure()
    for place, method in enumerate(methods):
        step = SIDE_STEP * (place - (len(methods) - 1) / 2)
        found = [
            (number + step, point["condition"], rate)
            for number, point in enumerate(points)
            if (rate := _read_rate(point, method))
        ]
        if not found:
            continue
        look, name = looks[method], _name(points, method)
        figure.add_scatter(
            x=[x for x, _, _ in found],
            y=[rate.mean for _, _, rate in found],
            mode="lines+markers+text",
            name=write_label(name, 40, 1),
            text=[""] * (len(found) - 1) + [f"<b>{write_label(name, 20, 1)}</b>"],
            textposition="top center" if place == 0 else "bottom center",
            textfont={"color": look.colour, "size": 13},
            line={"color": look.colour, "width": 1.6},
            marker={"color": look.colour, "symbol": look.symbol, "size": 11},
            error_y=_whiskers([rate for _, _, rate in found], look.colour),
            cliponaxis=False,
            customdata=[f"{condition}: {say_up_rate(rate)}" for _, condition, rate in found],
            hovertemplate=f"<b>{write_label(name, 40)}</b><br>%{{customdata}}<extra></extra>",
        )
    if not figure.data:
        return None
    _draw_base(figure, comparison)
    figure.update_layout(
        template=make_template(),
        height=330,
        margin={"t": 24, "r": 48},
        xaxis={
            "tickvals": list(range(len(points))),
            "ticktext": [write_label(str(point.get("label") or point["condition"]), 8) for point in points],
            "range": [-0.5, len(points) - 0.5],
            "showgrid": False,
        },
        yaxis={"range": [0, 1], "tickformat": ".0%", "dtick": 0.25, "title": {"text": "Up-rate"}},
    )
    return figure


def say_sweep(sweep: Mapping[str, Any]) -> str:
    """The leads of the first method over the second, condition by condition, and who failed where."""
    sentences, methods = [], list(sweep.get("methods") or [])
    for point in sweep.get("points") or []:
        lead = read_interval(point.get("lead"))
        for method in methods:
            error = (point.get("arms") or {}).get(method, {}).get("error")
            if error:
                sentences.append(f"{point['condition']}: {_name([point], method)} failed ({error})")
        if lead is not None and len(methods) == 2:
            low, high = say_points(lead.low or 0.0), say_points(lead.high or 0.0)
            first, second = (_name([point], method) for method in methods)
            sentences.append(
                f"{point['condition']}: {first} over {second} {say_points(lead.mean)} "
                f"({low} to {high}, n = {lead.n} prompts)".replace(" points to", " to")
            )
    return "; ".join(sentences) + "." if sentences else ""


def draw_crossing(comparison: Comparison) -> Any | None:
    """Up-rates over the labels paid for: KTO's on thumbs, DPO's on pairs that cost several labels each."""
    import plotly.graph_objects as go

    crossing: Mapping[str, Any] = comparison.facts.get("crossing") or {}
    levels, points = _read_rates(crossing.get("levels")), _read_rates(crossing.get("points"))
    if not levels or not points:
        return None
    looks, figure = _looks(comparison, ["kto", "dpo_bought"]), go.Figure()
    lines = {
        "kto": ("KTO", levels, [f"{point['labels']:,} thumbs" for point, _ in levels], "top center"),
        "dpo_bought": (
            "DPO (bought pairs)",
            points,
            [f"{point['pairs_bought']} pairs, {point['tied']} of them ties" for point, _ in points],
            "bottom center",
        ),
    }
    for method, (name, found, described, place) in lines.items():
        look, rates = looks[method], [rate for _, rate in found]
        figure.add_scatter(
            x=[point["labels"] for point, _ in found],
            y=[rate.mean for rate in rates],
            mode="lines+markers+text",
            name=name,
            text=[""] * (len(found) - 1) + [f"<b>{name}</b>"],
            textposition=place,
            textfont={"color": look.colour, "size": 13},
            line={"color": look.colour, "width": 1.6},
            marker={"color": look.colour, "symbol": look.symbol, "size": 11},
            error_y=_whiskers(rates, look.colour),
            cliponaxis=False,
            customdata=[f"{text}: {say_up_rate(rate)}" for text, rate in zip(described, rates, strict=True)],
            hovertemplate=f"<b>{name}</b><br>%{{customdata}}<extra></extra>",
        )
    _draw_base(figure, comparison)
    budgets = sorted({point["labels"] for point, _ in [*levels, *points]})
    figure.update_layout(
        template=make_template(),
        height=360,
        margin={"t": 24, "r": 72},
        xaxis={
            "type": "log",
            "tickvals": budgets,
            "ticktext": [f"{budget:,g}" for budget in budgets],
            "title": {"text": f"Labels paid for, {crossing['pair_cost']:g} a pair"},
        },
        yaxis={"range": [0, 1], "tickformat": ".0%", "dtick": 0.25, "title": {"text": "Up-rate"}},
    )
    return figure


def _read_rates(points: Any) -> list[tuple[Mapping[str, Any], Interval]]:
    """The points that have an up-rate, with it."""
    return [(point, rate) for point in points or () if (rate := read_interval(point.get("up_rate")))]


def _draw_base(figure: Any, comparison: Comparison) -> None:
    base = comparison.base
    if base is not None and base.up_rate is not None:
        figure.add_hline(y=base.up_rate.mean, line={"color": GREY, "width": 1, "dash": "dot"}, layer="below")


def _looks(comparison: Comparison, methods: list[str]) -> dict[str, Look]:
    keys = [arm.key for arm in comparison.arms]
    return assign_looks([*keys, *(method for method in methods if method not in keys)])


def _name(points: list[Mapping[str, Any]], method: str) -> str:
    names = ((point.get("arms") or {}).get(method, {}).get("name") for point in points)
    return str(next((name for name in names if name), method))


def _read_rate(point: Mapping[str, Any], method: str) -> Interval | None:
    return read_interval((point.get("arms") or {}).get(method, {}).get("up_rate"))


def _whiskers(rates: list[Interval], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [
            max((rate.high if rate.high is not None else rate.mean) - rate.mean, 0.0) for rate in rates
        ],
        "arrayminus": [
            max(rate.mean - (rate.low if rate.low is not None else rate.mean), 0.0) for rate in rates
        ],
        "color": colour,
        "thickness": 1.4,
        "width": 4,
    }
