"""A real PostgreSQL server for a test session: its own folder, its own port, durable as it comes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def find_programs() -> Path:
    """The folder of `initdb` and `postgres`."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if folders:
        return folders[-1]
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not installed: scripts/install-postgres")
    return Path(found).resolve().parent


@contextlib.contextmanager
def run_postgres() -> Iterator[str]:
    """A server while the block runs; gives `postgresql://…@127.0.0.1:PORT` without a database's name."""
    programs = find_programs()
    folder = Path(tempfile.mkdtemp(prefix="thumbtune-postgres-"))
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # the server refuses root
    if os.getuid() == 0:
        shutil.chown(folder, user)

    def run(*command: str | Path) -> None:
        as_user = {"user": user} if os.getuid() == 0 else {}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, **as_user)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    run(
        programs / "initdb",
        "-D",
        data,
        "-U",
        "votes",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
        "--no-locale",
    )
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    run(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-t", "60", "-o", options, "start")
    try:
        yield f"postgresql://votes@127.0.0.1:{port}"
    finally:
        run(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)
