"""What a comparison will do, told before it does it, and how long is left while it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

OnArm = Callable[[int, int, float], None]
"""Called after each arm with (arms done, arms in all, seconds left)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What there is to do."""

    arms: int
    """Trainings with all that follows; at most, since searched settings meet those of the table."""
    done: int
    """Of them, those found done."""
    rows: int
    """Rows to train, over all arms that are left."""
    completions: int
    """Completions to sample, over all arms that are left."""


@dataclass
class Clock:
    """Time left, from what arms took so far, by their rows and completions."""

    total: int
    weight: float
    """Of all arms: rows, and half a row for each completion that is sampled."""
    on_arm: OnArm | None = None
    done: int = 0
    _spent: float = 0.0
    _weight_done: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """An arm begins."""
        self._began = time.monotonic()

    def end(self, rows: int, completions: int) -> None:
        """It is done."""
        self.done += 1
        self._spent += time.monotonic() - self._began
        self._weight_done += weigh(rows, completions)
        if self.on_arm is not None:
            left = max(self.weight - self._weight_done, 0.0) * self._spent / self._weight_done
            self.on_arm(self.done, max(self.total, self.done), left)


def weigh(rows: int, completions: int) -> float:
    """How much work an arm is, in rows."""
    return rows + completions / 2
