"""From settings to a serving process, and its orderly end."""

from __future__ import annotations

import gc
import logging
import os
import socket
from contextlib import closing
from typing import Any

import uvicorn

from thumbtune.errors import ConfigError
from thumbtune.gateway.engines import Engine
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.service import Gateway
from thumbtune.gateway.settings import GatewaySettings
from thumbtune.gateway.telemetry import start_logging
from thumbtune.store.database import Store
from thumbtune.store.keys import find_keys_by_hash
from thumbtune.store.secrets import open_secrets

log = logging.getLogger("thumbtune.gateway")

IDLE_SECONDS = 75
"""How long a client's idle connection is kept: longer than openai's client (5 s) and nginx (60 s) keep it, since a
request on its way to a side that closes is lost."""


def run_gateway(settings: GatewaySettings) -> None:
    """Serve until a signal comes; answers in flight finish and waiting votes are written before it ends.

    Raises `ConfigError` where other machines could reach it and no API key exists.
    """
    start_logging(settings.log_level)
    engine = build_engine(settings)
    store = Store(settings.store)
    if not settings.is_private and not find_keys_by_hash(store):
        store.close()
        raise ConfigError(
            f"host {settings.host} {settings.allowed_hosts or ''} lets others in, and there is no API key yet: "
            f"`thumbtune keys create NAME --role admin --store {store.address}` makes one"
        )
    with closing(_take_port(settings.host, settings.port)) as listening:  # before a model is loaded in vain
        _serve(Gateway(settings, store, engine, open_secrets(settings.secrets_file)), listening)


def _serve(gateway: Gateway, listening: socket.socket) -> None:
    from thumbtune.gateway.app import create_app

    settings = gateway.settings
    server = _Server(
        uvicorn.Config(
            create_app(gateway),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            h11_max_incomplete_event_size=64 * 1024,
        )
    )
    server.gateway = gateway
    server.run(sockets=[listening])


def _take_port(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises `ConfigError` where it is taken, or not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}): another process may have it; name "
            "another --port, 0 takes a free one"
        ) from error
    return taken


def build_engine(settings: GatewaySettings) -> Engine:
    """The engine that the settings ask for. Raises `ConfigError`."""
    if settings.upstream is not None:
        if settings.adapters:
            raise ConfigError("adapters go with --model; load them at an upstream by POST /v1/adapters")
        from thumbtune.gateway.upstream import Upstream

        return Upstream(
            settings.upstream,
            api_key=settings.upstream_key,
            timeout_seconds=settings.upstream_timeout_seconds,
            model=settings.model,
        )
    if settings.model is None:
        raise ConfigError(
            "name a model (--model packaged:smollm2-135m-instruct) or a server that has one (--upstream URL)"
        )
    from thumbtune.gateway.local_chat import LocalModel

    return LocalModel(
        settings.model,
        settings.adapters,
        max_rows=settings.max_rows,
        max_waiting=settings.max_waiting,
        max_new_tokens=settings.max_new_tokens,
    )


class _Server(uvicorn.Server):
    """Starts the gateway before it listens, so that trouble is an error and not a log line; then says where."""

    gateway: Gateway

    async def startup(self, sockets: Any = None) -> None:
        try:
            await self.gateway.start()
        except BaseException as error:
            await self.gateway.close()
            if isinstance(error, Problem):
                raise ConfigError(error.message) from error
            raise
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not walk it again beside every vote
        await super().startup(sockets)
        if self.started and self.servers:
            page = f"{self._address}/page" if self.gateway.settings.page else None
            log.info("listening", extra={"address": self._address, "pid": os.getpid(), "page": page})

    @property
    def _address(self) -> str:
        host, port = self.gateway.settings.host, self.servers[0].sockets[0].getsockname()[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
