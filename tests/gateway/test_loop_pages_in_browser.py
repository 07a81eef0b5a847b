"""Canary and loop in a real browser: drawn as votes come, ended by hand, read by keyboard, in both languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import expect

from gateway.browsing import Visit, needs_browser
from gateway.conftest import Serve
from gateway.house import Served, wait_until
from gateway.scripted import ScriptedEngine
from gateway.trial import CALM, STEPS, crowd, try_version, turn
from thumbtune.store.canaries import end_canary, find_canary, find_running_canary
from thumbtune.store.keys import create_key, list_audit
from thumbtune.store.models import ModelVersion, find_pointer, point, register_version
from thumbtune.store.snapshots import write_snapshot

pytestmark = needs_browser

Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def house(serve_one: Serve) -> Served:
    """A gateway with its page, open to whoever sits at this machine."""
    return serve_one(ScriptedEngine(("base-1", "adapter-2", "adapter-3")), page=True)


@pytest.fixture(autouse=True)
def base_is_champion(house: Served) -> Iterator[None]:
    yield
    store = house.gateway.store
    running = find_running_canary(store)
    if running is not None:
        end_canary(store, running, "withdrawn", None, actor="test")
    point(store, "base-1", actor="test")
    wait_until(lambda: house.gateway.in_service.canary is None and house.gateway.champion.version == "base-1")


def texts(guest: Visit, selector: str) -> list[str]:
    return [text.strip() for text in guest.page.locator(selector).all_text_contents()]


def test_a_canary_is_drawn_and_widening_shows_up_without_a_reload(visit: Open, house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store, rules=replace(CALM, votes_per_stage=12))
    crowd(store, canary, "++-+.", "++-" * 5)
    guest = visit()
    guest.open_tab("Canary")
    guest.wait_for("#canary h2", "“adapter-2” beside “base-1”")
    guest.wait_for("#canary .why", "Nothing is shown yet: 👍 on 75% (n = 4) of its answers")
    guest.wait_for("#canary .tiles div", "25 % of users, 1 of 2")
    (candidate, champion) = guest.page.locator("#canary tbody tr").all()
    assert candidate.locator("th").inner_text().split() == ["Candidate", "adapter-2"]
    assert candidate.locator("td").all_inner_texts()[1:] == ["3", "1", "5", "25 % (expected 25 %)", "5", "0"]
    assert champion.locator("td").all_inner_texts()[1:] == [
        "10",
        "5",
        "15",
        "75 % (expected 75 %)",
        "15",
        "0",
    ]

    guest.page.locator("#evidence .scatterlayer .trace").first.wait_for()
    expect(guest.page.locator("#evidence .scatterlayer .trace")).to_have_count(2)
    assert texts(guest, "#evidence .legendtext") == [
        "Evidence that it is better",
        "Evidence that it is worse",
    ]
    assert texts(guest, "#evidence .annotation-text") == ["20 decides"]
    picture = guest.page.get_by_role("img", name="Evidence over the votes on the candidate's answers")
    assert picture.count() == 1
    assert texts(guest, "#outlook tbody th") == [
        "−20 points",
        "−10 points",
        "−5 points",
        "+5 points",
        "+10 points",
    ]
    assert re.search(r"\d{4}-\d\d-\d\d", guest.page.locator("#outlook .hint").inner_text())

    table = guest.page.get_by_role("button", name="The same as a table")
    assert table.get_attribute("aria-expanded") == "false"
    table.focus()
    guest.page.keyboard.press("Enter")
    guest.wait_for("#evidence-table thead", "Votes on the candidate's answers")
    assert texts(guest, "#evidence-table tbody th") == ["1", "2", "3", "4"]
    wait_until(lambda: table.get_attribute("aria-expanded") == "true")

    before = guest.page.evaluate(
        "performance.getEntriesByType('navigation').length + ' ' + performance.timeOrigin"
    )
    crowd(store, canary, "+-++-+++", "++-" * 8)
    guest.wait_for("#canary .tiles div", "50 % of users, 2 of 2")
    assert find_canary(store, canary.id).share == 0.5
    guest.wait_for("#evidence-table tbody th", "12")
    after = guest.page.evaluate(
        "performance.getEntriesByType('navigation').length + ' ' + performance.timeOrigin"
    )
    assert after == before


def test_a_canary_is_put_in_service_in_two_steps(visit: Open, house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store)
    crowd(store, canary, "++", "+-+" * 2)
    guest = visit()
    guest.open_tab("Canary")
    guest.page.click("#promote-now")
    question = guest.page.get_by_role("alert").filter(
        has_text="Promote “adapter-2” now, whatever its votes say?"
    )
    question.wait_for()
    guest.page.click("#keep-canary")
    guest.page.wait_for_selector("#end-question", state="hidden")
    assert find_canary(store, canary.id).state == "running"
    guest.page.locator("#promote-now").focus()
    guest.page.keyboard.press("Enter")
    guest.page.locator("#confirm-end").focus()
    guest.page.keyboard.press("Enter")
    guest.wait_for("#canary-outcome", "In service now: “adapter-2”")
    assert house.gateway.champion.version == "adapter-2"
    pointer = find_pointer(store)
    assert pointer is not None
    assert (pointer.version, pointer.previous) == ("adapter-2", "base-1")
    lines = [(line["act"], line["actor"]) for line in list_audit(store, 2)]
    assert lines == [("canary promoted", "loopback"), ("point", "loopback")]
    row = guest.page.locator("#past-canaries tbody tr").first
    assert row.locator("td").first.inner_text() == "promoted"
    assert "Ended by hand while the votes said wait" in row.inner_text()
    guest.wait_for("#canary", "No canary runs now")
    guest.page.wait_for_selector("#promote-now", state="hidden")
    expect(guest.page.locator("#evidence .scatterlayer .trace")).to_have_count(
        2
    )  # the last one is still drawn
    assert house.ask()["model_version"] == "adapter-2"


def test_a_canary_is_rolled_back_in_turkish(visit: Open, house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store, "adapter-3")
    crowd(store, canary, "+-", "+-+" * 2)
    guest = visit("/page/tr/")
    guest.open_tab("Kanarya")
    guest.wait_for("#canary .why", "Henüz bir şey söylenemiyor: 👍 oranı yanıtlarında %50 (n = 2)")
    guest.wait_for("#canary .tiles div", "kullanıcıların %25 kadarı, 1/2")
    assert guest.page.locator("#canary [lang=en]").count() == 0
    guest.page.locator("#evidence .scatterlayer .trace").first.wait_for()
    assert texts(guest, "#evidence .annotation-text") == ["karar: 20"]
    guest.page.click("#roll-back-now")
    guest.wait_for("#end-question", "“adapter-3” şimdi geri çekilsin mi?")
    guest.page.get_by_role("button", name="Evet, sonlandır").click()
    guest.wait_for("#canary-outcome", "Geri çekildi: “adapter-3”")
    assert find_canary(store, canary.id).state == "rolled_back"
    assert house.gateway.champion.version == "base-1"
    row = guest.page.locator("#past-canaries tbody tr").first.inner_text()
    assert "Elle sonlandırıldı; oylara göre o anki karar “bekliyor”: henüz bir şey söylenemiyor" in row
    guest.page.get_by_role("link", name="English").click()
    guest.open_tab("Canary")
    guest.wait_for("#canary .why", "Ended by hand while the votes said wait: nothing is shown yet")


def test_who_confirms_too_late_is_told_so_and_ends_no_other(visit: Open, house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store)
    guest = visit()
    guest.open_tab("Canary")
    guest.page.click("#promote-now")
    guest.page.wait_for_selector("#confirm-end")
    end_canary(store, canary, "withdrawn", None, actor="somebody else")
    other = try_version(store, "adapter-3")
    guest.page.get_by_role("button", name="Yes, end it").click()
    guest.wait_for(".toast-body", "This canary runs no longer.")
    assert find_canary(store, other.id).state == "running"
    assert house.gateway.champion.version == "base-1"
    guest.wait_for("#canary h2", "adapter-3")


def test_turns_of_the_loop_with_their_steps_and_the_gates_checks(visit: Open, house: Served) -> None:
    store = house.gateway.store
    turn(store, "votes", outcome="not enough new votes: 12 of 100")
    turn(store, *STEPS, outcome="canary of adapter-2 began")
    odd = {"odd_key": {"<b>": [1, 2]}, "nothing": None, "yes": True, "ends": "told above"}
    failed = turn(
        store,
        "votes",
        "<b>surprise</b>",
        outcome="TrainingError: <b>loss</b> is NaN",
        state="failed",
        **{"<b>surprise</b>": odd},
    )
    guest = visit()
    guest.open_tab("Loop")
    rows = guest.page.locator("#cycles tbody tr")
    rows.first.wait_for()
    assert [row.split("\t")[1] for row in rows.all_inner_texts()] == ["failed", "done", "done"]
    assert "TrainingError: <b>loss</b> is NaN" in rows.first.inner_text()
    assert "Not enough new votes: 12 of 100" in rows.last.inner_text()
    guest.wait_for("#cycle th", "<b>surprise</b>")
    told = guest.page.locator("#cycle tbody tr").last.inner_text()
    assert 'odd key: {"<b>": [1, 2]} · nothing: none · yes: yes' in told
    assert "told above" not in told

    guest.page.get_by_label("Turn").click()
    guest.page.get_by_role("option", name=f"Turn {failed.id - 1}").click()
    guest.wait_for("#cycle th", "held-out votes")
    steps, checks = guest.page.locator("#cycle table").all()
    assert steps.locator("tbody th").all_inner_texts() == [
        "votes",
        "snapshot",
        "training",
        "measurement",
        "gate",
        "canary",
    ]
    assert "rows: 180 · held out: 40 · digest: 5d5d5d5d5d5d" in steps.inner_text()
    assert "2.5 s" in steps.inner_text()
    assert checks.locator("tbody tr").count() == 2
    assert "It ranks 40 held-out votes with an AUC of 0.71" in checks.inner_text()

    turn(store, "votes")
    guest.wait_for("#cycles .mark", "running")
    guest.wait_for("#cycle h2", f"Turn {failed.id - 1}")  # who chose one stays with it
    guest.page.get_by_role("link", name="Türkçe").click()
    guest.open_tab("Döngü")
    guest.wait_for("#cycles td", "Yeni oy yetersiz: gereken 100, gelen 12")
    guest.wait_for("#cycles td", "Kanarya başladı: adapter-2")


def test_where_a_version_comes_from(visit: Open, house: Served, tmp_path: Any) -> None:
    store = house.gateway.store
    register_version(store, ModelVersion("first-1", "adapter", "x", parent="base-1", snapshot="5d" * 32))
    register_version(
        store, ModelVersion("second-<b>2</b>", "adapter", "x", parent="first-1", snapshot="6e" * 32)
    )
    manifest = {
        "n_up": 120,
        "n_held_out": 40,
        "outcomes": {"kept: training": 1_180, "taken back": 20, "new": 3},
    }
    write_snapshot(store, "5d" * 32, tmp_path, 1_180, manifest, [])
    guest = visit()
    guest.open_tab("Loop")
    guest.wait_for("#origin th", "base-1")
    guest.page.get_by_label("Model version").last.click()
    guest.page.get_by_role("option", name="second-<b>2</b>").click()
    guest.wait_for("#origin th", "second-<b>2</b>")
    assert texts(guest, "#origin tbody th") == ["second-<b>2</b>", "first-1", "base-1"]
    second, first, _ = guest.page.locator("#origin tbody tr").all_inner_texts()
    assert "not entered here" in second
    assert "1,180, 120 of them 👍" in first
    assert "1,203: learned from 1,180, taken back 20, new 3" in first
    assert "5d5d5d5d5d5d" in first


def test_a_voter_looks_and_a_client_does_not_even_see_the_tabs(visit: Open, serve_one: Serve) -> None:
    keyed = serve_one(page=True)
    try_version(keyed.gateway.store)
    keys = {role: create_key(keyed.gateway.store, role, role)[1] for role in ("client", "voter")}
    wait_until(lambda: keyed.http.get("/v1/models").status_code == 401)
    for role in ("client", "voter"):
        for size in ({"width": 1280, "height": 800}, {"width": 390, "height": 800}):
            guest = visit("/page", keyed.address, viewport=size)
            guest.page.fill("#key", keys[role])
            guest.page.keyboard.press("Enter")
            guest.page.get_by_role("tab", name="Votes").wait_for()
            if role == "client":
                guest.page.get_by_role("tab", name="Models").wait_for(state="hidden")
                assert guest.page.get_by_text("Canary", exact=True).locator("visible=true").count() == 0
                assert guest.page.get_by_text("Loop", exact=True).locator("visible=true").count() == 0
                continue
            guest.open_tab("Canary")
            guest.wait_for("#canary h2", "adapter-2")
            assert (
                guest.page.locator("#promote-now").count() == 0
                or guest.page.locator("#promote-now").is_hidden()
            )


def test_it_is_read_in_the_dark_and_on_a_telephone(visit: Open, house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store)
    crowd(store, canary, "++-+", "++-" * 5)
    colours = {}
    for scheme in ("light", "dark"):
        guest = visit("/page/tr/", color_scheme=scheme, viewport={"width": 390, "height": 844})
        guest.open_tab("Kanarya")
        text = guest.page.locator("#evidence .ytick text").first
        text.wait_for()
        colours[scheme] = text.evaluate("element => getComputedStyle(element).fill")
        for name in ("Kanarya", "Döngü", "Canlı", "Sohbet"):
            guest.open_tab(name)
            guest.page.wait_for_timeout(300)
            assert guest.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    light, dark = (sum(map(int, re.findall(r"\d+", colours[name])[:3])) for name in ("light", "dark"))
    assert light < 200
    assert dark > 500


def test_nobody_looks_once_another_tab_is_open(visit: Open, house: Served) -> None:
    guest = visit()
    guest.open_tab("Canary")
    guest.wait_for("#canary", "anary")
    guest.open_tab("Loop")
    guest.page.locator("#cycles").wait_for(state="attached")
    guest.open_tab("Chat")
    guest.page.wait_for_timeout(800)

    def looks() -> list[str]:
        return [url for url in guest.requests if "/assets/" not in url]  # of the page itself, some come late

    before = looks()
    guest.page.wait_for_timeout(6_000)
    assert looks() == before
