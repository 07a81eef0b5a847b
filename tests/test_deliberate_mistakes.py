"""Deliberate mistakes, each of which must turn tests red: what a green suite is worth.

A copy of the package gets one mistake at a time, and the tests named beside it run against that copy. They all must
pass on the unharmed copy and all must fail on the harmed one. A snippet that is no longer in its file exactly once
fails here, so that the list cannot rot: bring it up to date with the code, or drop it with its reason.

All mistakes run in one child process, one after another (`python tests/test_deliberate_mistakes.py`), since importing
torch takes longer than most of them.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))  # in the child process nobody else does it

from mistakes import Mistake  # noqa: E402
from mistakes_in_engine import ENGINE_MISTAKES  # noqa: E402
from mistakes_in_loop import LOOP_MISTAKES  # noqa: E402
from mistakes_in_losses import LOSS_MISTAKES  # noqa: E402
from mistakes_in_operations import OPERATION_MISTAKES  # noqa: E402
from mistakes_in_service import SERVICE_MISTAKES  # noqa: E402
from mistakes_in_training import TRAINING_MISTAKES  # noqa: E402

PACKAGE = REPOSITORY / "src" / "thumbtune"

MISTAKES = [
    *LOSS_MISTAKES,
    *ENGINE_MISTAKES,
    *OPERATION_MISTAKES,
    *TRAINING_MISTAKES,
    *SERVICE_MISTAKES,
    *LOOP_MISTAKES,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_mistake_is_still_one_edit_away(mistake: Mistake) -> None:
    source = (PACKAGE / mistake.file).read_text()
    assert source.count(mistake.right) == 1, (
        f"{mistake.file} holds {mistake.right!r} {source.count(mistake.right)} times: bring the list up to date"
    )


def test_names_of_mistakes_are_told_apart() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.timeout(600)
def test_every_deliberate_mistake_turns_its_tests_red(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "PYTHONPATH": str(tmp_path / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",  # or a mistake of the same length, in the same second, would not be seen
        "OMP_NUM_THREADS": "1",
    }
    shutil.copytree(PACKAGE, tmp_path / "src" / "thumbtune", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-P", __file__, str(tmp_path)]
    with (tmp_path / "output").open("w") as output:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, timeout=580, check=False
        )
    assert done.returncode == 0, (tmp_path / "output").read_text()[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["imported"] == str(tmp_path / "src" / "thumbtune" / "__init__.py")
    assert results["unharmed"]["not passed"] == [], results["unharmed"]["output"]
    survivors = {
        mistake.name: results[mistake.name]["not failed"]
        for mistake in MISTAKES
        if results[mistake.name]["not failed"]
    }
    assert survivors == {}, "these mistakes leave these tests green"


# ---- the child process


class Outcomes:
    """A pytest plugin that notes how each test ended. Only an assertion counts as red: a crash proves nothing."""

    def __init__(self) -> None:
        self.of_test: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.of_test[report.nodeid] = report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash is not None else str(report.longrepr)
            if report.when != "call" or not message.startswith("AssertionError"):
                self.of_test[report.nodeid] = f"{report.when} crashed: {message[:200]}"


def run_tests(tests: list[str]) -> tuple[dict[str, str], str]:
    """Outcome of each test on the package as it stands on disk now, imported afresh, and what pytest printed."""
    for name, module in list(sys.modules.items()):
        of_tests = str(getattr(module, "__file__", None) or "").startswith(str(REPOSITORY / "tests"))
        if name.split(".")[0] == "thumbtune" or (of_tests and name != "__main__"):
            del sys.modules[name]
    importlib.invalidate_caches()
    outcomes, printed = Outcomes(), StringIO()
    arguments = [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--assert=plain",
        "--tb=line",
        *(f"tests/{test}" for test in tests),
    ]
    with redirect_stdout(printed), redirect_stderr(printed):
        pytest.main(arguments, plugins=[outcomes])
    found = {test: outcomes.of_test.get(f"tests/{test}", "not run") for test in tests}
    return found, printed.getvalue()


@contextmanager
def harmed(path: Path, mistake: Mistake) -> Iterator[None]:
    whole = path.read_text()
    assert whole.count(mistake.right) == 1
    path.write_text(whole.replace(mistake.right, mistake.wrong))
    try:
        yield
    finally:
        path.write_text(whole)


def run_all(folder: Path) -> None:
    from hypothesis import Phase, settings

    # The first counter-example is enough: a smaller one costs time, and chance has no place here.
    settings.register_profile(
        "first counter-example", phases=[Phase.explicit, Phase.generate], database=None, derandomize=True
    )
    settings.load_profile("first counter-example")
    found, printed = run_tests(sorted({test for mistake in MISTAKES for test in mistake.red}))
    results: dict[str, object] = {
        "imported": sys.modules["thumbtune"].__file__,
        "unharmed": {
            "not passed": [test for test, outcome in found.items() if outcome != "passed"],
            "output": printed[-3000:],
        },
    }
    for mistake in MISTAKES:
        started = time.monotonic()
        with harmed(folder / "src" / "thumbtune" / mistake.file, mistake):
            found, _ = run_tests(list(mistake.red))
        results[mistake.name] = {
            "not failed": [f"{test}: {outcome}" for test, outcome in found.items() if outcome != "failed"],
            "seconds": round(time.monotonic() - started, 1),
        }
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
