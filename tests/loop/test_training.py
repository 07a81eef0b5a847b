"""What a candidate learns from: new rows, and so many old ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thumbtune.errors import ConfigError
from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.row_files import write_rows
from thumbtune.loop.settings import LoopSettings, read_loop_settings
from thumbtune.loop.training import choose_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Six old rows and four new ones, the new ones from 100 on."""
    made = [
        {"prompt": f"p{i}", "completion": f"c{i}", "label": i % 2 == 0, "completion_id": f"id{i}"}
        | {"created_us": 10 if i < 6 else 100}
        for i in range(10)
    ]
    written = write_rows(lambda: iter(made), tmp_path / "rows.parquet")
    assert written is not None
    return written


@pytest.mark.parametrize(
    ("settings", "new", "old"),
    [
        ({"old_rows_for_a_new_one": 1.0}, 4, 4),
        ({"old_rows_for_a_new_one": 0.5}, 4, 2),
        ({"old_rows_for_a_new_one": None}, 4, 6),
        ({"old_rows_for_a_new_one": 0.0}, 4, 0),
        ({"most_rows": 3}, 3, 0),
        ({"most_rows": 5}, 4, 1),
    ],
)
def test_new_rows_come_first_and_old_ones_beside_them(
    rows: Path, settings: dict[str, Any], new: int, old: int
) -> None:
    chosen, counts = choose_rows(rows, LoopSettings("m", **settings), seen_before_us=50)
    assert (counts["new_rows"], counts["old_rows"], len(chosen.examples)) == (new, old, new + old)
    assert counts["new_rows_left_out"] + new == 4
    assert counts["old_rows_left_out"] + old == 6
    again, _ = choose_rows(rows, LoopSettings("m", **settings), seen_before_us=50)
    assert again.digest == chosen.digest


def test_the_first_turn_knows_no_old_rows(rows: Path) -> None:
    _, counts = choose_rows(rows, LoopSettings("m"), seen_before_us=None)
    assert (counts["new_rows"], counts["old_rows"]) == (10, 0)


def test_tables_of_the_file_become_rules_and_a_wrong_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    path.write_text('model = "m"\n[canary]\nstages = [0.25, 0.5]\n[curation]\nkinds = ["explicit", "edit"]\n')
    settings = read_loop_settings(path, fewest_new_votes=7)
    assert settings.canary == CanaryRules(stages=(0.25, 0.5))
    assert (settings.curation.kinds, settings.fewest_new_votes) == (("explicit", "edit"), 7)
    path.write_text('model = "m"\n[canary]\nalpha = "low"\n')
    with pytest.raises(ConfigError, match="canary rule has a value of the wrong kind"):
        read_loop_settings(path)
    path.write_text('model = "m"\nfolders = "x"\n')
    with pytest.raises(ConfigError, match="no loop setting 'folders'"):
        read_loop_settings(path)
