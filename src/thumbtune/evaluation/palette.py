"""The colours and type of the report: one colour and one mark per arm, in light and in dark.

A figure is built once, in the light colours. In the dark, each colour is swapped for its partner in
`DARK_OF`; the page's script does that with the same table, so that page and figures cannot drift apart.
Colours alone never carry a meaning: an arm has a mark too, and the two classes differ in line and fill.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from thumbtune.evaluation.comparison_record import BASE

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

PAPER, INK, MUTED, HAIRLINE, GREY = "#fffefb", "#1d1d1b", "#5c5b57", "#dedcd4", "#77757a"
"""Names of the page's colours in the light. No two may be equal: `DARK_OF` is looked up by them."""

_NEUTRALS = {PAPER: "#161719", INK: "#ecebe6", MUTED: "#a9a8a2", HAIRLINE: "#37383b", GREY: "#98979c"}

_ARMS = {
    "#0069b4": "#56aef0",  # blue
    "#c94f00": "#f28c45",  # vermilion
    "#a33c8f": "#de8fcd",  # purple
    "#0f7a55": "#3fc493",  # green
    "#8f6a00": "#dcb52e",  # ochre
    "#8a1f3d": "#ef7f92",  # wine
    "#4b3aa8": "#a99df5",  # indigo
    "#1f7f91": "#76d3e0",  # teal
}
"""Light to dark; after Okabe and Ito's colour-blind safe set, darkened to 4.5:1 on paper."""

DARK_OF = _NEUTRALS | _ARMS

_MARKS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle-up": "▲",
    "triangle-down": "▼",
    "star": "★",
    "cross": "✚",
}
"""Plotly's symbol and the same in type. Seven marks and eight colours meet again after 56 arms."""

_OWN_SEAT = {"kto": 0, "dpo": 1, "dpo_bought": 2}
"""Arms that look the same in every report."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one arm is drawn, everywhere."""

    colour: str
    """In the light; `DARK_OF[colour]` in the dark."""
    symbol: str
    """Plotly's name of the mark."""
    glyph: str
    """The mark in type."""


def assign_looks(keys: Iterable[str]) -> dict[str, Look]:
    """A look for each arm: grey for the base, the arm's own where it has one, else the next that is free."""
    keys = list(keys)
    taken = {_OWN_SEAT[key] for key in keys if key in _OWN_SEAT}
    free = (seat for seat in range(len(keys) + len(_OWN_SEAT)) if seat not in taken)
    looks = {}
    for key in keys:
        if key == BASE:
            looks[key] = Look(GREY, "circle-open", "○")
            continue
        seat = _OWN_SEAT[key] if key in _OWN_SEAT else next(free)
        symbol, glyph = list(_MARKS.items())[seat % len(_MARKS)]
        looks[key] = Look(list(_ARMS)[seat % len(_ARMS)], symbol, glyph)
    return looks


def make_template() -> Any:
    """Plotly's template of every figure: hairlines, no box, nothing to drag."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": HAIRLINE,
        "linecolor": MUTED,
        "zeroline": False,
        "zerolinecolor": GREY,
        "zerolinewidth": 1,
        "ticks": "",
        "automargin": True,
        "fixedrange": True,
        "title": {"font": {"size": 13, "color": MUTED}, "standoff": 10},
        "tickfont": {"size": 12.5, "color": INK},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "dragmode": False,
            "hovermode": "closest",
            "showlegend": False,
            "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
            "hoverlabel": {"bgcolor": PAPER, "bordercolor": MUTED, "font": {"family": FONT, "color": INK}},
        }
    )


def write_colour_variables(looks: dict[str, Look]) -> str:
    """The CSS that names the colours: `--ink`, `--arm-0`, …, in light, in dark, and light again on paper."""
    names = {"--paper": PAPER, "--ink": INK, "--muted": MUTED, "--hairline": HAIRLINE}
    names |= {f"--arm-{place}": look.colour for place, look in enumerate(looks.values())}
    light = "".join(f"{name}:{colour};" for name, colour in names.items()) + "color-scheme:light;"
    dark = "".join(f"{name}:{DARK_OF[colour]};" for name, colour in names.items()) + "color-scheme:dark;"
    return (
        f":root{{{light}}}\n"
        f"@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
        f"@media print{{:root,:root:not([data-theme=light]),:root[data-theme=dark]{{{light}}}}}\n"
    )
