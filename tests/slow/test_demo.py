"""The demo on the real model, as a user starts it. Minutes long: `make test-slow`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "thumbtune", "demo", "--quick", "--out", "demo", "--json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


def test_the_quick_demo_ends_in_a_report_and_does_nothing_twice(tmp_path: Path) -> None:
    first = json.loads(run_demo(tmp_path).stdout)
    report = tmp_path / first["report"]
    assert report.stat().st_size < 6_000_000
    arms = json.loads((report.parent / "compare.json").read_text())["arms"]
    assert {"base", "kto"} <= set(arms)
    adapter = report.parent / "arms" / "kto-seed0" / "adapter_model.safetensors"
    written = adapter.stat().st_mtime_ns
    assert json.loads(run_demo(tmp_path).stdout) == first
    assert adapter.stat().st_mtime_ns == written
