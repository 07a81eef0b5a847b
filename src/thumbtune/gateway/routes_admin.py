"""What admins do: models and the champion, keys, erasure, and a look at the house. Each act is in the audit trail."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from thumbtune.errors import ConfigError, ModelError
from thumbtune.gateway.canary_state import read_canary, summarise
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.requests import OF_A_BODY, Admin, TheGateway, list_errors
from thumbtune.loop.versions import describe_adapter
from thumbtune.store.canaries import find_running_canary, list_canaries
from thumbtune.store.cycles import list_cycles
from thumbtune.store.erasure import Erasure, erase_user
from thumbtune.store.keys import Role, create_key, list_audit, list_keys, revoke_key
from thumbtune.store.models import ModelVersion, Pointer, list_versions
from thumbtune.store.reading import count_by_version

router = APIRouter(prefix="/v1", tags=["admin"], responses=list_errors())


class ChampionRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: str = Field(min_length=1, max_length=160, pattern=r"^[^\x00]*$")


class CanaryEnd(BaseModel):
    model_config = ConfigDict(extra="forbid")
    state: Literal["promoted", "rolled_back", "withdrawn"]
    canary: str | None = Field(
        None, max_length=32, pattern=r"^[^\x00]*$", description="Only if it is this one that runs."
    )


class AdapterRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    folder: str = Field(
        min_length=1, max_length=1_000, pattern=r"^[^\x00]*$", description="On the gateway's machine."
    )


class KeyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")
    role: Role
    speaks_for_users: bool = False


@router.get("/versions")
async def look_at_versions(gateway: TheGateway, admin: Admin) -> dict[str, Any]:
    """Every model version with its parent, snapshot, and votes; and which is the champion."""
    versions = await asyncio.to_thread(list_versions, gateway.store)
    counts = {row["model_version"]: row for row in await asyncio.to_thread(count_by_version, gateway.store)}
    loaded = set(gateway.engine.versions)
    data = [
        asdict(version) | counts.get(version.version, {}) | {"loaded": version.version in loaded}
        for version in versions
    ]
    return {
        "object": "list",
        "data": data,
        "champion": None if not gateway.champion else asdict(gateway.champion),
    }


@router.post("/champion", responses=list_errors(*OF_A_BODY, 409))
async def point_champion(body: ChampionRequest, gateway: TheGateway, admin: Admin) -> Pointer:
    """Put a loaded version in service."""
    return await gateway.point_champion(body.version, admin)


@router.post("/champion/back", responses=list_errors(*OF_A_BODY, 409))
async def point_champion_back(gateway: TheGateway, admin: Admin) -> Pointer:
    """Put the previous version back in service."""
    return await gateway.point_back(admin)


@router.get("/canary")
async def look_at_canary(gateway: TheGateway, admin: Admin) -> dict[str, Any]:
    """The running canary: its votes, the verdict and its reasons, both tests' evidence, and what can be told by when.

    `canary` is null where none runs. Evidence is in natural logarithms; `curves` holds at most 500 points.
    """
    running = await asyncio.to_thread(find_running_canary, gateway.store)
    if running is None:
        return {"canary": None}
    now = await asyncio.to_thread(read_canary, gateway.store, running)
    return {"canary": None} if now is None else now.as_json()


@router.get("/canaries")
async def look_at_canaries(
    gateway: TheGateway, admin: Admin, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> dict[str, Any]:
    """Every canary, newest first, with how it ended and why. The streams of votes are left out of the records."""
    found = await asyncio.to_thread(list_canaries, gateway.store, limit)
    return {"object": "list", "data": [summarise(canary) for canary in found]}


@router.post("/canary/end", responses=list_errors(*OF_A_BODY, 409))
async def end_canary(body: CanaryEnd, gateway: TheGateway, admin: Admin) -> dict[str, Any]:
    """End the running canary by hand: its candidate in service for all, rolled back, or withdrawn without a verdict."""
    return summarise(await gateway.end_canary(body.state, admin, body.canary))


@router.get("/cycles")
async def look_at_cycles(
    gateway: TheGateway, admin: Admin, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> dict[str, Any]:
    """Turns of the loop, newest first, with what each of their steps gave."""
    found = await asyncio.to_thread(list_cycles, gateway.store, limit)
    return {"object": "list", "data": [asdict(cycle) for cycle in found]}


@router.post("/adapters", responses=list_errors(*OF_A_BODY, 404, 502, 504))
async def load_adapter(body: AdapterRequest, gateway: TheGateway, admin: Admin) -> ModelVersion:
    """Load a PEFT adapter beside the others, under its content-addressed name; it serves nobody yet but by name."""
    base = gateway.engine.versions[-1] if gateway.champion is None else gateway.champion.version
    try:
        version = await asyncio.to_thread(describe_adapter, Path(body.folder), base)
    except (ModelError, OSError) as error:
        raise Problem(
            400, "this folder holds no adapter in safetensors", code="no_adapter", param="folder"
        ) from error
    await gateway.load_adapter(version, admin)
    return version


@router.delete("/users/{user}", responses=list_errors(*OF_A_BODY, 404))
async def forget_user(
    user: str, gateway: TheGateway, admin: Admin, key_id: Annotated[str | None, Query(max_length=32)] = None
) -> Erasure:
    """Erase a user's texts and votes; tells the snapshots and model versions that learned from them.

    `user` is a user key; with `key_id`, the name that this API key called the user by.
    """
    user_key = user if key_id is None else gateway.doorkeeper.secrets.user_key(f"user of {key_id}", user)
    if "\x00" in user_key or len(user_key) > 64:
        raise Problem(404, "there is no such user", code="user_not_found")
    return await asyncio.to_thread(erase_user, gateway.store, user_key, actor=admin.actor)


@router.get("/keys")
async def look_at_keys(gateway: TheGateway, admin: Admin) -> dict[str, Any]:
    """Every API key, without its secret."""
    return {
        "object": "list",
        "data": [asdict(key) for key in await asyncio.to_thread(list_keys, gateway.store)],
    }


@router.post("/keys", responses=list_errors(*OF_A_BODY))
async def make_key(body: KeyRequest, gateway: TheGateway, admin: Admin) -> dict[str, Any]:
    """A new API key; its secret is in this answer and nowhere else."""
    key, secret = await asyncio.to_thread(
        lambda: create_key(
            gateway.store, body.name, body.role, speaks_for_users=body.speaks_for_users, actor=admin.actor
        )
    )
    await gateway.doorkeeper.keys.refresh()
    return asdict(key) | {"secret": secret}


@router.delete("/keys/{key_id}", status_code=204, responses=list_errors(*OF_A_BODY, 404))
async def end_key(key_id: str, gateway: TheGateway, admin: Admin) -> Response:
    """Revoke an API key, from this moment."""
    try:
        if "\x00" in key_id:
            raise ConfigError("no such key")
        await asyncio.to_thread(revoke_key, gateway.store, key_id, actor=admin.actor)
    except ConfigError as error:
        raise Problem(404, "there is no such key in use", code="key_not_found") from error
    await gateway.doorkeeper.keys.refresh()
    return Response(status_code=204)


@router.get("/audit")
async def look_at_audit(
    gateway: TheGateway, admin: Admin, limit: Annotated[int, Query(ge=1, le=1_000)] = 200
) -> dict[str, Any]:
    """What admins did, newest first."""
    return {"object": "list", "data": await asyncio.to_thread(list_audit, gateway.store, limit)}


@router.get("/state")
async def look_at_state(gateway: TheGateway, admin: Admin) -> dict[str, Any]:
    """How busy the gateway is now."""
    return gateway.describe_state()
