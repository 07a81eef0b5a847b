"""The model in service: kept over a restart, loaded where it is known, and never changed unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.scripted import ScriptedEngine, build_gateway, serve_gateway
from thumbtune.errors import ConfigError
from thumbtune.store.database import Store
from thumbtune.store.models import ModelVersion, find_pointer, point, register_version


class LoadingEngine(ScriptedEngine):
    """Serves one base, and whatever adapter it is told to load."""

    def __init__(self, base: str = "base-1") -> None:
        super().__init__((base,))
        self.loaded: list[str] = []

    async def load_adapter(self, version: ModelVersion) -> None:
        if version.location == "gone":
            raise ConfigError("there is no such folder")
        self.loaded.append(version.location)
        await super().load_adapter(version)


def ask_model(address: str) -> str:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    found: str = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=20).json()["model"]
    return found


def promote(url: str, version: str, location: str) -> None:
    """As another process does."""
    store = Store(url)
    register_version(store, ModelVersion(version, "adapter", location, parent="base-1"))
    point(store, version, actor="another process")
    store.close()


def test_a_champion_that_is_a_known_adapter_is_loaded_at_the_start(url: str, tmp_path: Path) -> None:
    with serve_gateway(build_gateway(url, tmp_path, LoadingEngine())) as address:
        assert ask_model(address) == "base-1"
    promote(url, "adapter-2", "some/folder")
    engine = LoadingEngine()
    with serve_gateway(build_gateway(url, tmp_path, engine)) as address:
        assert ask_model(address) == "adapter-2"
    assert engine.loaded == ["some/folder"]


def test_a_promotion_by_another_process_is_followed_within_two_seconds(url: str, tmp_path: Path) -> None:
    import time

    with serve_gateway(build_gateway(url, tmp_path, LoadingEngine())) as address:
        assert ask_model(address) == "base-1"
        promote(url, "adapter-2", "some/folder")
        deadline = time.monotonic() + 3
        while ask_model(address) != "adapter-2":
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("version", "kind", "location"), [("adapter-2", "adapter", "gone"), ("base-9", "base", "elsewhere")]
)
def test_a_start_without_the_champion_is_refused_and_points_nowhere_else(
    url: str, tmp_path: Path, version: str, kind: str, location: str
) -> None:
    import asyncio

    store = Store(url)
    register_version(store, ModelVersion(version, kind, location))
    point(store, version, actor="an admin")
    gateway: Any = build_gateway(url, tmp_path, LoadingEngine())
    with pytest.raises(ConfigError, match=rf"champion {version} is not among what is served here \(base-1\)"):
        asyncio.run(gateway.start())
    asyncio.run(gateway.close())
    pointer = find_pointer(store)
    assert pointer is not None
    assert pointer.version == version
    point(store, "base-1", actor="an admin, as the message says")
    with serve_gateway(build_gateway(url, tmp_path, LoadingEngine())) as address:
        assert ask_model(address) == "base-1"
    store.close()


def test_a_champion_that_is_not_served_is_never_replaced_unnoticed(url: str, tmp_path: Path) -> None:
    import asyncio

    promote(url, "adapter-2", "gone")
    gateway = build_gateway(url, tmp_path, LoadingEngine())
    problem = ""
    try:
        asyncio.run(gateway.start())
    except ConfigError as error:
        problem = str(error)
    asyncio.run(gateway.close())
    assert "adapter-2" in problem
    assert not gateway.is_ready


def test_the_way_back_is_kept_warm_over_a_restart(url: str, tmp_path: Path) -> None:
    with serve_gateway(build_gateway(url, tmp_path, LoadingEngine())):
        pass
    promote(url, "adapter-2", "some/folder")
    promote(url, "adapter-3", "another/folder")
    engine = LoadingEngine()
    with serve_gateway(build_gateway(url, tmp_path, engine)) as address:
        assert ask_model(address) == "adapter-3"
        assert sorted(engine.loaded) == ["another/folder", "some/folder"]
        assert httpx.post(f"{address}/v1/champion/back", timeout=20).status_code == 200
        assert ask_model(address) == "adapter-2"
