"""The report in a real browser: drawn, quiet, offline, reachable by keyboard, and safe with hostile text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from thumbtune.evaluation.palette import DARK_OF, INK, PAPER
from thumbtune.evaluation.report import write_report

CHROMIUM = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium binary: scripts/install-chromium installs one"
)


@dataclass
class Visit:
    """An open report, with all that it asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, write_run: Callable[..., Path]) -> Iterator[Callable[..., Visit]]:
    """Write a report and open it; at the end, it must have been quiet and offline."""
    visits = []

    def open_report(
        comparison: dict, completions: list | None = None, width: int = 1200, **options: Any
    ) -> Visit:
        path = write_report(write_run(comparison, completions))
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(90_000)  # a busy machine is not a broken report
        page = context.new_page()
        visit = Visit(page)
        visits.append((context, visit))
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("console", lambda message: visit.complaints.append(message.text))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        context.route(
            "**/*", lambda route: route.continue_() if is_local(route.request.url) else route.abort()
        )
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.chart .main-svg').length > 0")
        return visit

    yield open_report
    for context, visit in visits:
        assert [url for url in visit.requests if not is_local(url)] == []
        assert visit.complaints == []
        context.close()


def is_local(url: str) -> bool:
    return url.startswith(("file://", "data:"))


FITS = """() => [...document.querySelectorAll('.chart')].every(box =>
  Math.abs(box.querySelector('.main-svg').getBoundingClientRect().width - box.clientWidth) < 2)"""
"""Whether every chart has taken the width of its box."""


def count_drawn(page: Any) -> list[int]:
    """For each chart, the points, lines and bars that it drew."""
    return page.eval_on_selector_all(
        ".chart",
        "boxes => boxes.map(box => box.querySelectorAll('.point, .js-line').length)",
    )


def text_colours(page: Any) -> set[str]:
    return set(
        page.eval_on_selector_all(".chart .xtick text", "all => all.map(each => getComputedStyle(each).fill)")
    )


def as_rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


def find_overlaps(page: Any) -> list[str]:
    """Pairs of texts of one chart that cover one another, and texts that leave their chart."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.chart')].flatMap(box => {
          const frame = box.getBoundingClientRect(), found = [];
          const texts = [...box.querySelectorAll('.main-svg text')].filter(text => text.textContent.trim());
          const boxes = texts.map(text => text.getBoundingClientRect());
          boxes.forEach((one, place) => {
            if (one.left < frame.left - 1 || one.right > frame.right + 1)
              found.push(`${box.id} clips: ${texts[place].textContent}`);
            boxes.slice(place + 1).forEach((two, further) => {
              const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
              const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
              if (wide > 2 && high > 3)
                found.push(`${box.id}: ${texts[place].textContent} / ${texts[place + 1 + further].textContent}`);
            });
          });
          return found;
        })"""
    )


def list_prompts(page: Any) -> list[str]:
    return page.locator(".prompt .asked").all_text_contents()


def test_every_chart_is_drawn_with_points(visit, comparison):
    drawn = count_drawn(visit(comparison).page)
    assert len(drawn) == 15  # up-rates, gain, 4 metrics, 3 rewards, 3 histograms, length, time, memory
    assert min(drawn) > 0


def test_sweeps_and_the_crossing_are_drawn_and_their_texts_keep_apart(visit, full_comparison):
    page = visit(full_comparison).page
    assert min(count_drawn(page)) > 0
    assert page.locator("#sweeps .chart").count() == 1
    assert page.locator("#crossing .chart").count() == 1
    assert find_overlaps(page) == []
    assert page.locator("#against-the-base tbody tr").count() == 3


def test_nine_arms_of_which_one_failed_draw_every_chart(visit, nine_arms):
    page = visit(nine_arms).page
    drawn = count_drawn(page)
    assert len(drawn) == 23
    assert min(drawn) > 0
    assert "Failed: out of memory at step 3 <b>of 40</b>" in page.locator("table").inner_text()


