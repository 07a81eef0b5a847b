"""What an operator sees: metrics, spans, log lines; and that no user's text is in any of them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from gateway.house import Served, wait_until
from thumbtune.gateway.telemetry import start_logging

SECRET = "my very secret question"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Every span that ends while the test runs."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def read_metrics(house: Served) -> dict[tuple[str, tuple], float]:
    text = house.http.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_answers_and_votes_are_counted_by_version_and_kind(serve_one: Callable[..., Served]) -> None:
    house = serve_one()
    answer = house.ask(SECRET)
    press = {"completion_id": answer["completion_id"], "vote_token": answer["vote_token"]}
    house.vote(**press, label=True, comment=SECRET)
    house.vote(**press, label=False)
    house.vote(**press, kind="copy")
    house.http.get(f"/v1/votes/{answer['completion_id']}/history")
    metrics = read_metrics(house)
    one = ("arm", "champion"), ("finish_reason", "stop"), ("version", "base-1")
    assert metrics["thumbtune_completions_total", one] == 1
    assert metrics["thumbtune_tokens_total", (("kind", "completion"), ("version", "base-1"))] == 6
    votes = {labels: value for (name, labels), value in metrics.items() if name == "thumbtune_votes_total"}
    assert votes == {
        (("kind", "explicit"), ("label", "up"), ("status", "recorded")): 1,
        (("kind", "explicit"), ("label", "down"), ("status", "changed")): 1,
        (("kind", "copy"), ("label", "up"), ("status", "recorded")): 1,
    }
    assert metrics["thumbtune_commit_rows_sum", ()] == 4
    routes = {dict(labels)["route"] for name, labels in metrics if name == "thumbtune_requests_total"}
    assert not any(answer["completion_id"] in route for route in routes), "an id would be a metric of its own"
    assert SECRET not in house.http.get("/metrics").text


def test_an_answer_is_a_span_by_the_genai_conventions(
    spans: InMemorySpanExporter, serve_one: Callable[..., Served]
) -> None:
    house = serve_one()
    house.ask(SECRET, temperature=0.5, max_tokens=7)
    list(house.chat(SECRET, stream=True).iter_lines())
    house.chat("fail fail", stream=True)
    plain, streamed, failed = wait_until(lambda: len(found := spans.get_finished_spans()) == 3 and found)
    assert plain.name == "chat champion"
    assert dict(plain.attributes) | {"gen_ai.response.id": ""} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "thumbtune",
        "gen_ai.request.model": "champion",
        "gen_ai.response.model": "base-1",
        "gen_ai.response.id": "",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.usage.input_tokens": len(SECRET),
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert streamed.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert failed.attributes["error.type"] == "Problem"
    assert all(SECRET not in span.to_json() for span in (plain, streamed, failed))


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Puts the root logger back as it was."""
    root = logging.getLogger()
    before: tuple[list[Any], int] = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = before


def test_log_lines_are_json_with_what_they_are_about(
    own_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    start_logging("info")
    ours = logging.getLogger("thumbtune.test")  # a gateway of the test before may still say its last line
    ours.info("request", extra={"route": "/v1/feedback", "status": 200, "ms": 1.5})
    ours.debug("too much")
    (line,) = [line for line in written.getvalue().splitlines() if "thumbtune.test" in line]
    entry = json.loads(line)
    assert entry.pop("at")
    assert entry == {
        "level": "INFO",
        "name": "thumbtune.test",
        "message": "request",
        "route": "/v1/feedback",
        "status": 200,
        "ms": 1.5,
    }
