"""The figures of the training: small multiples, one panel a metric or an arm, all arms on one scale.

A panel is a figure of its own, so that the page can lay panels out in as many columns as it has room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from thumbtune.evaluation.comparison_record import Arm, Comparison, read_number
from thumbtune.evaluation.palette import GREY, INK, Look, assign_looks, make_template
from thumbtune.evaluation.wording import write_label

METRICS: dict[str, tuple[str, list[float] | None]] = {
    "loss": ("Loss", None),
    "z0": ("Reference point z0 (nats)", None),
    "auc": ("AUC of the rewards", [0.0, 1.0]),
    "saturated_share": ("Share of saturated examples", [0.0, 1.0]),
}
"""Keys of a curve's points, the panel's title, and its scale where the metric has a natural one."""

MOST_POINTS = 400
"""Points drawn of one line. More would weigh megabytes and show nothing."""

PANEL_HEIGHT = 210


def draw_metric(comparison: Comparison, metric: str) -> Any | None:
    """One metric over the steps, a line an arm, ending in the arm's mark."""
    import plotly.graph_objects as go

    looks, figure = assign_looks(arm.key for arm in comparison.arms), go.Figure()
    for arm in comparison.measured:
        steps, values = read_line(arm, metric)
        if values:
            _add_line(figure, arm, steps, values, looks[arm.key])
    if not figure.data:
        return None
    scale = METRICS[metric][1]
    if metric == "auc":
        figure.add_hline(y=0.5, line={"color": GREY, "width": 1, "dash": "dot"}, layer="below")
    figure.update_layout(_lay_out_panel(None if scale is None else [scale[0] - 0.03, scale[1] + 0.03]))
    return figure


def draw_rewards(comparison: Comparison) -> dict[str, Any]:
    """Implicit reward of either class over the steps, a figure an arm, all on one scale."""
    import plotly.graph_objects as go

    lines = {
        arm.key: [read_line(arm, f"reward_{kind}") for kind in ("desirable", "undesirable")]
        for arm in comparison.measured
    }
    everything = [value for pair in lines.values() for _, values in pair for value in values]
    looks, figures = assign_looks(arm.key for arm in comparison.arms), {}
    for arm in comparison.measured:
        (ups, up_values), (downs, down_values) = lines[arm.key]
        if not up_values and not down_values:
            continue
        figure = go.Figure()
        _add_line(figure, arm, ups, up_values, looks[arm.key], "desirable")
        _add_line(figure, arm, downs, down_values, Look(INK, "circle-open", "○"), "undesirable", "dot")
        figure.update_layout(_lay_out_panel(_widen(min(0.0, *everything), max(0.0, *everything))))
        figure.update_yaxes(zeroline=True)
        figures[arm.key] = figure
    return figures


def draw_reward_histograms(comparison: Comparison) -> dict[str, Any]:
    """How the two classes' rewards lie after training, as shares of each class, a figure an arm, one scale."""
    import plotly.graph_objects as go

    shares = {arm.key: read_histogram(arm.reward_histogram) for arm in comparison.measured}
    known = [histogram for histogram in shares.values() if histogram]
    if not known:
        return {}
    x_range = _widen(min(edges[0] for edges, _, _ in known), max(edges[-1] for edges, _, _ in known))
    highest = max(share for _, up, down in known for share in (*up, *down))
    looks, figures = assign_looks(arm.key for arm in comparison.arms), {}
    for arm in comparison.measured:
        histogram = shares[arm.key]
        if not histogram:
            continue
        edges, up, down = histogram
        middles = [(left + right) / 2 for left, right in pairwise(edges)]
        figure = go.Figure()
        figure.add_bar(
            x=middles,
            y=up,
            width=[right - left for left, right in pairwise(edges)],
            marker={"color": looks[arm.key].colour, "opacity": 0.6, "line": {"width": 0}},
            name="desirable",
            hovertemplate="👍 desirable<br>reward %{x:.3g}<br>%{y:.0%} of the class<extra></extra>",
        )
        figure.add_scatter(
            x=[edges[0], *edges],
            y=[0, *down, 0],
            mode="lines",
            line={"shape": "hv", "color": INK, "width": 1.6, "dash": "dot"},
            name="undesirable",
            hovertemplate="👎 undesirable<br>reward from %{x:.3g}<br>%{y:.0%} of the class<extra></extra>",
        )
        figure.update_layout(_lay_out_panel([0, 1.08 * highest or 1.0], "Implicit reward"))
        figure.update_layout(xaxis={"range": x_range}, yaxis={"tickformat": ".0%"}, bargap=0)
        figures[arm.key] = figure
    return figures


def read_line(arm: Arm, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, without the gaps, thinned evenly to `MOST_POINTS` with both ends kept."""
    points = [
        (step if (step := read_number(point.get("step"))) is not None else place, value)
        for place, point in enumerate(arm.curve, start=1)
        if (value := read_number(point.get(metric))) is not None
    ]
    if len(points) > MOST_POINTS:
        last = len(points) - 1
        points = [points[round(place * last / (MOST_POINTS - 1))] for place in range(MOST_POINTS)]
    return [step for step, _ in points], [value for _, value in points]


def read_histogram(
    histogram: Mapping[str, Any] | None,
) -> tuple[list[float], list[float], list[float]] | None:
    """Edges, and each class's counts as shares of that class; None where the three do not fit together."""
    if not histogram:
        return None
    read = [[read_number(value) for value in histogram.get(name) or ()] for name in ("edges", *_CLASSES)]
    edges, up, down = ([value for value in values if value is not None] for values in read)
    if len(edges) < 2 or len(up) != len(edges) - 1 or len(down) != len(edges) - 1:
        return None
    return edges, [count / (sum(up) or 1) for count in up], [count / (sum(down) or 1) for count in down]


_CLASSES = ("desirable", "undesirable")


def _add_line(
    figure: Any,
    arm: Arm,
    steps: Sequence[float],
    values: Sequence[float],
    look: Look,
    kind: str = "",
    dash: str = "solid",
) -> None:
    if not values:
        return
    name = write_label(arm.name, 40, 1)
    figure.add_scatter(
        x=steps,
        y=values,
        mode="lines+markers",
        name=kind or name,
        line={"color": look.colour, "width": 1.8, "dash": dash},
        marker={
            "color": look.colour,
            "symbol": look.symbol,
            "size": [0] * (len(steps) - 1) + [8],
            "line": {"width": 0},
            "opacity": 1,
        },
        cliponaxis=False,
        hovertemplate=f"<b>{name}</b>{' ' + kind if kind else ''}<br>step %{{x}}: %{{y:.3g}}<extra></extra>",
    )


def _lay_out_panel(y_range: list[float] | None, x_title: str = "Step") -> dict[str, Any]:
    return {
        "template": make_template(),
        "height": PANEL_HEIGHT,
        "margin": {"r": 14, "t": 10},
        "xaxis": {"nticks": 5, "showgrid": False, "title": {"text": x_title}},
        "yaxis": {"nticks": 4, "range": y_range},
    }


def _widen(low: float, high: float) -> list[float]:
    room = 0.05 * (high - low) or 0.1
    return [low - room, high + room]