def test_arms_too_close_for_names_at_their_points_get_a_key(visit, nine_arms):
    for arm in nine_arms["arms"].values():
        if arm.get("kl_per_token"):
            arm["kl_per_token"] = arm["up_rate"] = {"mean": 0.2, "low": 0.15, "high": 0.25, "n": 64}
    page = visit(nine_arms).page
    assert page.locator("#gain .key li").count() == 8
    assert page.locator("#chart-gain .annotation").count() == 0


def test_one_arm_alone_is_a_whole_report(visit, comparison):
    comparison["arms"] = {"kto": comparison["arms"]["kto"]}
    page = visit(comparison).page
    assert min(count_drawn(page)) > 0
    assert page.locator("#outcome option").count() == 1


def test_no_text_covers_another_or_is_clipped_at_any_width(visit, comparison):
    page = visit(comparison, width=1200).page
    for width in (1200, 700, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(FITS)
        assert find_overlaps(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_nine_arms_fit_on_a_narrow_page(visit, nine_arms):
    page = visit(nine_arms, width=400).page
    assert find_overlaps(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_the_report_follows_the_system_into_the_dark_and_the_button_back(visit, comparison):
    page = visit(comparison, color_scheme="dark").page
    background = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(background) == as_rgb(DARK_OF[PAPER])
    assert text_colours(page) == {as_rgb(DARK_OF[INK])}
    page.get_by_role("button", name="Switch to light colours").click()
    assert page.evaluate(background) == as_rgb(PAPER)
    assert text_colours(page) == {as_rgb(INK)}
    page.get_by_role("button", name="Switch to dark colours").click()
    assert text_colours(page) == {as_rgb(DARK_OF[INK])}


def test_a_change_of_the_system_theme_recolours_the_open_page(visit, comparison):
    page = visit(comparison, color_scheme="light").page
    assert text_colours(page) == {as_rgb(INK)}
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "colour => getComputedStyle(document.querySelector('.chart .xtick text')).fill === colour",
        arg=as_rgb(DARK_OF[INK]),
    )


def test_it_prints_in_light_colours_and_returns_to_the_dark(visit, comparison):
    page = visit(comparison, color_scheme="dark").page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert text_colours(page) == {as_rgb(INK)}
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == as_rgb(PAPER)
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert text_colours(page) == {as_rgb(DARK_OF[INK])}


def test_search_finds_prompts_and_answers(visit, comparison):
    page = visit(comparison).page
    status = page.locator("#found")
    assert status.text_content() == "20 of 20 prompts"
    page.fill("#search", "FOR 7 days")
    assert list_prompts(page) == ["How do I keep bread fresh for 7 days?"]
    assert status.text_content() == "1 of 20 prompts"
    page.fill("#search", "answer of dpo_bought")
    assert status.text_content() == "20 of 20 prompts"
    page.fill("#search", "nowhere to be found")
    assert list_prompts(page) == []


def test_the_outcome_filter_keeps_the_prompts_that_kto_won_or_lost(visit, comparison):
    # KTO is up where (place + 1) % 5 < 2: places 0, 4, 5, 9, 10, 14, 15, 19. The base is up at 0 and 10.
    page = visit(comparison).page
    page.select_option("#outcome", label="KTO won")
    assert list_prompts(page) == [f"How do I keep bread fresh for {n} days?" for n in (5, 6, 10, 15, 16, 20)]
    page.select_option("#outcome", label="KTO lost")
    assert list_prompts(page) == []
    page.select_option("#outcome", label="DPO (pairs in the thumbs) lost")
    assert list_prompts(page) == [f"How do I keep bread fresh for {n} days?" for n in (1, 11)]


def test_a_judge_that_compares_leaves_the_base_undecided_and_the_filters_still_find(visit, comparison):
    completions = [
        {
            "prompt": name,
            "arms": {"base": [{"text": "a", "label": 0.5}], "kto": [{"text": "b", "label": label}]},
        }
        for name, label in (("better", True), ("as good", 0.5), ("worse", False), ("unjudged", None))
    ]
    page = visit(comparison, completions).page
    assert page.locator(".prompt", has_text="as good").locator(".thumb").all_inner_texts() == ["=", "="]
    page.select_option("#outcome", label="KTO won")
    assert list_prompts(page) == ["better"]
    page.select_option("#outcome", label="KTO lost")
    assert list_prompts(page) == ["worse"]


def test_the_disagreement_filter_drops_prompts_that_all_arms_share(visit, comparison):
    completions = [
        {
            "prompt": name,
            "arms": {"base": [{"text": "a", "label": one}], "kto": [{"text": "b", "label": two}]},
        }
        for name, one, two in [
            ("both up", True, True),
            ("split", True, False),
            ("both down", False, False),
            ("unjudged", None, True),
        ]
    ]
    page = visit(comparison, completions).page
    page.check("#disagree")
    assert list_prompts(page) == ["split"]


def test_filters_and_pages_work_by_keyboard_alone(visit, comparison):
    page = visit(comparison).page
    page.focus("#theme")
    wanted, reached = ["scroll", "search", "outcome", "disagree", "next"], []
    while "next" not in reached and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert [stop for stop in reached if stop in wanted] == wanted
    page.focus("#next")
    page.keyboard.press("Enter")
    assert page.locator("#page").text_content() == "Page 2 of 3"
    page.focus("#disagree")
    page.keyboard.press("Space")
    assert page.locator("#page").text_content() == "Page 1 of 2"
    page.focus("#search")
    page.keyboard.type("for 5 days")
    page.keyboard.press("Enter")
    assert page.locator("#found").text_content() == "1 of 20 prompts"
    assert page.locator(".pager").is_hidden()


def test_thumbs_have_words_for_those_who_cannot_see_them(visit, comparison):
    page = visit(comparison).page
    first = page.locator(".prompt").first
    assert first.locator(".tally").first.text_content() == "👍 thumbs up, 14 tokens"
    assert first.locator(".tally").last.text_content() == "👎 thumbs down, 48 tokens, cut off"
    assert page.locator("[role=img]:not([aria-label])").count() == 0
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_hostile_text_stays_text(visit, comparison, hostile_text):
    comparison |= {"title": hostile_text, "verdict": [hostile_text]}
    comparison["arms"]["kto"]["name"] = hostile_text
    comparison["arms"][hostile_text] = {"name": "x", "error": hostile_text}
    completions = [
        {
            "prompt": hostile_text,
            "arms": {"kto": [{"text": hostile_text * number, "label": True} for number in (1, 20)]},
        }
    ]
    page = visit(comparison, completions).page
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("h1").text_content() == hostile_text
    assert list_prompts(page) == [hostile_text]
    assert page.locator(".said").first.text_content() == hostile_text
    assert "<script>" in page.locator("#chart-up-rates").text_content()


def test_a_script_that_got_into_the_page_would_not_run(visit, comparison):
    open_visit = visit(comparison)
    open_visit.page.evaluate(
        """() => {
          const script = document.createElement('script');
          script.textContent = 'window.hacked = 3';
          document.body.append(script);
        }"""
    )
    assert open_visit.page.evaluate("window.hacked") is None
    assert len(open_visit.complaints) == 1
    assert "Content Security Policy" in open_visit.complaints.pop()


def test_a_long_answer_is_folded_and_a_page_without_scripts_still_tells_the_result(
    visit, browser, write_run, comparison
):
    completions = [{"prompt": "p", "arms": {"kto": [{"text": "word " * 400, "label": False}]}}]
    page = visit(comparison, completions).page
    assert page.locator(".sample .said").is_hidden()
    page.locator(".sample summary").click()
    assert page.locator(".sample .said").is_visible()

    context = browser.new_context(java_script_enabled=False)
    quiet = context.new_page()
    quiet.goto((write_run(comparison) / "report.html").as_uri())
    assert "KTO is better than the base" in quiet.locator(".verdict").inner_text()
    assert "need JavaScript" in quiet.locator("noscript").inner_text()
    context.close()
