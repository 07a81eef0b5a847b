"""What the gateway bears, on loopback, load generator included: votes, kills, the proxy's own time, streams.

    python benchmarks/gateway.py votes            # SQLite: sustained votes/s, latency at 500/s
    python benchmarks/gateway.py votes --postgres
    python benchmarks/gateway.py kills            # 50 kill -9 under load: nothing lost, nothing doubled
    python benchmarks/gateway.py proxy            # overhead over the same stub upstream asked directly
    python benchmarks/gateway.py streams          # 200 at once, and a client that does not read

A gateway started by `thumbtune serve` in a process of its own, a stub upstream in another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(Path(__file__).parent), str(TESTS)]

from load import Load, make_post, run_load  # noqa: E402
from sqlalchemy import select  # noqa: E402

from thumbtune.gateway.identity import Tokens  # noqa: E402
from thumbtune.records import Completion  # noqa: E402
from thumbtune.store.database import Store, now_us  # noqa: E402
from thumbtune.store.schema import votes  # noqa: E402
from thumbtune.store.secrets import open_secrets  # noqa: E402
from thumbtune.store.votes import write_completions  # noqa: E402

N_COMPLETIONS = 100_000
N_USERS = 2_000
NO_LIMIT = "1000000000/minute"


@contextlib.contextmanager
def run_stub() -> Iterator[int]:
    """A stub upstream in a process of its own; gives its port."""
    port = _free_port()
    process = subprocess.Popen([sys.executable, str(TESTS / "gateway" / "stub_upstream.py"), str(port)])
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def start_gateway(store: str, folder: Path, upstream: int) -> tuple[subprocess.Popen, int]:
    """`thumbtune serve` in a process of its own, without rate limits."""
    port = _free_port()
    environment = dict(
        os.environ, THUMBTUNE_LOG_LEVEL="warning", THUMBTUNE_SECRETS=str(folder / "secrets.json")
    )
    for scope in ("USER", "KEY"):
        for kind in ("REQUESTS", "TOKENS", "VOTES"):
            environment[f"THUMBTUNE_{scope}_{kind}"] = NO_LIMIT
    command = [str(Path(sys.executable).with_name("thumbtune")), "serve", "--no-page"]
    command += ["--upstream", f"http://127.0.0.1:{upstream}/v1", "--store", store, "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    _wait_for(port)
    return process, port


class Ballots:
    """Completions in the store, and a signed vote for each."""

    def __init__(self, url: str, folder: Path, n: int) -> None:
        self.tokens = Tokens(open_secrets(folder / "secrets.json"), "vote", 86_400)
        self.run = f"{time.time_ns():x}"
        self.n = n
        store = Store(url)
        message = [{"role": "user", "content": "How do I reset my password? " * 4}]
        answer = {"role": "assistant", "content": "Open the settings, choose Security, and press Reset. " * 4}
        for start in range(0, n, 5_000):
            with store.write() as connection:
                rows = [
                    Completion(
                        self.name(i),
                        self.user(i),
                        f"c{i}",
                        message,
                        answer,
                        "stop",
                        "base",
                        "champion",
                        now_us(),
                    )
                    for i in range(start, min(n, start + 5_000))
                ]
                write_completions(connection, rows)
        store.close()
        self._signed = [self.tokens.sign(self.name(i), self.user(i)) for i in range(n)]

    def name(self, i: int) -> str:
        return f"{self.run}-{i}"

    def user(self, i: int) -> str:
        return f"user{i % N_USERS}"

    def request(self, port: int, number: int) -> bytes:
        i = number % self.n
        content = {
            "completion_id": self.name(i),
            "vote_token": self._signed[i],
            "label": number % 3 != 0,
            "idempotency_key": f"{self.run}-{number}",
        }
        return make_post(port, "/v1/feedback", content)


def measure_votes(url: str, folder: Path, upstream: int, seconds: float) -> None:
    ballots = Ballots(url, folder, N_COMPLETIONS)
    process, port = start_gateway(url, folder, upstream)
    try:
        number = 0
        for name, rate in (
            ("warm-up", None),
            ("as many as it takes", None),
            ("at 500/s", 500.0),
            ("at 1,500/s", 1500.0),
        ):
            load = asyncio.run(
                run_load(
                    port,
                    lambda n: ballots.request(port, n),
                    seconds=3 if name == "warm-up" else seconds,
                    per_second=rate,
                    first_number=number,
                )
            )
            number += len(load.latencies) + 1_000
            print(f"votes, {name}: {load.describe()}", flush=True)
    finally:
        process.terminate()
        process.wait()
    store = Store(url)
    with store.read() as connection:
        print("votes in the store:", len(connection.execute(select(votes.c.id)).all()), flush=True)


def measure_kills(url: str, folder: Path, upstream: int, n_kills: int) -> None:
    """Kill -9 at random moments under load, then send again what was not answered, as a client would.

    Each request is a vote on a completion of its own: every acknowledged one must be there, and none twice.
    """
    ballots = Ballots(url, folder, 80_000)
    pick = random.Random(0)
    acknowledged: set[int] = set()
    unanswered: set[int] = set()
    n_sent_again = first = 0
    for round_ in range(n_kills + 1):
        process, port = start_gateway(url, folder, upstream)
        for number in sorted(unanswered):
            assert asyncio.run(run_one(port, ballots.request(port, number))) == 200
            acknowledged.add(number)
        n_sent_again += len(unanswered)
        if round_ == n_kills:
            process.terminate()
            process.wait()
            break

        async def strike(process: subprocess.Popen = process, port: int = port, first: int = first) -> Load:
            work = asyncio.create_task(
                run_load(
                    port, lambda n: ballots.request(port, n), seconds=30, connections=32, first_number=first
                )
            )
            await asyncio.sleep(pick.uniform(0.05, 0.8))
            process.send_signal(signal.SIGKILL)
            return await work

        load = asyncio.run(strike())
        process.wait()
        acknowledged.update(load.acknowledged)
        unanswered = set(load.sent) - set(load.acknowledged)
        first = max(load.sent, default=first) + 1
    assert first < ballots.n, "more votes than completions: a change would look like a double"
    store = Store(url)
    with store.read() as connection:
        stored = Counter(connection.scalars(select(votes.c.completion_id)))
    lost = {ballots.name(n) for n in acknowledged} - stored.keys()
    doubled = [name for name, n in stored.items() if n > 1]
    print(
        f"kills: {n_kills}; acknowledged {len(acknowledged):,}, of these {n_sent_again:,} sent again after a kill; "
        f"stored {len(stored):,}; lost {len(lost)}, doubled {len(doubled)}"
    )
    assert not lost
    assert not doubled


async def run_one(port: int, request: bytes) -> int:
    """The status of one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


