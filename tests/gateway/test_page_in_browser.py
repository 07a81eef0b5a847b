"""The page in a real browser: votes reach the store, texts stay texts, nobody else is asked, a keyboard is enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any

import pytest

from gateway.browsing import Visit, needs_browser
from gateway.conftest import Serve
from gateway.house import Served, wait_until
from thumbtune.gateway.page.plain_text import as_html, shield_text, unshield_text
from thumbtune.gateway.page.shield import PAGE_CSP, rewrite_document
from thumbtune.gateway.page.words import KINDS, LANGUAGES, REASONS, choose_language
from thumbtune.store.keys import create_key
from thumbtune.store.models import ModelVersion, register_version
from thumbtune.store.reading import list_history, list_votes

HOSTILE = (
    "<script>window.hacked = 1</script> <img src=http://outside.example/a.png onerror='window.hacked = 2'> "
    "![x](http://outside.example/b.png) &lt; $$x^2$$ <unknown> '; DROP TABLE votes; -- <b>bold</b>\n\n# two"
)


@pytest.fixture(scope="module")
def house(serve_one: Serve) -> Served:
    """A gateway with its page, open to whoever sits at this machine."""
    return serve_one(page=True)


def read_votes(house: Served, completion: str) -> list[dict[str, Any]]:
    """The votes that stand on answers that begin so, oldest first."""
    found = list_votes(house.gateway.store, limit=200)
    return [row for row in reversed(found) if row["completion"]["content"].startswith(completion)]


def fields_of(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name}


def test_both_languages_have_the_same_words_with_the_same_parts() -> None:
    english, turkish = LANGUAGES["en"], LANGUAGES["tr"]
    assert english.keys() == turkish.keys()
    assert all(turkish.values())
    for name in english:
        assert fields_of(english[name]) == fields_of(turkish[name]), name
    assert {*KINDS, *REASONS[True], *REASONS[False]} <= english.keys()


@pytest.mark.parametrize(
    ("cookie", "asked", "language"),
    [
        (None, "", "en"),
        (None, "tr-TR,tr;q=0.9,en;q=0.8", "tr"),
        (None, "de, en;q=0.5, tr;q=0.7", "tr"),
        (None, "de;q=x", "en"),
        ("tr", "en", "tr"),
        ("xx", "tr", "tr"),
    ],
)
def test_the_language_is_the_chosen_one_or_the_first_that_is_asked_for(
    cookie: str | None, asked: str, language: str
) -> None:
    assert choose_language(cookie, asked) == language


def test_a_shielded_text_opens_no_tag_and_comes_back_as_it_was() -> None:
    shielded = shield_text(HOSTILE)
    assert not re.search(r"<[a-zA-Z/!?]|&[a-zA-Z#]", shielded)
    assert unshield_text(shielded) == HOSTILE
    assert as_html("<a>&\n\n'x'") == "&lt;a&gt;&amp;<br><br>&#x27;x&#x27;"


def test_the_document_is_rewritten_once_and_wholly() -> None:
    page = '<html\n lang="en"><head><base href="./" /><link rel="manifest" href="/m">'
    page += '<meta name="twitter:a" content="b">'
    found = rewrite_document(page + "<script>1</script>", "tr", "n0")
    assert '<html lang="tr">' in found
    assert "manifest" not in found
    assert "twitter" not in found
    assert found.count("<script") == found.count('nonce="n0"') == 2


@needs_browser
def test_a_press_with_its_reason_and_comment_is_one_vote_in_store_and_table(
    visit: Callable[..., Visit], house: Served
) -> None:
    guest = visit()
    assert guest.page.url.endswith("/page/en/")
    assert guest.page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    guest.say("first question")
    assert guest.answers == ["You said: first question"]
    guest.press("Dislike")
    guest.wait_for("#status", "Vote saved")
    reasons = guest.page.locator("#reasons label").all_inner_texts()
    assert reasons == ["Wrong", "Incomplete", "Too long", "Off topic", "Unsafe", "Other"]
    guest.page.locator("#reasons label", has_text="Incomplete").click()
    guest.wait_for("#status", "Vote changed")
    guest.page.fill("#comment textarea", HOSTILE)
    guest.page.click("#save")
    (vote,) = wait_until(lambda: [v for v in read_votes(house, "You said: first") if v["comment"]])
    assert (vote["label"], vote["reason"], vote["comment"]) == (False, "incomplete", HOSTILE.strip())
    assert (vote["kind"], vote["model_version"]) == ("explicit", "base-1")

    guest.open_tab("Votes")
    row = guest.page.locator("#votes tbody tr", has_text="first question").first
    assert "<script>window.hacked = 1</script>" in row.inner_text()
    row.locator("a").focus()
    guest.page.keyboard.press("Enter")
    guest.wait_for("#details .said", "You said: first question")
    presses = guest.page.locator("#details tbody tr").all_inner_texts()
    assert len(presses) == 3
    assert "$$x^2$$ <unknown> '; DROP TABLE votes; -- <b>bold</b>\n\n# two" in presses[2]
    assert guest.page.locator("img[src*='outside'], #details b, #votes b").count() == 0
    assert guest.page.evaluate("window.hacked") is None


@needs_browser
def test_hostile_text_stays_text_in_chat_edit_and_correction(
    visit: Callable[..., Visit], house: Served
) -> None:
    guest = visit()
    guest.say(HOSTILE)
    assert guest.answers == [f"You said: {HOSTILE}"]
    assert guest.page.locator("#chat img, #chat .md :is(b, h1)").count() == 0
    guest.press("Edit")
    editor = guest.page.locator("#chat .edit-textarea")
    assert unshield_text(editor.input_value()) == f"You said: {HOSTILE}"
    editor.press("End")
    guest.page.keyboard.press("Control+End")
    guest.page.keyboard.type(" & <i>better</i>")
    guest.page.locator("#chat button[aria-label=Submit]").click()
    guest.wait_for("#status", "Your version is saved")
    corrected = f"You said: {HOSTILE} & <i>better</i>"
    assert guest.answers == [corrected]
    (vote,) = read_votes(house, f"You said: {HOSTILE[:20]}")
    assert (vote["kind"], vote["label"], vote["correction"]) == ("edit", False, corrected)
    guest.say("and then?")
    assert house.engine.bodies[-1]["messages"][1] == {"role": "assistant", "content": corrected}
    assert guest.page.evaluate("window.hacked") is None


@needs_browser
def test_a_retry_and_a_copy_are_implicit_votes_and_the_clipboard_is_clean(
    visit: Callable[..., Visit], house: Served
) -> None:
    guest = visit(permissions=["clipboard-read", "clipboard-write"])
    guest.say("again <b> please")
    guest.press("Copy message")
    (copied,) = wait_until(lambda: read_votes(house, "You said: again"))
    assert (copied["kind"], copied["label"], copied["strength"]) == ("copy", True, 0.5)
    assert guest.page.evaluate("navigator.clipboard.readText()") == "You said: again <b> please"
    guest.press("Retry")
    _, retried = wait_until(lambda: len(found := read_votes(house, "You said: again")) == 2 and found)
    assert (retried["kind"], retried["label"]) == ("retry", False)
    assert retried["completion_id"] == copied["completion_id"]
    wait_until(
        lambda: len([row for row in house.read_completions().values() if "again" in str(row.completion)]) == 2
    )
    wait_until(lambda: guest.answers == ["You said: again <b> please"])


@needs_browser
def test_thumbs_work_by_keyboard_and_a_second_press_takes_the_vote_back(
    visit: Callable[..., Visit], house: Served
) -> None:
    guest = visit()
    guest.say("by keyboard")
    for _ in range(20):
        guest.page.keyboard.press("Shift+Tab")
        if guest.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Like":
            break
    guest.page.keyboard.press("Enter")
    guest.wait_for("#status", "Vote saved")
    assert guest.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Liked"
    (vote,) = read_votes(house, "You said: by keyboard")
    assert vote["label"] is True
    guest.page.keyboard.press("Enter")
    guest.wait_for("#status", "Vote taken back")
    assert read_votes(house, "You said: by keyboard") == []
    assert [row["label"] for row in list_history(house.gateway.store, vote["completion_id"])] == [True, None]
    assert guest.page.locator("#why").count() == 0 or guest.page.locator("#why").is_hidden()


@needs_browser
def test_a_stopped_answer_keeps_its_words_and_troubles_are_told_in_words(
    visit: Callable[..., Visit], house: Served
) -> None:
    guest = visit()
    guest.page.fill("#message textarea", "wait " + "word " * 100)
    guest.page.keyboard.press("Enter")
    guest.wait_for("#chat .message.bot", "word word")
    early = house.engine.n_closed_early
    guest.page.click("#stop")
    guest.page.wait_for_selector("#send")
    wait_until(lambda: house.engine.n_closed_early == early + 1)
    assert 2 < len(guest.answers[-1].split()) < 80
    guest.press("Like")
    guest.wait_for("#status", "Vote saved")
    assert read_votes(house, "You said: wait")[-1]["finish_reason"] == "cancelled"

    guest.say("please fail now")
    assert (
        guest.answers[-1]
        == "You said: please\n\n⚠ The model's server broke off or did not answer: try again."
    )
    guest.press("Like")
    guest.wait_for(".toast-body", "was not stored")
    guest.page.click("#anew")
    guest.page.locator("#chat .message").first.wait_for(state="detached")


@needs_browser
def test_the_language_is_switched_by_a_link_and_remembered(visit: Callable[..., Visit]) -> None:
    guest = visit()
    guest.page.get_by_role("link", name="Türkçe").click()
    guest.page.get_by_role("tab", name="Sohbet").wait_for()
    assert guest.page.evaluate("document.documentElement.lang") == "tr"
    guest.say("merhaba ığüşöç İ")
    assert guest.answers == ["You said: merhaba ığüşöç İ"]
    guest.press("Beğenme")
    guest.wait_for("#status", "Oyunuz kaydedildi")
    assert guest.page.locator("#reasons label").first.inner_text() == "Yanlış"
    guest.page.goto(f"{guest.address}/page")
    guest.page.get_by_role("tab", name="Oylar").wait_for()
    assert guest.page.url.endswith("/page/tr/")


@needs_browser
def test_filters_and_pages_of_the_votes(visit: Callable[..., Visit], house: Served) -> None:
    for number in range(30):
        asked = house.ask(f"bulk {number}", model="adapter-2")
        house.vote(completion_id=asked["completion_id"], label=number % 3 == 0, comment=f"note {number}")
    guest = visit()
    guest.open_tab("Votes")
    guest.wait_for("#count", "25 votes, page 1")
    guest.page.get_by_role("button", name="Older").click()
    guest.wait_for("#count", "page 2")
    guest.page.get_by_role("button", name="Newer").click()
    guest.wait_for("#count", "page 1")
    guest.page.get_by_label("Thumb").click()
    guest.page.get_by_role("option", name="👍").click()
    guest.page.get_by_label("Model version").click()
    guest.page.get_by_role("option", name="adapter-2").click()
    guest.wait_for("#count", "10 votes, page 1")
    guest.page.get_by_label("Comment or correction has").fill("note 27")
    guest.page.keyboard.press("Enter")
    guest.wait_for("#count", "1 votes, page 1")
    assert "bulk 27" in guest.page.locator("#votes tbody").inner_text()
    guest.page.get_by_label("Comment or correction has").fill("%")
    guest.page.keyboard.press("Enter")
    guest.wait_for("#count", "No votes match")


@needs_browser
def test_a_model_is_put_in_service_and_taken_back_in_two_steps(
    visit: Callable[..., Visit], house: Served
) -> None:
    child = ModelVersion(
        "child-<b>3</b>", "adapter", "scripted", parent="base-1", snapshot="0123456789abcdef"
    )
    register_version(house.gateway.store, child)
    guest = visit()
    guest.open_tab("Models")
    guest.wait_for("#versions th", "child-<b>3</b>")
    assert guest.page.locator(".lineage li li").inner_text() == "child-<b>3</b>"
    assert "0123456789ab" in guest.page.locator("#versions").inner_text()
    guest.page.get_by_label("Loaded version").click()
    guest.page.get_by_role("option", name="adapter-2").click()
    guest.page.click("#promote")
    guest.page.click("#no")
    guest.page.wait_for_selector("#yes", state="hidden")
    assert house.gateway.champion.version == "base-1"
    guest.page.click("#promote")
    guest.wait_for("#confirm", "Put “adapter-2” in service?")
    guest.page.click("#yes")
    guest.wait_for("#outcome", "In service now: “adapter-2”")
    assert house.gateway.champion.version == "adapter-2"
    guest.page.click("#back")
    guest.page.click("#yes")
    guest.wait_for("#outcome", "In service now: “base-1”")
    assert house.gateway.champion.version == "base-1"
    assert (
        guest.page.locator("#versions tr", has_text="in service").locator("th").inner_text()
        == "base-1 in service"
    )


@needs_browser
def test_the_live_numbers_are_refreshed_while_somebody_looks(
    visit: Callable[..., Visit], house: Served
) -> None:
    guest = visit()
    guest.open_tab("Live")
    tile = guest.page.locator(".tiles > div", has_text="Answers since the start").locator("dd")
    before = int(tile.inner_text())
    house.ask("one more")
    wait_until(lambda: int(tile.inner_text()) == before + 1 or guest.page.wait_for_timeout(100), seconds=10)
    guest.open_tab("Chat")
    guest.page.wait_for_timeout(500)
    asked = len(guest.requests)
    guest.page.wait_for_timeout(2_500)
    assert len(guest.requests) == asked


@needs_browser
def test_a_script_that_got_into_the_page_would_not_run(visit: Callable[..., Visit]) -> None:
    guest = visit()
    guest.page.evaluate(
        """() => {
          const script = document.createElement('script');
          script.textContent = 'window.hacked = 3';
          document.body.append(script);
          const box = document.createElement('div');
          box.innerHTML = '<img src="data:," onerror="window.hacked = 4">';
          document.body.append(box);
        }"""
    )
    guest.page.wait_for_timeout(200)
    assert guest.page.evaluate("window.hacked") is None
    assert len(guest.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in guest.complaints)
    guest.complaints.clear()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "gradio_api/upload"),
        ("GET", "gradio_api/file=/etc/hostname"),
        ("GET", "gradio_api/proxy=http://outside.example/"),
        ("GET", "gradio_api/info"),
        ("GET", "gradio_api/openapi.json"),
        ("POST", "gradio_api/run/predict"),
        ("POST", "gradio_api/call/predict"),
        ("GET", "monitoring"),
        ("GET", "gradio_api/vibe-code/"),
        ("POST", "login"),
    ],
)
def test_what_the_page_does_not_need_of_gradio_is_not_there(house: Served, method: str, path: str) -> None:
    assert house.http.request(method, f"/page/en/{path}").status_code == 404


def test_the_document_carries_both_policies_and_none_may_be_framed_or_evaluate(house: Served) -> None:
    answer = house.http.get("/page/tr/")
    policies = answer.headers.get_list("content-security-policy")
    assert PAGE_CSP in policies
    assert any(re.fullmatch(r"script-src 'self' 'nonce-[\w-]{22}'", policy) for policy in policies)
    assert "unsafe-eval" not in "".join(policies)
    assert "frame-ancestors 'none'" in PAGE_CSP
    assert answer.headers["cache-control"] == "no-store"


@needs_browser
def test_a_client_signs_in_and_sees_its_own_votes_only(visit: Callable[..., Visit], serve_one: Serve) -> None:
    keyed = serve_one(page=True)
    other, secret = (create_key(keyed.gateway.store, name, "client")[1] for name in ("other", "guest"))
    wait_until(lambda: keyed.http.get("/v1/models").status_code == 401)
    asked = keyed.ask("a stranger's question", other)
    keyed.vote(other, completion_id=asked["completion_id"], label=False)
    assert keyed.http.get("/page/en/").status_code == 303
    assert keyed.http.get("/page/en/config").status_code == 401
    guest = visit("/page", keyed.address)
    guest.page.fill("#key", secret)
    guest.page.keyboard.press("Enter")
    guest.page.wait_for_selector("#message textarea")
    guest.page.get_by_role("tab", name="Models").wait_for(state="hidden")
    guest.say("my own question")
    guest.press("Like")
    guest.wait_for("#status", "Vote saved")
    guest.open_tab("Votes")
    guest.wait_for("#count", "1 votes, page 1 · You see your own votes.")
    assert "stranger" not in guest.page.locator("#votes").inner_text()
    guest.page.get_by_role("link", name="Sign out").click()
    guest.page.wait_for_selector("#key")
    assert guest.page.url.endswith("/sign-in")
