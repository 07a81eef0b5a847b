"""Who may import whom. The walls of ARCHITECTURE.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "thumbtune"

MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "__main__": {"cli"},
    "records": set(),
    "preference": {"errors"},
    "data": {"errors", "records", "preference"},
    "engine": {"errors", "records", "data", "version"},
    "training": {"errors", "records", "preference", "data", "engine"},
    "evaluation": {"errors", "records", "preference", "data", "engine", "training"},
    "store": {"errors", "records", "data"},
    "loop": {"errors", "records", "preference", "data", "engine", "training", "evaluation", "store"},
    "gateway": {"errors", "records", "version", "data", "engine", "evaluation", "store", "loop"},
    "simulation": {"errors", "records", "data", "engine", "training", "evaluation", "store", "loop", "gateway"},
    "cli": {"errors", "records", "version"}
    | {"preference", "data", "engine", "training", "evaluation", "store", "loop", "gateway"}
    | {"simulation"},
}
"""Each part of the package, and the other parts that it may import."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in MAY_IMPORT)


def find_part(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def list_imports(path: Path) -> set[str]:
    """Parts of thumbtune that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.split(".")[0] == "thumbtune":
                found |= (
                    {find_part(node.module)} if "." in node.module else {alias.name for alias in node.names}
                )
        elif isinstance(node, ast.Import):
            found |= {find_part(alias.name) for alias in node.names if alias.name.startswith("thumbtune.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_part_may(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"{part} is a new part: say in MAY_IMPORT what it may import"
    assert list_imports(path) - {part} <= MAY_IMPORT[part]


LEAVES = {"cli": (), "evaluation.report": (), "gateway.page": ("gateway/app.py",)}
"""Parts that nobody imports but the command line, and whoever is named."""


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_are_imported_by_nobody_but_those_who_may(leaf: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("cli/", "__main__.py", leaf.replace(".", "/"))) and name not in LEAVES[leaf]:
            assert f"thumbtune.{leaf} import" not in path.read_text(), path


def test_importing_the_package_and_the_command_line_stays_light() -> None:
    heavy = ("torch", "transformers", "datasets", "peft", "plotly", "pyarrow", "scipy")
    heavy += ("sqlalchemy", "fastapi", "pydantic", "gradio", "uvicorn")
    code = f"import sys, thumbtune, thumbtune.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