def measure_proxy(url: str, folder: Path, upstream: int, seconds: float) -> None:
    """The same chats at 100/s, straight to the stub and through the gateway."""
    process, port = start_gateway(url, folder, upstream)
    content = {
        "model": "champion",
        "messages": [{"role": "user", "content": "How do I reset my password? " * 8}],
    }
    direct_content = content | {"model": "big-model"}
    try:
        for name, target, body in (("stub", upstream, direct_content), ("gateway", port, content)) * 3:
            load = asyncio.run(
                run_load(
                    target,
                    lambda n, target=target, body=body: make_post(target, "/v1/chat/completions", body),  # type: ignore[misc]
                    seconds=seconds,
                    per_second=100.0,
                    connections=32,
                )
            )
            print(f"chats at 100/s, {name}: {load.describe()}", flush=True)
    finally:
        process.terminate()
        process.wait()


def measure_streams(url: str, folder: Path, upstream: int, n: int) -> None:
    """Many streams at once beside clients that stop reading."""
    process, port = start_gateway(url, folder, upstream)
    content = {
        "model": "champion",
        "stream": True,
        "messages": [{"role": "user", "content": "stream slowly please"}],
    }
    request = make_post(port, "/v1/chat/completions", content)

    async def read(lazy: bool) -> tuple[bool, float]:
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(request)
        if lazy:
            await asyncio.sleep(8)
        text = b""
        while b"[DONE]" not in text:
            piece = await reader.read(65536)
            if not piece:
                break
            text += piece
        writer.close()
        whole = b"[DONE]" in text and len(re.findall(rb'"vote_token"', text)) >= 1
        return whole, time.perf_counter() - start

    async def run() -> list[tuple[bool, float]]:
        lazy = [asyncio.create_task(read(True)) for _ in range(5)]
        results = await asyncio.gather(*(read(False) for _ in range(n)))
        for task in lazy:
            task.cancel()
        return results

    try:
        for _ in range(2):
            results = asyncio.run(run())
            times = sorted(seconds for _, seconds in results)
            whole = sum(ok for ok, _ in results)
            print(
                f"{n} streams at once beside 5 that do not read: {whole} whole, "
                f"median {times[len(times) // 2]:.2f} s, slowest {times[-1]:.2f} s",
                flush=True,
            )
            assert whole == n
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(port: int) -> None:
    import httpx

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code < 500:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("votes", "kills", "proxy", "streams", "all"))
    parser.add_argument(
        "--postgres", action="store_true", help="On a PostgreSQL server that is started for it."
    )
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="Where the SQLite file lies; a real disk, not tmpfs.")
    options = parser.parse_args()
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        url = str(folder / "votes.db")
        if options.postgres:
            from postgres import run_postgres

            url = stack.enter_context(run_postgres()) + "/postgres"
        upstream = stack.enter_context(run_stub())
        if options.what in ("votes", "all"):
            measure_votes(url, folder, upstream, options.seconds)
        if options.what in ("kills", "all"):
            measure_kills(url, folder, upstream, options.kills)
        if options.what in ("proxy", "all"):
            measure_proxy(url, folder, upstream, options.seconds)
        if options.what in ("streams", "all"):
            measure_streams(url, folder, upstream, options.streams)


if __name__ == "__main__":
    main()
