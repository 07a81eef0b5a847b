"""Results as Markdown tables, which read well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers are given three or four digits."""
    cells = [list(header), *([_format_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _format_cell(cell: object) -> str:
    if cell is None:
        return "–"
    if not isinstance(cell, float):
        return str(cell)
    if cell == 0 or 1e-3 <= abs(cell) < 1e4:
        digits = 1 if abs(cell) >= 100 else 2 if abs(cell) >= 10 else 3 if abs(cell) >= 1 else 4
        return f"{cell:.{digits}f}"
    return f"{cell:,.0f}" if abs(cell) >= 1e4 else f"{cell:.2e}"
