"""Which version answers whom: the champion, and a canary on its share of users. Follows what the store says.

Other processes promote, stage and end; they are followed within a second, and no request falls between: a version is
loaded before anybody is sent to it, and one that went out of service stays loaded a while for who is on the way.
Votes are looked at here as well, so harm is noticed wherever a gateway runs, with or without a cycle beside it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from thumbtune.errors import ConfigError, ThumbtuneError
from thumbtune.gateway.engines import Engine
from thumbtune.gateway.problems import Problem
from thumbtune.loop.look import look_at_canary
from thumbtune.store.canaries import CANARY, Canary, end_canary, find_running_canary
from thumbtune.store.database import Store
from thumbtune.store.models import (
    CHAMPION,
    ModelVersion,
    Pointer,
    find_pointer,
    list_versions,
    point,
    register_version,
)
from thumbtune.store.reading import find_newest_vote

log = logging.getLogger("thumbtune.gateway")

LOOK_SECONDS = 1.0
"""Least time between two looks at a canary's votes."""

LOOKS_WITHOUT_VOTES = 5
"""Looks that are spared while no vote comes: then errors and the calendar may still end a canary."""

IDLE_SECONDS = 60.0
"""How long a version stays loaded that nobody is sent to any more."""

ACTOR = "gateway"


class InService:
    """The champion, the canary, and what has to be loaded for them."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self.store = store
        self.engine = engine
        self.champion: Pointer | None = None
        self.canary: Canary | None = None
        self._following = asyncio.Lock()
        self._not_followed: str | None = None
        self._loaded_here: dict[str, float] = {}
        """Versions that were loaded to follow the store, and when each was last needed."""
        self._looked_at = 0.0
        self._newest_vote = 0
        self._looks_left = 0

    async def start(self, served: Sequence[ModelVersion]) -> None:
        """Register what the engine serves and know the champion; the first version is one where there was none.

        Raises `ConfigError` where the champion cannot be served here.
        """
        for version in served:
            await asyncio.to_thread(register_version, self.store, version)
        self.champion = await asyncio.to_thread(find_pointer, self.store)
        if self.champion is None:
            first = served[0].version
            self.champion = await asyncio.to_thread(point, self.store, first, actor="start of the gateway")
        elif not await self._ensure_loaded(self.champion.version):
            raise ConfigError(
                f"the champion {self.champion.version} is not among what is served here "
                f"({', '.join(self.engine.versions)}): serve it, by --adapter if it is one, or put one of these in "
                "service: thumbtune models promote VERSION"
            )
        if self.champion.previous is not None:
            await self._ensure_loaded(self.champion.previous)  # the way back is kept warm
        await self.follow()

    def choose(self, user_key: str) -> tuple[str, str]:
        """(version, arm) for a user who asked for the champion."""
        assert self.champion is not None
        if self.canary is not None and self.canary.answers(user_key):
            return self.canary.candidate, CANARY
        return self.champion.version, CHAMPION

    async def follow(self) -> None:
        """Know what the store says now, and load what it takes. Raises `StoreError`."""
        async with self._following:  # or two would load the same adapter at once
            await self._follow()

    async def _follow(self) -> None:
        pointer = await asyncio.to_thread(find_pointer, self.store)
        if pointer is not None and pointer != self.champion:
            if await self._ensure_loaded(pointer.version):
                self.champion = pointer
            else:
                self._tell_once("the new champion is not served here", pointer.version)
        canary = await asyncio.to_thread(find_running_canary, self.store)
        if canary is not None and not await self._ensure_loaded(canary.candidate):
            await self._refuse(canary)
            canary = None
        self.canary = canary
        await self._unload_idle()

    async def look(self) -> None:
        """Judge the canary by its votes so far, and follow where that changed something. Raises `StoreError`."""
        if self.canary is None or time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        newest = await asyncio.to_thread(find_newest_vote, self.store)
        if newest == self._newest_vote and self._looks_left:
            self._looks_left -= 1
            return
        self._newest_vote, self._looks_left = newest, LOOKS_WITHOUT_VOTES
        look = await asyncio.to_thread(look_at_canary, self.store, actor=ACTOR)
        if look is not None and look.acted:
            log.info(
                "canary",
                extra={
                    "canary": look.canary.id,
                    "version": look.canary.candidate,
                    "action": look.verdict.action,
                    "reason": "; ".join(look.verdict.reasons),
                },
            )
            await self.follow()

    async def _refuse(self, canary: Canary) -> None:
        """A candidate that cannot be loaded is no candidate."""
        version = await self._find(canary.candidate)
        if version is None or version.kind != "adapter":
            self._tell_once("the canary is not served here", canary.candidate)
            return
        reason = "it could not be loaded by a gateway"
        record = {"verdict": {"action": "roll back", "reasons": [reason], "numbers": {}}}
        await asyncio.to_thread(end_canary, self.store, canary, "rolled_back", record, actor=ACTOR)

    async def _ensure_loaded(self, version: str) -> bool:
        """True where a version can be asked for; an adapter that the store knows is loaded."""
        if version in self.engine.versions:
            return True
        known = await self._find(version)
        if known is None or known.kind != "adapter":
            return False
        try:
            await self.engine.load_adapter(known)
        except (Problem, ThumbtuneError, OSError) as error:
            log.error("an adapter could not be loaded", extra={"version": version, "problem": str(error)})
            return False
        self._loaded_here[version] = time.monotonic()
        return True

    async def _find(self, version: str) -> ModelVersion | None:
        found = await asyncio.to_thread(list_versions, self.store)
        return next((one for one in found if one.version == version), None)

    async def _unload_idle(self) -> None:
        needed = {self.champion.version, self.champion.previous} if self.champion else set()
        needed |= {self.canary.candidate} if self.canary else set()
        now = time.monotonic()
        for version, last in list(self._loaded_here.items()):
            if version in needed:
                self._loaded_here[version] = now
            elif now - last > IDLE_SECONDS:
                del self._loaded_here[version]
                await self.engine.unload_adapter(version)

    def _tell_once(self, what: str, version: str) -> None:
        if version != self._not_followed:  # said once, not every second
            self._not_followed = version
            log.error(what, extra={"version": version})
