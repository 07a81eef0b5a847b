"""Progress with time left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 15.0


class Stage:
    """One stage of a command: call it with (done, total) as the work goes on."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self.name = name
        self.started = time.monotonic()
        self._last_line = self.started
        self._began = self.started  # of what is being counted now: a stage may count one thing after another
        self._before = 0
        self._bar = None
        self._task = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(name, total=None, note="")
            self._bar.start()
        self.quiet = quiet

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if done < self._before:
            self._began = time.monotonic()
        self._before = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif not self.quiet and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES and done:
            self._last_line = time.monotonic()
            left = (self._last_line - self._began) / done * (total - done)
            print(
                f"{self.name}: {done} of {total}, {format_seconds(left)} left {note}".rstrip(),
                file=sys.stderr,
            )

    def close(self, outcome: str) -> None:
        if self._bar is not None:
            self._bar.stop()
        if not self.quiet:
            took = format_seconds(time.monotonic() - self.started)
            print(f"{self.name}: {outcome}, {took}", file=sys.stderr, flush=True)


@contextmanager
def stage(name: str, *, quiet: bool = False) -> Iterator[Stage]:
    """`with stage("Sampling") as progress: work(on_progress=progress)`; says at the end how long it took."""
    current = Stage(name, quiet=quiet)
    try:
        yield current
    except BaseException:
        current.close("stopped")
        raise
    current.close("done")


def format_seconds(seconds: float) -> str:
    """`75` as `1:15`, and hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def warn_on_stderr() -> None:
    """Show our warnings, one line each; loading bars and other libraries' deprecations stay out of the way."""
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("thumbtune").handlers = [handler]
