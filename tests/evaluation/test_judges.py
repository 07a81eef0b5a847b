"""Who judges: a checker of one's own, and a second model behind a real HTTP endpoint, asked in both orders."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from thumbtune.errors import ConfigError
from thumbtune.evaluation.generate import Sampled
from thumbtune.evaluation.judges import load_checker, open_endpoint


def said(*texts: str) -> list[list[Sampled]]:
    return [[Sampled(text, tuple(range(len(text))), 1, -1.0)] for text in texts]


class Endpoint(BaseHTTPRequestHandler):
    """Prefers the shorter answer; the answer "tie" makes it say A whatever the order."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012 - one server a test
    answers_with: str | None = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "key": self.headers.get("Authorization"), "path": self.path})
        question = body["messages"][0]["content"]
        a = question.split("Answer A:\n")[1].split("\n\nAnswer B:")[0]
        b = question.split("Answer B:\n")[1].split("\n\nSay one")[0]
        better = "A" if "tie" in (a, b) or len(a) < len(b) else "B"
        answer = json.dumps(
            {"choices": [{"message": {"content": self.answers_with or f"{better}."}}]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, type[Endpoint]]]:
    handler = type("Handler", (Endpoint,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()
    server.server_close()


def test_a_model_is_asked_in_both_orders_and_a_liking_for_a_place_is_a_half(endpoint: Any) -> None:
    url, handler = endpoint
    judge = open_endpoint(url, "a-judge", api_key="secret")
    outcomes = judge.judge(
        ["Q1?", "Q2?", "Q3?", "Q4?"],
        said("short", "a long answer", "tie", "same"),
        said("a long one", "short", "another", "same"),
    )
    assert outcomes == [[1.0], [0.0], [0.5], [0.5]]
    assert judge.is_relative
    assert len(handler.asked) == 6  # equal texts are not asked about
    assert {row["path"] for row in handler.asked} == {"/v1/chat/completions"}
    assert {row["key"] for row in handler.asked} == {"Bearer secret"}
    assert handler.asked[0]["temperature"] == 0
    assert handler.asked[0]["model"] == "a-judge"


def test_no_question_is_paid_for_twice_even_after_an_answer_was_cut_short(
    endpoint: Any, tmp_path: Path
) -> None:
    url, handler = endpoint
    kept = tmp_path / "run" / "judgements.jsonl"
    for _ in range(2):
        open_endpoint(url, "a-judge", kept=kept).judge(["Q?"], said("short"), said("a long one"))
    assert len(handler.asked) == 2
    kept.write_text(kept.read_text() + '{"question": "ab')
    for _ in range(2):
        judge = open_endpoint(url, "a-judge", kept=kept)
        judge.judge(["Q?", "Another?"], said("short", "one"), said("a long one", "another"))
    assert len(handler.asked) == 4
    assert "short" not in kept.read_text()


def test_an_answer_that_is_neither_is_not_judged_and_an_endpoint_that_is_not_there_is_named(
    endpoint: Any,
) -> None:
    url, handler = endpoint
    handler.answers_with = "I like both"
    assert open_endpoint(url, "a-judge").judge(["Q?"], said("x"), said("yy")) == [[None]]
    with pytest.raises(ConfigError, match=r"the judge at http://127.0.0.1:9/v1 gave no answer"):
        open_endpoint("http://127.0.0.1:9/v1", "a-judge").judge(["Q?"], said("x"), said("yy"))


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [("Answer: A", 0.5), ("**B**", 0.5), ("b.", 0.5), ("As an AI", None), ("Both", None), ("", None)],
)
def test_answers_are_read_whole(endpoint: Any, answer: str, outcome: float | None) -> None:
    """A judge that always says the same letter cannot tell; one that says neither judged nothing."""
    url, handler = endpoint
    handler.answers_with = answer or " "
    assert open_endpoint(url, "a-judge").judge(["Q?"], said("x"), said("yy")) == [[outcome]]


def test_a_key_does_not_travel_unencrypted() -> None:
    with pytest.raises(ConfigError, match="would travel unencrypted"):
        open_endpoint("http://judge.example/v1", "a-judge", api_key="secret")


def test_a_checker_is_a_function_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my_checks.py"
    path.write_text(
        "def check(prompt, completion):\n    return prompt.startswith('Q') and 'yes' in completion\n\n"
        "def breaks(prompt, completion):\n    return 1 / 0\n"
    )
    judge = load_checker(str(path))
    prompt = [{"role": "system", "content": "x"}, {"role": "user", "content": "Q1?"}]
    assert judge.judge([prompt, "Q2?"], said("yes", "no"), said("", "")) == [[1.0], [0.0]]
    assert judge.description == "checker my_checks.py:check"
    assert load_checker(f"{path}:breaks").judge(["Q?"], said("yes"), said("")) == [[None]]
    with pytest.raises(ConfigError, match="is no Python file"):
        load_checker(str(tmp_path / "nowhere.py"))
    with pytest.raises(ConfigError, match="has no attribute 'absent'"):
        load_checker(f"{path}:absent")
