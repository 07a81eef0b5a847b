"""Group commit: many requests, one disk write.

A commit costs one wait for the disk, whether it carries one vote or five hundred. One thread takes whatever has
gathered while the last commit ran, writes it in one transaction, and only then answers each request. So nothing is
acknowledged that is not on disk, a quiet gateway answers after one commit, and a busy one does not queue for the disk.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError

from thumbtune.errors import StoreError
from thumbtune.records import Completion
from thumbtune.store.database import Store
from thumbtune.store.votes import Press, Status, write_completions, write_votes

MAX_BATCH = 1_000
CHECKPOINT_SECONDS = 1.0


class CommitterFullError(StoreError):
    """More is waiting for the disk than may wait: try again."""


@dataclass(slots=True)
class _Waiting:
    item: Completion | Press
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Committer:
    """The one writer of a gateway. `on_commit(rows, seconds)` is told of every commit."""

    def __init__(
        self,
        store: Store,
        *,
        max_waiting: int = 10_000,
        on_commit: Callable[[int, float], None] | None = None,
    ) -> None:
        self.store = store
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._on_commit = on_commit
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()
        self._stopping = threading.Event()
        self._checkpointer = threading.Thread(target=self._checkpoint, name="checkpointer", daemon=True)
        if store.is_sqlite:
            self._checkpointer.start()

    @property
    def n_waiting(self) -> int:
        return self._waiting.qsize()

    async def add_completion(self, completion: Completion) -> None:
        """Returns once the completion is on disk. Raises `StoreError` where it is not."""
        await self._submit(completion)

    async def add_vote(self, press: Press) -> Status:
        """Returns what became of the press, once that is on disk. Raises `StoreError` where it is not."""
        status: Status = await self._submit(press)
        return status

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Write what is waiting, then stop."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
            self._thread.join(timeout_seconds)
            self._stopping.set()
            if self.store.is_sqlite:
                self._checkpointer.join(timeout_seconds)

    def _submit(self, item: Completion | Press) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreError("the gateway is closing: nothing more is stored")
        if self._waiting.qsize() >= self._max_waiting:
            raise CommitterFullError(
                f"{self._max_waiting} writes are waiting for the store: try again in a moment"
            )
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.put(_Waiting(item, loop, future))
        return future

    def _run(self) -> None:
        open_ = True
        while open_:
            batch: list[_Waiting] = []
            entry = self._waiting.get()
            while True:
                if entry is None:
                    open_ = False
                    break
                batch.append(entry)
                if len(batch) >= MAX_BATCH:
                    break
                try:
                    entry = self._waiting.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._settle(batch)

    def _checkpoint(self) -> None:
        while not self._stopping.wait(CHECKPOINT_SECONDS):
            with suppress(StoreError):  # the next commit will say it to those who wait for it
                self.store.checkpoint()

    def _settle(self, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        try:
            results = self._commit([entry.item for entry in batch])
        except StoreError as error:
            results = [error] * len(batch)
        except Exception:
            # a row that cannot be stored, or a key that another process wrote in between: each for itself
            results = [self._commit_alone(entry.item) for entry in batch]
        if self._on_commit is not None:
            self._on_commit(len(batch), time.perf_counter() - started)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for entry, result in zip(batch, results, strict=True):
            by_loop.setdefault(entry.loop, []).append((entry.future, result))
        for loop, answers in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_answer, answers)

    def _commit(self, items: Sequence[Completion | Press]) -> list[Any]:
        with self.store.write() as connection:
            write_completions(connection, [item for item in items if isinstance(item, Completion)])
            statuses = iter(write_votes(connection, [item for item in items if isinstance(item, Press)]))
            return [next(statuses) if isinstance(item, Press) else None for item in items]

    def _commit_alone(self, item: Completion | Press) -> Any:
        for _ in range(3):
            try:
                return self._commit([item])[0]
            except IntegrityError as error:
                last: Exception = StoreError(f"{self.store.address}: {type(error.orig).__name__}; try again")
            except Exception as error:
                return error
        return last


def _answer(answers: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in answers:
        if future.done():  # the client left; what it sent is on disk all the same
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
