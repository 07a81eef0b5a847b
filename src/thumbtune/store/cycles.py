"""Turns of the loop: what each step gave, and the lock that keeps two from running.

A step that is recorded is done, so a turn that was killed goes on behind its last one. The lock is a row with the
process that holds it: on the same machine a dead process holds nothing, on another one it holds until its row was not
renewed for a while.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import psutil
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from thumbtune.errors import StoreError
from thumbtune.store.database import Store, now_us
from thumbtune.store.schema import cycle_steps, cycles, locks

LEASE_SECONDS = 90
"""A holder on another machine that did not renew its lock for so long is taken for dead."""

RENEW_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was done."""

    name: str
    result: Mapping[str, Any]
    started_us: int
    ended_us: int


@dataclass(frozen=True, slots=True)
class Cycle:
    """One turn of the loop."""

    id: int
    state: str
    """running, done or failed."""
    outcome: str | None
    """How it ended, in words."""
    settings: Mapping[str, Any]
    folder: str
    started_us: int
    ended_us: int | None
    steps: Mapping[str, Step] = field(default_factory=dict)


def begin_cycle(store: Store, settings: Mapping[str, Any], folder: str) -> Cycle:
    """A new turn."""
    with store.write() as connection:
        number = connection.execute(
            insert(cycles).values(
                state="running", settings=dict(settings), folder=folder, started_us=now_us()
            )
        ).inserted_primary_key
    assert number is not None
    return find_cycle(store, number[0])


def record_step(store: Store, cycle: Cycle, name: str, result: Mapping[str, Any], started_us: int) -> None:
    """A step is done; recorded once."""
    with store.write() as connection:
        connection.execute(
            insert(cycle_steps).values(
                cycle_id=cycle.id, step=name, result=dict(result), started_us=started_us, ended_us=now_us()
            )
        )


def end_cycle(store: Store, cycle: Cycle, state: str, outcome: str) -> None:
    """The turn is over."""
    with store.write() as connection:
        connection.execute(
            update(cycles)
            .where(cycles.c.id == cycle.id)
            .values(state=state, outcome=outcome, ended_us=now_us())
        )


def find_cycle(store: Store, number: int) -> Cycle:
    """A turn with its steps."""
    with store.read() as connection:
        row = connection.execute(select(cycles).where(cycles.c.id == number)).one()
        steps = connection.execute(
            select(cycle_steps).where(cycle_steps.c.cycle_id == number).order_by(cycle_steps.c.ended_us)
        ).all()
    return _as_cycle(row, steps)


def list_cycles(store: Store, limit: int = 100) -> list[Cycle]:
    """Turns with their steps, newest first."""
    with store.read() as connection:
        rows = connection.execute(select(cycles).order_by(cycles.c.id.desc()).limit(limit)).all()
        steps = connection.execute(
            select(cycle_steps)
            .where(cycle_steps.c.cycle_id.in_([row.id for row in rows]))
            .order_by(cycle_steps.c.ended_us)
        ).all()
    return [_as_cycle(row, [step for step in steps if step.cycle_id == row.id]) for row in rows]


@contextmanager
def hold_lock(store: Store, name: str = "cycle") -> Iterator[None]:
    """Keep other processes out, here and on other machines. Raises `StoreError` where one is in."""
    holder = f"{_name_process()}:{secrets.token_hex(4)}"
    try:
        _take_lock(store, name, holder)
    except IntegrityError as error:  # two at once, on PostgreSQL
        raise StoreError(f"{store.address}: another process has just begun the {name}") from error
    stop = Event()

    def renew() -> None:
        while not stop.wait(RENEW_SECONDS):
            try:
                with store.write() as connection:
                    connection.execute(
                        update(locks)
                        .where(locks.c.name == name, locks.c.holder == holder)
                        .values(renewed_us=now_us())
                    )
            except StoreError:
                continue  # it was out for a moment; the lease is longer

    thread = Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with store.write() as connection:
            connection.execute(delete(locks).where(locks.c.name == name, locks.c.holder == holder))


def _take_lock(store: Store, name: str, holder: str) -> None:
    with store.write() as connection:
        row = connection.execute(select(locks).where(locks.c.name == name).with_for_update()).first()
        if row is None:
            connection.execute(insert(locks).values(name=name, holder=holder, renewed_us=now_us()))
            return
        if _is_alive(row.holder, row.renewed_us):
            raise StoreError(
                f"{store.address}: another process runs the {name} ({row.holder}): wait for it, or stop it"
            )
        connection.execute(
            update(locks).where(locks.c.name == name).values(holder=holder, renewed_us=now_us())
        )


def _name_process() -> str:
    process = psutil.Process()
    return f"{socket.gethostname()}:{os.getpid()}:{int(process.create_time())}"


def _is_alive(holder: str, renewed_us: int) -> bool:
    host, pid, started, _ = holder.rsplit(":", 3)
    if host == socket.gethostname():
        try:
            return int(psutil.Process(int(pid)).create_time()) == int(started)
        except psutil.NoSuchProcess:
            return False
    return now_us() - renewed_us < LEASE_SECONDS * 1_000_000


def _as_cycle(row: Row[Any], steps: Any) -> Cycle:
    done = {step.step: Step(step.step, step.result, step.started_us, step.ended_us) for step in steps}
    return Cycle(**row._mapping, steps=done)
