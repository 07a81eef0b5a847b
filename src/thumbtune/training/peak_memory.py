"""The most memory that this process held at once, over a stretch of its life."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


class PeakMemory:
    """`with PeakMemory() as memory: …`, then `memory.peak_mb` (MB of resident memory).

    Linux lets a process reset its own high-water mark. Elsewhere the mark covers the whole life of the process,
    and `whole_process` is True.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self.whole_process = False

    def __enter__(self) -> PeakMemory:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.whole_process = True
        return self

    def __exit__(self, *_: object) -> None:
        try:
            status = Path("/proc/self/status").read_text()
            kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
            self.peak_mb = int(kib) * 1024 / 1e6
        except (OSError, StopIteration):
            self.whole_process = True
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self.peak_mb = peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
