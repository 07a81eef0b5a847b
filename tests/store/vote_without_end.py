"""Casts votes until it is killed, twice each, and prints what was acknowledged. Run by test_committer."""

from __future__ import annotations

import asyncio
import json
import sys

from thumbtune.records import Completion, Vote
from thumbtune.store.committer import Committer
from thumbtune.store.database import Store, now_us
from thumbtune.store.votes import ACCEPTED, Press


async def main(url: str, round_: str) -> None:
    committer = Committer(Store(url))
    name = f"round{round_}"
    message = [{"role": "user", "content": "Hello"}]
    answer = {"role": "assistant", "content": "Hi"}
    await committer.add_completion(
        Completion(name, "u", "c", message, answer, "stop", "base-1", "champion", now_us())
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    number = 0
    while True:
        keys = [f"{name}-{number + i}" for i in range(20)]
        number += 20
        presses = [Press(Vote(name, f"u-{key}", True, now_us(), idempotency_key=key)) for key in keys]
        statuses = await asyncio.gather(*(committer.add_vote(press) for press in [*presses, *presses]))
        assert set(statuses) <= ACCEPTED
        sys.stdout.write(json.dumps(keys) + "\n")
        sys.stdout.flush()


asyncio.run(main(*sys.argv[1:]))
