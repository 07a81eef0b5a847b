"""What an operator sees: Prometheus metrics, structured logs, and spans where OpenTelemetry is installed.

No user's text is in any of them: names are ids, keys and counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from thumbtune.records import Vote

if TYPE_CHECKING:
    from thumbtune.gateway.serving import Serving

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Telemetry:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._make(Counter, "requests_total", "HTTP requests.", ["route", "status"])
        self.seconds = self._make(
            Histogram, "request_seconds", "Time to the first byte.", ["route"], buckets=SECONDS
        )
        self.answers = self._make(
            Counter, "completions_total", "Completions.", ["version", "arm", "finish_reason"]
        )
        self.tokens = self._make(Counter, "tokens_total", "Tokens.", ["version", "kind"])
        self.votes = self._make(Counter, "votes_total", "Presses that arrived.", ["kind", "label", "status"])
        self.commits = self._make(Histogram, "commit_seconds", "Time of a commit.", [], buckets=SECONDS)
        self.commit_rows = self._make(
            Histogram,
            "commit_rows",
            "Rows of a commit.",
            [],
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000),
        )
        self.waiting = self._make(Gauge, "writes_waiting", "Writes that wait for the disk.", [])
        self._counts = {"completions": 0, "votes_up": 0, "votes_down": 0}
        self._tracer = _find_tracer()

    def _make(self, kind: Any, name: str, text: str, labels: list[str], **more: Any) -> Any:
        return kind(f"thumbtune_{name}", text, labels, registry=self.registry, **more)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def observe_commit(self, rows: int, seconds: float) -> None:
        self.commits.observe(seconds)
        self.commit_rows.observe(rows)

    def observe_answer(self, serving: Serving) -> None:
        for choice in serving.choices:
            self.answers.labels(serving.version, serving.arm, choice.finish_reason or "error").inc()
            self._counts["completions"] += 1
        for kind in ("prompt", "completion"):
            self.tokens.labels(serving.version, kind).inc(serving.usage.get(f"{kind}_tokens") or 0)

    def observe_vote(self, vote: Vote, status: str) -> None:
        label = {True: "up", False: "down", None: "retracted"}[vote.label]
        self.votes.labels(vote.kind, label, status).inc()
        if status == "recorded" and vote.kind == "explicit":
            self._counts["votes_up" if vote.label else "votes_down"] += 1

    def describe(self) -> dict[str, int]:
        """Counts since the start, for the page."""
        return dict(self._counts)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    @contextmanager
    def span(self, serving: Serving) -> Iterator[None]:
        """An OpenTelemetry GenAI span around the model's work; nothing where OpenTelemetry is not installed."""
        if self._tracer is None:
            yield
            return
        request = serving.request
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "thumbtune",
            "gen_ai.request.model": request.model,
            "gen_ai.response.model": serving.version,
            "gen_ai.response.id": serving.choices[0].completion_id,
            "gen_ai.request.choice.count": request.n,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p,
            "gen_ai.request.max_tokens": request.max_completion_tokens or request.max_tokens,
        }
        span = self._tracer.start_span(
            f"chat {request.model}",
            attributes={name: value for name, value in attributes.items() if value is not None},
        )
        try:
            yield
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            for kind, name in (("prompt", "input"), ("completion", "output")):
                if serving.usage.get(f"{kind}_tokens") is not None:
                    span.set_attribute(f"gen_ai.usage.{name}_tokens", serving.usage[f"{kind}_tokens"])
            reasons = [choice.finish_reason for choice in serving.choices if choice.finish_reason]
            span.set_attribute("gen_ai.response.finish_reasons", reasons)
            span.end()


def start_logging(level: str) -> None:
    """One JSON object a line on standard error."""
    from pythonjsonlogger.json import JsonFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "asctime": "at"},
        )
    )
    handler.formatter.converter = time.gmtime  # type: ignore[union-attr]
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "alembic"):
        logging.getLogger(noisy).setLevel("WARNING")


def _find_tracer() -> Any:
    if find_spec("opentelemetry") is None:
        return None
    from opentelemetry import trace

    return trace.get_tracer("thumbtune.gateway")
