"""Draw the pictures of docs/concepts from the functions that train, so that picture and code agree.

python scripts/draw_concepts.py            # writes docs/concepts/*.svg
python scripts/draw_concepts.py --png DIR  # the same as PNG, to look at
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thumbtune.evaluation.palette import GREY, HAIRLINE, INK, MUTED, PAPER, make_template
from thumbtune.preference.losses import kto_loss
from thumbtune.preference.metrics import SATURATED_ABOVE
from thumbtune.preference.pair_losses import dpo_loss
from thumbtune.preference.prospect import prospect_value

CONCEPTS = Path(__file__).parents[1] / "docs" / "concepts"
BLUE, VERMILION = "#0069b4", "#c94f00"
ZERO = torch.zeros(())


def draw_value_function() -> Any:
    """Prospect theory's value beside KTO's, over the same outcomes."""
    from plotly.subplots import make_subplots

    outcome = torch.linspace(-6, 6, 241)
    prospect = prospect_value(outcome)
    kto = 1 - kto_loss(outcome, torch.ones(241, dtype=torch.bool), ZERO, beta=1.0)  # λ − L = v, at λ = 1
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    for column, (value, colour) in enumerate(((prospect, VERMILION), (kto, BLUE)), start=1):
        figure.add_scatter(
            x=outcome.tolist(),
            y=value.tolist(),
            mode="lines",
            line={"color": colour, "width": 3, "simplify": False},
            col=column,
            row=1,
        )
        figure.add_vline(x=0, line={"color": GREY, "width": 1}, col=column, row=1)
    figure.add_hline(y=0, line={"color": GREY, "width": 1}, col=1, row=1)
    figure.add_hline(y=0.5, line={"color": GREY, "width": 1}, col=2, row=1)
    for size in (4.0, -4.0):
        value = float(prospect_value(torch.tensor(size)))
        figure.add_scatter(
            x=[size],
            y=[value],
            mode="markers+text",
            text=f"{value:+.1f}".replace("-", "−"),
            textposition="top center" if size > 0 else "middle right",
            textfont={"color": VERMILION, "size": 14},
            marker={"color": VERMILION, "size": 9},
            row=1,
            col=1,
        )
    _write_label(
        figure,
        0.5,
        -7.2,
        "a loss of 4 hurts<br>2.25 times as much<br>as a gain of 4 pleases",
        1,
        MUTED,
        "left",
    )
    _write_label(figure, 5.8, 0.77, "no gain adds<br>more than λ/2", 2, MUTED, "right")
    _write_label(figure, -5.8, 0.23, "no loss takes<br>more than λ/2", 2, MUTED, "left")
    figure.update_xaxes(range=[-6, 6], dtick=2, title_text="outcome: loss ← 0 → gain")
    figure.update_yaxes(range=[-11.5, 8.5], dtick=4, title_text="value U", row=1, col=1)
    figure.update_yaxes(range=[-0.04, 1.04], dtick=0.25, title_text="value v, at λ = 1", row=1, col=2)
    titles = ("Prospect theory: α = 0.88, λ = 2.25", "KTO: λ σ(outcome)")
    for column, title in enumerate(titles):
        _write_title(figure, title, x=0.0 if column == 0 else 0.56)
    return _finish(figure)


def draw_saturation() -> Any:
    """How hard one row pulls on the model, by how well the model agrees with its thumb."""
    import plotly.graph_objects as go

    outcome = torch.linspace(-8, 8, 321)
    up = torch.ones(321, dtype=torch.bool)
    kto = _measure_slope(lambda x: kto_loss(x, up, ZERO, beta=1.0), outcome)
    dpo = _measure_slope(lambda x: dpo_loss(x, torch.zeros(321), beta=1.0), outcome)
    figure = go.Figure()
    for low, high in ((-8, -SATURATED_ABOVE), (SATURATED_ABOVE, 8)):
        figure.add_vrect(x0=low, x1=high, fillcolor=HAIRLINE, opacity=0.45, line_width=0, layer="below")
    for slope, colour, dash in ((dpo, GREY, "dash"), (kto, BLUE, "solid")):
        figure.add_scatter(
            x=outcome.tolist(),
            y=slope.tolist(),
            mode="lines",
            line={"color": colour, "width": 3, "dash": dash, "simplify": False},
        )
    figure.add_vline(x=0, line={"color": GREY, "width": 1})
    _write_label(
        figure,
        0.25,
        0.82,
        "<b>DPO</b>, log-sigmoid: a pair that the<br>policy gets wrong keeps its full pull",
        None,
        MUTED,
        "left",
    )
    _write_label(figure, -0.15, 0.32, "<b>KTO</b>, sigmoid: pulls hardest at z0", None, BLUE, "right")
    _write_label(
        figure,
        -7.85,
        0.17,
        "far on the wrong side:<br>noise, or a hard case,<br>ignored either way",
        None,
        INK,
        "left",
    )
    _write_label(figure, 7.85, 0.17, "far on the right side:<br>nothing left to learn", None, INK, "right")
    figure.update_xaxes(
        range=[-8, 8],
        dtick=2,
        title_text="β(r − z0) of a 👍, β(z0 − r) of a 👎; for DPO, β times the margin of a pair",
    )
    figure.update_yaxes(range=[0, 1.04], dtick=0.25, title_text="size of the gradient, in units of β")
    return _finish(figure, top=24)


def draw_reference_point() -> Any:
    """What one completion is worth while the policy moves: the same log ratio, a gain first and a loss later."""
    import plotly.graph_objects as go

    log_ratio = torch.linspace(-40, 60, 301)
    up = torch.ones(301, dtype=torch.bool)
    figure = go.Figure()
    for z0, colour, dash in ((0.0, GREY, "dash"), (20.0, BLUE, "solid")):
        value = 1 - kto_loss(log_ratio, up, torch.tensor(z0), beta=0.1)
        figure.add_scatter(
            x=log_ratio.tolist(),
            y=value.tolist(),
            mode="lines",
            line={"color": colour, "width": 3, "dash": dash, "simplify": False},
        )
        at = float(1 - kto_loss(torch.tensor([10.0]), up[:1], torch.tensor(z0), beta=0.1))
        figure.add_scatter(x=[10.0], y=[at], mode="markers", marker={"color": colour, "size": 10})
        figure.add_vline(x=z0, line={"color": colour, "width": 1})
    figure.add_hline(y=0.5, line={"color": GREY, "width": 1})
    _write_label(figure, -0.8, 0.93, "early: the policy is<br>the reference, z0 = 0", None, MUTED, "right")
    _write_label(
        figure, 20.8, 0.07, "later: completions in general<br>gained 20 nats, z0 = 20", None, BLUE, "left"
    )
    _write_label(figure, 8.5, 0.79, "a 👍 with r = 10: a gain", None, MUTED, "right")
    _write_label(figure, 21.0, 0.27, "the same r, less than the drift: a loss", None, BLUE, "left")
    figure.update_xaxes(range=[-40, 60], dtick=10, title_text="log ratio r of a 👍 (nats), β = 0.1")
    figure.update_yaxes(range=[-0.02, 1.04], dtick=0.25, title_text="value v, at λ = 1")
    return _finish(figure, top=24)


def draw_canary() -> Any:
    """How many of equal canaries were called different by so many votes: by ours, and by a test made for one look."""
    import math

    import numpy as np
    import plotly.graph_objects as go

    from thumbtune.loop.evidence import log_evidence, log_harm

    runs, votes, rate, alpha = 2_000, 2_000, 0.8, 0.05
    rng = np.random.default_rng(0)
    champion, canary = ((rng.random((runs, votes)) < rate).astype(int) for _ in range(2))
    ones, n = np.ones(votes, int), np.arange(1, votes + 1)
    ours = [test(champion, ones, canary) >= math.log(1 / alpha) for test in (log_evidence, log_harm)]
    a, b = (np.cumsum(arm, axis=1) / n for arm in (champion, canary))
    error = np.sqrt(np.maximum((a + b) / 2 * (1 - (a + b) / 2) * 2 / n, 1e-12))
    peeked = (np.abs(a - b) / error > 1.96) & (n >= 10)
    figure = go.Figure()
    for reached, colour in ((peeked, VERMILION), (ours[0] | ours[1], BLUE)):
        share = np.maximum.accumulate(reached, axis=1).mean(axis=0)
        figure.add_scatter(
            x=n[::20].tolist(), y=share[::20].tolist(), mode="lines", line={"color": colour, "width": 3}
        )
    figure.add_hline(y=2 * alpha, line={"color": GREY, "width": 1})
    _write_label(
        figure, 900, 0.55, "a test for one look,<br>looked at after every vote", None, VERMILION, "right"
    )
    _write_label(figure, 1250, 0.13, "two e-processes, at most 5 % each", None, BLUE, "right")
    figure.update_xaxes(title="votes on each arm", range=[0, 2000])
    figure.update_yaxes(range=[0, 0.65], tickformat=".0%")
    _write_title(figure, "Canaries that are no different, called different", x=0.0)
    return _finish(figure)


def _measure_slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    loss(at).sum().backward()
    assert at.grad is not None
    return at.grad.abs()


def _write_label(
    figure: Any, x: float, y: float, text: str, column: int | None, colour: str, side: str
) -> None:
    place = {} if column is None else {"row": 1, "col": column}
    figure.add_annotation(
        x=x,
        y=y,
        text=text,
        showarrow=False,
        xanchor=side,
        align=side,
        font={"color": colour, "size": 14},
        **place,
    )


def _write_title(figure: Any, text: str, *, x: float) -> None:
    figure.add_annotation(
        x=x,
        y=1.1,
        xref="paper",
        yref="paper",
        xanchor="left",
        text=f"<b>{text}</b>",
        showarrow=False,
        font={"color": INK, "size": 16},
    )


def _finish(figure: Any, top: int = 56) -> Any:
    """Solid paper under the figure, so that it reads on a dark page too."""
    return figure.update_layout(
        template=make_template(),
        paper_bgcolor=PAPER,
        font={"size": 14},
        margin={"l": 24, "r": 24, "t": top, "b": 24},
        width=920,
        height=400,
    )


def write_picture(figure: Any, path: Path) -> None:
    import kaleido

    options = {
        "format": path.suffix.removeprefix("."),
        "width": figure.layout.width,
        "height": figure.layout.height,
        "scale": 1,
    }
    picture = kaleido.calc_fig_sync(figure.to_dict(), opts=options, kopts={"mathjax": False})
    if path.suffix == ".svg":
        picture = _fix_names(picture.decode()).encode()
    path.write_bytes(picture)


def _fix_names(svg: str) -> str:
    """Plotly draws the names of clip paths and traces by lot; with fixed ones, the same picture is the same file."""
    drawn = re.findall(r'id="defs-(\w+)"', svg) + re.findall(r'class="trace scatter trace(\w+)"', svg)
    for number, name in enumerate(dict.fromkeys(drawn)):
        svg = svg.replace(name, f"name{number}")
    return svg + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/concepts.")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write PNG files here instead")
    options = parser.parse_args()
    folder, ending = (options.png, "png") if options.png else (CONCEPTS, "svg")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "value-function": draw_value_function(),
        "saturation": draw_saturation(),
        "reference-point": draw_reference_point(),
        "canary": draw_canary(),
    }
    for name, figure in pictures.items():
        path = folder / f"{name}.{ending}"
        write_picture(figure, path)
        print(path)


if __name__ == "__main__":
    main()
