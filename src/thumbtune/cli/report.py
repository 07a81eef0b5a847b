"""`thumbtune report`: make the report of a run folder again."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    folder: Path = typer.Argument(..., help="Run folder that `thumbtune compare` wrote."),
    pictures: Path | None = typer.Option(
        None, "--pictures", help="Also write the main figures as PNG into this folder. Needs Chromium."
    ),
) -> None:
    """Make the report of a run folder again: report.html and report.md.

    The HTML is one file that opens offline. Printed: the path of each file written, one a line.

    [bold]Examples[/bold]

      thumbtune report runs/demo

      thumbtune report runs/demo --pictures docs/pictures
    """
    from thumbtune.evaluation.report import write_markdown, write_pictures, write_report

    print(write_report(folder))
    print(write_markdown(folder))
    if pictures is not None:
        for path in write_pictures(folder, pictures):
            print(path)
