"""What a candidate learns from: new rows, and so many old ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thumbtune.errors import ConfigError
from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.row_files import write_rows
from thumbtune.loop.settings import LoopSettings, read_canary_rules, read_loop_settings
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


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('folders = "x"', "there is no loop setting 'folders'"),
        (
            'fewest_new_votes = "many"',
            "loop setting 'fewest_new_votes' is 'many': input should be a valid integer",
        ),
        ("fewest_new_votes = 0", "fewest_new_votes is 0, expected more than 0"),
        ("max_minutes = -1", "max_minutes is -1.0, expected more than 0"),
        ("gate = 3", "loop setting 'gate' is 3: input should be"),
        ('method = "dpo"', "method dpo: the loop collects thumbs"),
        ('must_pass = "nowhere.jsonl"', "must_pass: there is no file nowhere.jsonl"),
        ('notify = "./tell.sh"', "loop setting 'notify' is './tell.sh'"),
        ('notify = ["./nowhere.sh"]', "notify: there is no program ./nowhere.sh"),
        ('[canary]\nalpha = "low"', "canary rule 'alpha' is 'low': input should be a valid number"),
        (
            '[canary]\npromote_on = "not-worse"',
            "canary rule 'promote_on' is 'not-worse'.*'better' or 'not_worse'",
        ),
        ('[gate]\nkl_nats = "x"', "gate rule 'kl_nats' is 'x'"),
        ("[gate]\nkl_nats = nan", "gate rule 'kl_nats' is nan: expected a finite number"),
        ("[gate]\nkl_nats = -1", "gate kl_nats is -1.0, expected 0 or more"),
        ("[gate]\nup_rate_drop = 2", "gate up_rate_drop is 2.0, expected 0 to 1"),
        ("[gate]\nfewest_votes = 0", "gate fewest_votes is 0, expected at least 1"),
        ("[gate]\nshortest = 3", "gate shortest and longest are 3.0 and 2.0"),
        ("[canary]\nmax_days = inf", "canary rule 'max_days' is inf: expected a finite number"),
        ('[curation]\nmost_votes_of_one = "lots"', "curation rule 'most_votes_of_one' is 'lots'"),
    ],
)
def test_a_wrong_setting_is_refused_by_file_and_name(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "loop.toml"
    path.write_text(f'model = "m"\n{content}\n')
    with pytest.raises(ConfigError, match=f"loop.toml: {says}"):
        read_loop_settings(path)
    if content.startswith("[canary]"):
        with pytest.raises(ConfigError, match=f"loop.toml: {says}"):
            read_canary_rules(path)
    path.write_bytes("model = 'ı'".encode("iso-8859-9"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_loop_settings(path)
