"""A load generator for the gateway: many kept-open connections, an open or a closed loop, exact latencies.

Open loop: requests leave at their appointed times whatever the answers do, and a latency counts from the appointed
time, so that a stall is felt by all who would have come during it. Closed loop: each connection sends its next
request when the last was answered; it finds the most that the gateway takes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools
import numpy as np


@dataclass
class Load:
    """What came of it."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    acknowledged: list[int] = field(default_factory=list)
    """Numbers of the requests that were answered with 200."""
    sent: list[int] = field(default_factory=list)
    """Numbers of all requests that were sent, those included whose connection broke."""

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        return float(np.percentile(self.latencies, share) * 1e3)

    def describe(self) -> str:
        p = [self.percentile_ms(share) for share in (50, 99, 100)]
        return f"{self.per_second:,.0f}/s, p50 {p[0]:.2f} ms, p99 {p[1]:.2f} ms, worst {p[2]:.1f} ms, {self.statuses}"


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request under way at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())

    def on_message_complete(self) -> None:
        assert self._answer is not None
        if not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def send(self, request: bytes) -> asyncio.Future[int]:
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        return self._answer


def make_post(port: int, path: str, content: dict, headers: dict[str, str] | None = None) -> bytes:
    """A POST with a JSON body, as bytes."""
    body = json.dumps(content).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def run_load(
    port: int,
    make_request: Callable[[int], bytes],
    *,
    seconds: float,
    per_second: float | None = None,
    connections: int = 64,
    first_number: int = 0,
) -> Load:
    """Send requests for `seconds`: at a rate, or as fast as they are answered."""
    loop = asyncio.get_running_loop()
    load = Load()
    number = first_number
    start = time.perf_counter()

    async def connect() -> _Connection:
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        return connection

    async def ask(connection: _Connection, n: int, since: float) -> None:
        load.sent.append(n)
        status = await connection.send(make_request(n))
        load.latencies.append(time.perf_counter() - since)
        load.statuses[status] = load.statuses.get(status, 0) + 1
        if status == 200:
            load.acknowledged.append(n)

    async def work() -> None:
        nonlocal number
        connection = await connect()
        try:
            while time.perf_counter() - start < seconds:
                n, number = number, number + 1
                due = start + (n - first_number) / per_second if per_second else time.perf_counter()
                wait = due - time.perf_counter()
                if due - start > seconds:
                    return
                if wait > 0:
                    await asyncio.sleep(wait)
                await ask(connection, n, due)
        except ConnectionResetError:
            return
        finally:
            connection._transport.close()

    await asyncio.gather(*(work() for _ in range(connections)), return_exceptions=False)
    load.seconds = time.perf_counter() - start
    return load
