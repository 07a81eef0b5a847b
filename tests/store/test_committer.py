"""Group commit: acknowledged means on disk, once, whatever happens."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from store.conftest import make_completion, make_vote
from thumbtune.errors import StoreError
from thumbtune.store.committer import Committer, CommitterFullError
from thumbtune.store.database import Store
from thumbtune.store.reading import list_votes
from thumbtune.store.schema import votes
from thumbtune.store.votes import Press

WRITER = Path(__file__).parent / "vote_without_end.py"


def test_many_requests_share_a_commit_and_each_hears_of_its_own(store: Store) -> None:
    commits: list[int] = []
    committer = Committer(store, on_commit=lambda rows, seconds: commits.append(rows))

    async def run() -> list:
        await asyncio.gather(*(committer.add_completion(make_completion(f"c{i}")) for i in range(50)))
        wanted = [make_vote(f"c{i}", i % 2 == 0) for i in range(50)] + [make_vote("nowhere")]
        return await asyncio.gather(*(committer.add_vote(Press(vote)) for vote in wanted))

    statuses = asyncio.run(run())
    committer.close()
    assert Counter(statuses) == {"recorded": 50, "unknown_completion": 1}
    assert sum(commits) == 101
    assert len(commits) < 40, "a hundred requests at once are a handful of commits"


def test_what_is_acknowledged_is_there_for_everybody(store: Store, store_url: str) -> None:
    other = Store(store_url)
    committer = Committer(store)

    async def run() -> None:
        await committer.add_completion(make_completion("a"))
        assert await committer.add_vote(Press(make_vote("a"))) == "recorded"
        assert len(list_votes(other)) == 1

    asyncio.run(run())
    committer.close()
    other.close()


def test_a_vote_may_stand_in_one_batch_with_its_completion(store: Store) -> None:
    committer = Committer(store)

    async def run() -> str:
        waiting = asyncio.gather(
            *(committer.add_completion(make_completion(f"x{i}")) for i in range(20)),
            committer.add_completion(make_completion("a")),
        )
        status = committer.add_vote(Press(make_vote("a")))
        await waiting
        return await status

    assert asyncio.run(run()) == "recorded"
    committer.close()


def test_a_client_that_left_does_not_stop_its_vote(store: Store) -> None:
    committer = Committer(store)

    async def run() -> None:
        await committer.add_completion(make_completion("a"))
        leaving = asyncio.ensure_future(committer.add_vote(Press(make_vote("a"))))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

    asyncio.run(run())
    committer.close()
    assert len(list_votes(store)) == 1


def test_trouble_with_the_store_reaches_each_request_and_passes(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "votes.db"))
    committer = Committer(store)

    async def run() -> None:
        await committer.add_completion(make_completion("a"))
        with store.engine.connect() as connection:
            connection.exec_driver_sql("ALTER TABLE votes RENAME TO hidden")
            connection.commit()
        results = await asyncio.gather(
            *(committer.add_vote(Press(make_vote("a"))) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, StoreError) for result in results), results
        with store.engine.connect() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO votes")
            connection.commit()
        assert await committer.add_vote(Press(make_vote("a"))) == "recorded"

    asyncio.run(run())
    committer.close()


def test_more_than_may_wait_is_refused_and_a_closed_one_takes_nothing(store: Store) -> None:
    committer = Committer(store, max_waiting=0)

    async def ask() -> None:
        await committer.add_completion(make_completion("a"))

    with pytest.raises(CommitterFullError, match="try again"):
        asyncio.run(ask())
    committer.close()
    with pytest.raises(StoreError, match="closing"):
        asyncio.run(ask())


def test_closing_writes_what_is_waiting(store: Store) -> None:
    committer = Committer(store)

    async def run() -> None:
        await committer.add_completion(make_completion("a"))
        waiting = [
            asyncio.ensure_future(committer.add_vote(Press(make_vote("a", user_key=f"u{i}"))))
            for i in range(200)
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(committer.close)
        assert set(await asyncio.gather(*waiting)) == {"recorded"}

    asyncio.run(run())
    assert len(list_votes(store, limit=500)) == 200


def test_two_writers_with_one_idempotency_key_make_one_vote(store: Store, store_url: str) -> None:
    committers = [Committer(store), Committer(Store(store_url))]

    async def run() -> Counter:
        await committers[0].add_completion(make_completion("a"))
        asked = [
            committers[i % 2].add_vote(
                Press(make_vote("a", idempotency_key=f"k{i // 2}", user_key=f"u{i // 2}"))
            )
            for i in range(60)
        ]
        return Counter(await asyncio.gather(*asked))

    assert asyncio.run(run()) == {"recorded": 30, "repeated": 30}
    for committer in committers:
        committer.close()
    committers[1].store.close()


def test_no_acknowledged_vote_is_lost_or_doubled_when_the_writer_is_killed(
    store: Store, store_url: str
) -> None:
    """Five kills at random moments; `benchmarks/votes.py` does fifty, over HTTP."""
    acknowledged: set[str] = set()
    pick = random.Random(0)
    for round_ in range(5):
        process = subprocess.Popen(
            [sys.executable, WRITER, store_url, str(round_)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(pick.uniform(0.02, 0.3))
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                acknowledged.update(json.loads(line))
        process.stdout.close()
        process.wait()
    assert len(acknowledged) > 200
    with store.read() as connection:
        stored = Counter(connection.scalars(select(votes.c.idempotency_key)))
    assert acknowledged <= stored.keys()
    assert set(stored.values()) == {1}


def test_a_row_that_cannot_be_stored_fails_alone(store: Store) -> None:
    committer = Committer(store)

    async def run() -> list:
        await committer.add_completion(make_completion("a"))
        bad = make_completion("b", n_prompt_tokens=2**63)
        asked = [
            committer.add_completion(bad),
            *(committer.add_vote(Press(make_vote("a", user_key=u))) for u in "xyz"),
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    failure, *statuses = asyncio.run(run())
    committer.close()
    assert isinstance(failure, Exception)
    assert statuses == ["recorded"] * 3
