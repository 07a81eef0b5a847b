"""A run folder in, one HTML file out, which opens offline and asks the network for nothing.

The file holds its style, its script, Plotly and the data. A content security policy lets exactly these scripts
run, each named by its hash, so that a completion that is itself HTML stays what it is: text. All text reaches
the page through Jinja's escaping or as JSON that the script puts in place as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from thumbtune.errors import ConfigError
from thumbtune.evaluation.comparison_record import Comparison, read_comparison, read_completions
from thumbtune.evaluation.paired_tables import list_tables
from thumbtune.evaluation.palette import DARK_OF, INK, PAPER, assign_looks, write_colour_variables
from thumbtune.evaluation.report_sections import (
    COLUMNS,
    draw_sections,
    list_facts,
    list_methods,
    name_level,
    write_cells,
)
from thumbtune.evaluation.wording import say_date

__all__ = ["read_comparison", "read_completions", "write_markdown", "write_pictures", "write_report"]


MOST_COMPLETIONS = 900_000
"""Bytes of completions that a page shows: with the charts' library it stays below 6 MB."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and give its path."""
    folder = Path(folder)
    page = render_page(read_comparison(folder), read_completions(folder))
    return _write_whole(folder / "report.html", page.encode("utf-8", errors="replace"))


def write_markdown(folder: Path) -> Path:
    """Write `report.md`, the verdict and the table for a pull request or a chat, and give its path."""
    folder = Path(folder)
    text = render_markdown(read_comparison(folder))
    return _write_whole(folder / "report.md", text.encode("utf-8", errors="replace"))


def write_pictures(folder: Path, out_dir: Path) -> list[Path]:
    """Write the report's two main figures as PNG, in the light colours, and give their paths."""
    from thumbtune.evaluation.charts import draw_gain_against_kl, draw_up_rates

    comparison, out_dir = read_comparison(folder), Path(out_dir)
    figures = {
        "up-rates": (draw_up_rates(comparison), "Up-rate on held-out prompts"),
        "gain-against-kl": (draw_gain_against_kl(comparison), "Gain in up-rate against KL to the base"),
    }
    paths = []
    for name, (figure, title) in figures.items():
        if figure is None:
            continue
        figure.update_layout(
            title={
                "text": f"{title}, {name_level(comparison)}",
                "font": {"size": 16, "color": INK},
                "x": 0.02,
                "yref": "container",
                "y": 0.96,
            },
            paper_bgcolor=PAPER,
            margin={"t": 56, "l": 16, "r": 32, "b": 16},
            height=figure.layout.height + 60,
            width=760,
        )
        out_dir.mkdir(parents=True, exist_ok=True)
        paths.append(_write_whole(out_dir / f"{name}.png", _draw_png(figure)))
    return paths


def render_page(comparison: Comparison, completions: list[dict[str, Any]]) -> str:
    """The page as a string."""
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    looks = assign_looks(arm.key for arm in comparison.arms)
    sections = draw_sections(comparison)
    shown = list(_take_bytes(completions, MOST_COMPLETIONS))
    scripts = [get_plotlyjs().replace("\r\n", "\n"), _read_part("report.js")]
    data = {
        "figures": {
            panel.slug: panel.figure.to_plotly_json() for section in sections for panel in section.panels
        },
        "dark_of": DARK_OF,
        "arms": [
            {
                "key": arm.key,
                "name": arm.name,
                "glyph": looks[arm.key].glyph,
                "is_base": arm is comparison.base,
            }
            for arm in comparison.arms
        ],
        "completions": shown,
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read_part("report.html")).render(
        comparison=comparison,
        facts=comparison.facts,
        date=say_date(comparison.facts["created_at"]) if comparison.facts.get("created_at") else "",
        level=name_level(comparison),
        columns=COLUMNS,
        rows=[
            (place, arm, looks[arm.key].glyph, write_cells(arm)) for place, arm in enumerate(comparison.arms)
        ],
        places={arm.key: place for place, arm in enumerate(comparison.arms)},
        sections=sections,
        tables=list_tables(comparison),
        completions=shown,
        n_prompts=len(completions),
        methods=list_methods(comparison),
        configs=[(arm, list_facts(dict(arm.spent)), list_facts(arm.config)) for arm in comparison.arms],
        style=Markup(write_colour_variables(looks) + _read_part("report.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'{_hash(script)}'" for script in scripts),
        data=Markup(_embed(data)),
    )


def render_markdown(comparison: Comparison) -> str:
    """The verdict, the table and the caveats in Markdown."""

    def cell(text: str) -> str:
        text = " ".join(text.split())
        for mark in "&<>\\`*_[]|":
            text = text.replace(mark, f"&#{ord(mark)};" if mark in "<>&" else f"\\{mark}")
        return text

    header = ("Arm", *COLUMNS)
    lines = [f"# {cell(comparison.title)}", ""]
    lines += [f"**{cell(sentence)}**\n" for sentence in comparison.verdict]
    lines += [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    for arm in comparison.arms:
        cells = [" ".join(filter(None, parts)) for parts in write_cells(arm)]
        if arm.error is not None:
            cells = [f"failed: {arm.error}"] + [""] * (len(COLUMNS) - 1)
        lines.append(f"| {' | '.join(map(cell, [arm.name, *cells]))} |")
    lines += ["", f"In brackets: {name_level(comparison)}. n: completions judged."]
    for table in list_tables(comparison):
        lines += ["", f"## {table.heading}", "", f"| {' | '.join(map(cell, table.columns))} |"]
        lines += [f"| --- |{' ---: |' * (len(table.columns) - 1)}"]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in table.rows]
        lines += ["", cell(table.caption)]
    for section in draw_sections(comparison):
        if section.slug in ("sweeps", "crossing"):
            lines += ["", f"## {section.heading}", "", cell(section.caption)]
    lines += ["", "What this does not show:", ""] if comparison.caveats else []
    lines += [f"- {cell(caveat)}" for caveat in comparison.caveats]
    return "\n".join(lines) + "\n"


def _take_bytes(rows: list[dict[str, Any]], most: int) -> Iterator[dict[str, Any]]:
    """The first rows, as many as fit."""
    for row in rows:
        most -= len(_embed(row))
        if most < 0:
            return
        yield row


def _embed(data: Any) -> str:
    """JSON that may stand inside a `<script>`: no `<` is left that could end it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read_part(name: str) -> str:
    return files("thumbtune.evaluation").joinpath(name).read_text(encoding="utf-8")


def _write_whole(path: Path, content: bytes) -> Path:
    """Write a file so that a reader finds the old one or the new one, never half of one."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return path


def _draw_png(figure: Any) -> bytes:
    """A picture of a figure, drawn by Kaleido in a local Chromium, without a request to anywhere."""
    try:
        import kaleido
        from kaleido.errors import ChromeNotFoundError
    except ImportError:
        raise ConfigError("pictures need Kaleido, which is not installed: pip install kaleido") from None
    options = {"format": "png", "width": figure.layout.width, "height": figure.layout.height, "scale": 2}
    try:
        return kaleido.calc_fig_sync(figure.to_dict(), opts=options, kopts={"mathjax": False})
    except ChromeNotFoundError:
        raise ConfigError(
            "pictures need Chromium or Chrome, and none was found: install it (Debian: apt-get install chromium), "
            "or name it in the environment variable BROWSER_PATH"
        ) from None
