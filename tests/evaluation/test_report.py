"""The report as a file: what is in it, what must not be in it, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import sys

import pytest

from evaluation.conftest import make_completions
from thumbtune.errors import ConfigError, DataError
from thumbtune.evaluation import report
from thumbtune.evaluation.comparison_record import Interval, read_interval

MEBIBYTE = 1024 * 1024
ARM_FIELDS = [
    *("name", "method", "up_rate", "auc", "kl_per_token", "length", "seconds", "peak_rss_mb"),
    *("spent", "alarms", "adjustments", "curve", "reward_histogram", "config"),
]


def own_markup(page: str) -> str:
    """The page without the text of its scripts and its style."""
    return re.sub(r"(?s)(<(script|style)[^>]*>).*?</\2>", r"\1</\2>", page)


def embedded_data(page: str) -> dict:
    return json.loads(re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', page)[1])


def test_the_report_is_one_file_beside_the_comparison(write_run, comparison):
    folder = write_run(comparison)
    path = report.write_report(folder)
    assert path == folder / "report.html"
    assert sorted(file.name for file in folder.iterdir()) == [
        "compare.json",
        "completions.jsonl",
        "report.html",
    ]
    assert path.stat().st_size < 6 * MEBIBYTE
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_page_of_many_prompts_stays_small_and_says_what_it_leaves_out(write_run, nine_arms):
    completions = make_completions(nine_arms["arms"], prompts=2_000)
    path = report.write_report(write_run(nine_arms, completions))
    assert path.stat().st_size < 6_000_000
    page = path.read_text(encoding="utf-8")
    n_shown = len(embedded_data(page)["completions"])
    assert 100 < n_shown < 2_000
    assert f"Of 2000 prompts the first {n_shown}" in own_markup(page)
    few = report.write_report(write_run(nine_arms)).read_text(encoding="utf-8")
    assert "Of 20 prompts the first" not in own_markup(few)


def test_plotly_is_inlined_once_and_nothing_is_loaded_from_elsewhere(write_run, nine_arms):
    page = report.write_report(write_run(nine_arms)).read_text(encoding="utf-8")
    assert page.count("* plotly.js v") == 1
    markup = own_markup(page)
    links = re.findall(r"\b(?:src|href|action|srcset)=\"?([^\"> ]*)", markup)
    assert links
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert "@import" not in page[: page.index("</style>")]
    assert "url(" not in page[: page.index("</style>")]


def test_only_the_reports_own_scripts_may_run(write_run, comparison):
    page = report.write_report(write_run(comparison)).read_text(encoding="utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none';")
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    scripts = re.findall(r"(?s)<script>(.*?)</script>", page)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_the_verdict_comes_before_the_table_and_the_caveats_come_last(write_run, comparison):
    markup = own_markup(report.write_report(write_run(comparison)).read_text(encoding="utf-8"))
    places = [
        markup.index(text)
        for text in (
            "<h1>thumbtune demo</h1>",
            "KTO is better than the base: 44%",
            "<table>",
            'id="completions"',
            "How it was done</h2>",
            "What this does not show</h2>",
            "The judge is a simulated user",
        )
    ]
    assert places == sorted(places)


def test_the_table_names_each_number_with_its_interval_and_n(write_run, comparison):
    markup = own_markup(report.write_report(write_run(comparison)).read_text(encoding="utf-8"))
    assert '<th scope="row">' in markup
    assert 'scope="col">Up-rate' in markup
    assert "44%" in markup
    assert "(36% to 52%), n = 64" in markup
    assert "both rewards fell after step 20" in markup


def test_how_it_was_done_lists_data_judge_sampling_seeds_hardware_and_versions(write_run, comparison):
    markup = own_markup(report.write_report(write_run(comparison)).read_text(encoding="utf-8"))
    for fact in (
        "9f2c9f2c",
        "wrong label: 2",
        "brevity:24",
        "max new tokens",
        "made-up CPU",
        "5.23.1",
        "lora",
    ):
        assert fact in markup, fact


def test_hostile_text_anywhere_stays_text(write_run, comparison, hostile_text):
    comparison |= {
        "title": hostile_text,
        "model": hostile_text,
        "verdict": [hostile_text],
        "caveats": [hostile_text],
    }
    comparison["data"] = {hostile_text: hostile_text}
    comparison["judge"] = {"description": {hostile_text: [hostile_text]}}
    for arm in comparison["arms"].values():
        arm |= {"name": hostile_text, "alarms": [hostile_text], "config": {hostile_text: hostile_text}}
    comparison["arms"][hostile_text] = {"name": hostile_text, "error": hostile_text}
    completions = [
        {"prompt": hostile_text, "arms": {"kto": [{"text": hostile_text, "label": True}], hostile_text: []}}
    ]
    page = report.write_report(write_run(comparison, completions)).read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img" not in own_markup(page)
    assert "<!--" not in own_markup(page)
    assert "{{ 7 * 7 }}" in own_markup(page)
    assert embedded_data(page)["completions"][0]["prompt"] == hostile_text
    twin = report.write_markdown(write_run(comparison)).read_text(encoding="utf-8")
    assert "<script" not in twin
    assert "<img" not in twin


def test_half_a_character_pair_does_not_break_the_report(write_run, comparison):
    comparison["verdict"] = ["broken \ud83d here"]
    (folder := write_run(comparison, [])).joinpath("completions.jsonl").write_text(
        '{"prompt": "cut \\ud83d", "arms": {"kto": {"text": "\\udc4d", "label": null}}}\n', encoding="utf-8"
    )
    assert "broken ? here" in report.write_report(folder).read_text(encoding="utf-8")


def test_chat_messages_as_a_prompt_read_as_a_conversation(write_run, comparison):
    system, user = {"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}
    odd = {"role": "user", "content": "hi", "tool_calls": []}
    prompts = [[user], [system, user], [odd]]
    folder = write_run(
        comparison, [{"prompt": prompt, "arms": {"kto": [{"text": None}]}} for prompt in prompts]
    )
    completions = embedded_data(report.write_report(folder).read_text(encoding="utf-8"))["completions"]
    assert [row["prompt"] for row in completions] == ["hi", "system: be brief\n\nuser: hi", json.dumps([odd])]
    assert completions[0]["arms"]["kto"][0] == {"text": "", "label": None, "n_tokens": None, "finished": None}


@pytest.mark.parametrize(
    "field", ["title", "model", "data", "judge", "budget", "sampling", "verdict", "caveats"]
)
def test_a_missing_field_of_the_comparison_leaves_a_gap_and_no_error(write_run, comparison, field):
    for gone in (comparison | {field: None}, {key: v for key, v in comparison.items() if key != field}):
        folder = write_run(gone)
        report.write_report(folder)
        report.write_markdown(folder)


@pytest.mark.parametrize("field", ARM_FIELDS)
def test_a_missing_field_of_an_arm_leaves_a_gap_and_no_error(write_run, comparison, field):
    comparison["arms"]["kto"][field] = None
    for arm in ("dpo", "dpo_bought", "base"):
        comparison["arms"][arm].pop(field, None)
    folder = write_run(comparison)
    report.write_report(folder)
    report.write_markdown(folder)


def test_an_arm_with_nothing_in_it_is_a_row_of_dashes(write_run, comparison):
    comparison["arms"] = {"kto": {}}
    markup = own_markup(report.write_report(write_run(comparison)).read_text(encoding="utf-8"))
    assert markup.count("<td>–</td>") == 7


def test_with_several_seeds_the_report_says_that_curves_and_completions_are_of_the_first(
    write_run, comparison
):
    one = own_markup(report.write_report(write_run(comparison)).read_text(encoding="utf-8"))
    many = own_markup(
        report.write_report(write_run(comparison | {"seeds": [0, 1]})).read_text(encoding="utf-8")
    )
    assert "the first seed" not in one
    assert many.count("the first seed") == 3


def test_a_failed_arm_says_why(write_run, nine_arms):
    folder = write_run(nine_arms)
    assert (
        "Failed: out of memory at step 3 &lt;b&gt;of 40&lt;/b&gt;" in report.write_report(folder).read_text()
    )
    assert "failed: out of memory at step 3 &#60;b&#62;of 40" in report.write_markdown(folder).read_text()


def test_a_run_without_completions_says_so(write_run, comparison):
    folder = write_run(comparison)
    (folder / "completions.jsonl").unlink()
    assert "This run kept no completions." in report.write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"arms": {}}', '{"arms": []}', '{"arms": {"kto": 3}}']
)
def test_a_comparison_that_cannot_be_read_is_refused_with_what_to_do(tmp_path, content):
    if content is not None:
        (tmp_path / "compare.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"compare\.json: .*thumbtune compare"):
        report.write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": "x"}', '{"prompt": "x", "arms": {"kto": [3]}}'])
def test_a_broken_line_of_completions_is_named(write_run, comparison, line):
    folder = write_run(comparison)
    (folder / "completions.jsonl").write_text('{"prompt": "x", "arms": {}}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"completions\.jsonl line 2"):
        report.write_report(folder)


def test_a_write_that_fails_leaves_the_old_report_and_no_draft(write_run, comparison, monkeypatch):
    folder = write_run(comparison)
    (folder / "report.html").write_text("old", encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == "old"
    assert len(list(folder.iterdir())) == 3


def test_the_same_comparison_gives_the_same_bytes(write_run, comparison):
    folder = write_run(comparison)
    first = report.write_report(folder).read_bytes()
    assert report.write_report(folder).read_bytes() == first


def test_the_markdown_twin_holds_verdict_table_and_caveats(write_run, comparison):
    comparison["arms"]["dpo"]["name"] = "DPO | pairs"
    text = report.write_markdown(write_run(comparison)).read_text(encoding="utf-8")
    assert text.startswith("# thumbtune demo\n")
    assert "| KTO | 44% (36% to 52%), n = 64 | 0.82 (0.76 to 0.88) |" in text
    assert "DPO \\| pairs" in text
    assert "- One seed: another may come out otherwise." in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}


def test_not_a_number_in_the_json_is_not_a_measurement():
    assert read_interval({"mean": float("nan"), "n": 3}) is None
    assert read_interval({"mean": 0.5, "low": float("inf"), "n": 3.0}) == Interval(0.5, None, None, 3)
    assert read_interval(True) is None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium binary to draw with")
def test_pictures_are_png_files_of_the_two_main_figures(write_run, comparison, tmp_path):
    paths = report.write_pictures(write_run(comparison), tmp_path / "pictures")
    assert [path.name for path in paths] == ["up-rates.png", "gain-against-kl.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_pictures_without_kaleido_say_what_to_install(write_run, comparison, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ConfigError, match="pip install kaleido"):
        report.write_pictures(write_run(comparison), tmp_path)


def test_pictures_without_a_browser_say_what_to_install(write_run, comparison, tmp_path, monkeypatch):
    import kaleido
    from kaleido.errors import ChromeNotFoundError

    def find_none(*_: object, **__: object) -> None:
        raise ChromeNotFoundError

    monkeypatch.setattr(kaleido, "calc_fig_sync", find_none)
    with pytest.raises(ConfigError, match=r"apt-get install chromium.*BROWSER_PATH"):
        report.write_pictures(write_run(comparison), tmp_path)


def test_the_command_prints_the_paths_it_wrote(write_run, comparison, capsys):
    from thumbtune.cli.report import report as run_command

    folder = write_run(comparison)
    run_command(folder, pictures=None)
    assert capsys.readouterr().out.splitlines() == [str(folder / "report.html"), str(folder / "report.md")]


def test_what_stands_beside_the_table_is_told_with_its_numbers(write_run, full_comparison):
    folder = write_run(full_comparison)
    markup = own_markup(report.write_report(folder).read_text(encoding="utf-8"))
    for text in (
        "Prompt by prompt</h2>",
        "+32 points (+22 to +42 points), p &lt; 0.001",
        "30, 28, 6",
        "31% (21% to 41%), n = 40, of 75%",
        "40%, 50%, 45%",
        "What was tried</h2>",
        "0.0009",
        "failed: a loss is not a number",
        "120 thumbs, 30% wrong: DPO failed (no prompt has both)",
        "120 thumbs: KTO over DPO +30 points (+20 to +40 points, n = 64 prompts)",
        "At 5 labels a pair, DPO on bought pairs needs 4.0 times the labels of KTO on 120 thumbs (less than 1.0 to "
        "6.2); needs 3.1 times the labels of KTO on 240 thumbs (1.9 to more than 4.0).",
    ):
        assert text in markup, text
    figures = embedded_data(report.write_report(folder).read_text(encoding="utf-8"))["figures"]
    assert {"sweep-0", "crossing"} <= set(figures)
    twin = report.write_markdown(folder).read_text(encoding="utf-8")
    assert "## Prompt by prompt" in twin
    assert "## What pairs cost" in twin
    assert "needs 3.1 times the labels" in twin


def test_a_comparison_without_them_has_none_of_these_parts(write_run, comparison):
    markup = own_markup(report.write_report(write_run(comparison)).read_text(encoding="utf-8"))
    for text in ("Prompt by prompt", "What was tried", "Under other conditions", "What pairs cost"):
        assert text not in markup
