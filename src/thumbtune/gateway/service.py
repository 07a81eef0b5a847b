"""What the gateway does, without HTTP: routes and page are thin callers of this.

A completion is stored before its last piece is handed out, so a vote token never names what is not on disk. The ids
and tokens are made beforehand, and stand in the headers too; a vote that is faster than its completion waits for it.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import secrets as randomness
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import IntegrityError

from thumbtune.errors import ConfigError, StoreError, ThumbtuneError
from thumbtune.gateway.engines import Engine
from thumbtune.gateway.identity import REFRESH_SECONDS, Doorkeeper, Identity
from thumbtune.gateway.problems import Problem, busy, log_fault
from thumbtune.gateway.rates import Rates
from thumbtune.gateway.schemas import ChatRequest, Feedback, ImportReceipt, ImportRequest, VoteReceipt
from thumbtune.gateway.settings import GatewaySettings
from thumbtune.gateway.telemetry import Telemetry
from thumbtune.records import Completion, Vote, VoteKind, text_key
from thumbtune.store.committer import Committer, CommitterFullError
from thumbtune.store.database import Store, now_us
from thumbtune.store.keys import write_audit
from thumbtune.store.models import (
    CHAMPION,
    ModelVersion,
    Pointer,
    find_pointer,
    list_versions,
    point,
    point_back,
    register_version,
)
from thumbtune.store.secrets import Secrets
from thumbtune.store.votes import ACCEPTED, Press, Status, write_completions, write_votes

log = logging.getLogger("thumbtune.gateway")

IMPLICIT: Mapping[VoteKind, tuple[bool, float]] = {
    "edit": (False, 1.0),
    "retry": (False, 0.5),
    "copy": (True, 0.5),
}
"""Label and strength of the implicit kinds: an edit says that the completion was wrong, a retry and a copy hint."""

SAMPLING_FIELDS = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n")


@dataclass
class ServedChoice:
    """One of an answer's choices on its way out: its names, and what has been said so far."""

    completion_id: str
    vote_token: str
    content: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, delta: Mapping[str, Any], finish_reason: str | None) -> None:
        """Take up a streamed piece."""
        if delta.get("content"):
            self.content.append(delta["content"])
        for call in delta.get("tool_calls") or ():
            _merge_tool_call(self.tool_calls.setdefault(call.get("index", 0), {}), call)
        self.finish_reason = finish_reason or self.finish_reason

    def as_message(self) -> dict[str, Any]:
        """The assistant's message as it was served."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[place] for place in sorted(self.tool_calls)]
        return message


@dataclass
class Serving:
    """One chat under way."""

    request: ChatRequest
    identity: Identity
    version: str
    arm: str
    choices: list[ServedChoice]
    started_us: int
    usage: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, choice: ServedChoice) -> dict[str, str]:
        """What a vote on this choice needs."""
        return {
            "completion_id": choice.completion_id,
            "vote_token": choice.vote_token,
            "model_version": self.version,
        }

    def find(self, choice: Mapping[str, Any]) -> ServedChoice:
        """The choice that an engine's choice is about. Raises a 502 `Problem` where nobody asked for it."""
        if choice["index"] not in range(len(self.choices)):
            raise Problem(502, "the model gave more choices than were asked for", code="upstream")
        return self.choices[choice["index"]]

    @property
    def has_begun(self) -> bool:
        """True once a piece of the answer is known."""
        return any(choice.content or choice.tool_calls or choice.finish_reason for choice in self.choices)

    def count_tokens(self) -> int:
        """What it cost: as the model says, or four characters a token where it was broken off before it could say."""
        known = self.usage.get("total_tokens")
        if known is not None:
            return int(known)
        said = sum(len(text) for choice in self.choices for text in choice.content)
        return (said + sum(len(str(message.content or "")) for message in self.request.messages)) // 4

    @property
    def headers(self) -> dict[str, str]:
        """The same for the first choice, for clients that show headers only."""
        first = self.choices[0]
        return {
            "Thumbtune-Completion-Id": first.completion_id,
            "Thumbtune-Vote-Token": first.vote_token,
            "Thumbtune-Model-Version": self.version,
        }


class Gateway:
    """Chats, votes and the pointer to the champion. `start` before use, `close` after."""

    def __init__(self, settings: GatewaySettings, store: Store, engine: Engine, secrets: Secrets) -> None:
        self.settings = settings
        self.store = store
        self.engine = engine
        self.telemetry = Telemetry()
        self.rates = Rates(settings)
        self.doorkeeper = Doorkeeper(
            store,
            secrets,
            on_loopback=settings.is_private,
            vote_days=settings.vote_token_days,
            session_hours=settings.session_hours,
        )
        self.champion: Pointer | None = None
        self._not_followed: Pointer | None = None
        self.committer: Committer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self.started_at = time.time()
        self.is_ready = False

    # Life

    async def start(self) -> None:
        """Get the engine ready and know the champion. Raises `ThumbtuneError` or `Problem`."""
        served = await self.engine.start()
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
        self.committer = Committer(self.store, on_commit=self.telemetry.observe_commit)
        self._watching = asyncio.create_task(self._watch())
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not walk it again beside every vote
        self.is_ready = True

    async def close(self) -> None:
        """Let answers and writes in flight finish, then stop."""
        self.is_ready = False
        if self._watching is not None:
            self._watching.cancel()
        await self.engine.close(self.settings.drain_seconds)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.drain_seconds)
        if self.committer is not None:
            await asyncio.to_thread(self.committer.close, self.settings.drain_seconds)
        self.store.close()

    async def _watch(self) -> None:
        """What other processes change, keys and champion, is known here within two seconds."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.doorkeeper.keys.refresh()
                pointer = await asyncio.to_thread(find_pointer, self.store)
                if pointer is not None and pointer != self.champion:
                    await self._follow(pointer)
            except StoreError as error:
                log.warning("the store does not answer", extra={"problem": str(error)})
            except Exception as error:  # the watch outlives whatever it met: a revoked key has to stop
                log_fault(error)

    async def _follow(self, pointer: Pointer) -> None:
        """Another process pointed the champion elsewhere."""
        if await self._ensure_loaded(pointer.version):
            self.champion = pointer
        elif pointer != self._not_followed:  # said once, not every second
            self._not_followed = pointer
            log.error("the new champion is not served here", extra={"version": pointer.version})

    async def _ensure_loaded(self, version: str) -> bool:
        """True where a version can be asked for; an adapter that the store knows is loaded."""
        if version in self.engine.versions:
            return True
        known = {found.version: found for found in await asyncio.to_thread(list_versions, self.store)}
        if version not in known or known[version].kind != "adapter":
            return False
        try:
            await self.engine.load_adapter(known[version])
        except (Problem, ThumbtuneError, OSError) as error:
            log.error("an adapter could not be loaded", extra={"version": version, "problem": str(error)})
            return False
        return True

    # Chats

    def begin_chat(self, request: ChatRequest, identity: Identity) -> Serving:
        """Check limits, pick the version, name the completions. Raises a `Problem`."""
        identity.require("client")
        if not self.is_ready:
            raise busy("the gateway is starting or stopping")
        self.rates.check(identity, "tokens")
        self.rates.take(identity, "requests")
        version, arm = self._route(request.model)
        ids = [_name_completion() for _ in range(request.n)]
        sign = self.doorkeeper.vote_tokens.sign
        choices = [ServedChoice(name, sign(name, identity.user_key)) for name in ids]
        return Serving(request, identity, version, arm, choices, now_us())

    def _route(self, model: str) -> tuple[str, str]:
        if model == CHAMPION:
            assert self.champion is not None
            return self.champion.version, "champion"
        if model not in self.engine.versions:
            raise Problem(
                404,
                "there is no such model here: ask for 'champion', or for one that GET /v1/models lists",
                code="model_not_found",
                param="model",
            )
        return model, "named"

    async def complete_chat(self, serving: Serving) -> dict[str, Any]:
        """The whole answer, once it is on disk."""
        try:
            with self.telemetry.span(serving):
                answer = await self.engine.complete(_as_body(serving.request), serving.version)
                self._take_whole(serving, answer)
        except asyncio.CancelledError:
            self._keep_later(serving, "cancelled")
            raise
        await self._keep(serving)
        first = serving.choices[0]
        return {
            **answer,
            "id": first.completion_id,
            "model": serving.version,
            "thumbtune": serving.describe(first),
        }

    def _take_whole(self, serving: Serving, answer: Mapping[str, Any]) -> None:
        """Remember an answer that came in one piece."""
        serving.usage = answer.get("usage") or {}
        for choice in answer["choices"]:
            served = serving.find(choice)
            message = choice["message"]
            served.content = [message.get("content") or ""]
            served.tool_calls = dict(enumerate(message.get("tool_calls") or ()))
            served.finish_reason = choice.get("finish_reason")
            choice["thumbtune"] = serving.describe(served)

    async def stream_answer(self, serving: Serving) -> AsyncGenerator[dict[str, Any], None]:
        """The answer's chunks; the last ones, with the reason of the end and the vote token, once it is on disk."""
        first = serving.choices[0]
        names = {
            "id": first.completion_id,
            "model": serving.version,
            "created": serving.started_us // 1_000_000,
        }
        held: list[dict[str, Any]] = []
        outcome: str | None = "cancelled"
        try:
            with self.telemetry.span(serving):
                async with aclosing(self.engine.stream(_as_body(serving.request), serving.version)) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        if self._take_up(serving, chunk):
                            held.append({**chunk, **names})
                            continue
                        yield {**chunk, **names}
            outcome = None
            await self._keep(serving)
        except Exception:
            # a refusal before the first piece is no answer: it belongs to no denominator
            outcome = "error" if outcome is not None and serving.has_begun else None
            raise
        finally:
            if outcome is not None:
                self._keep_later(serving, outcome)
        if serving.request.stream_options is None or not serving.request.stream_options.include_usage:
            held = [chunk for chunk in held if chunk["choices"]]
        if not held:
            held = [{"object": "chat.completion.chunk", "choices": [], **names}]
        for chunk in held:
            for choice in chunk["choices"]:
                choice["thumbtune"] = serving.describe(serving.choices[choice["index"]])
        held[-1]["thumbtune"] = serving.describe(first)
        for chunk in held:
            yield chunk

    async def stream_chat(self, request: ChatRequest, identity: Identity) -> AsyncIterator[dict[str, Any]]:
        """`begin_chat` and `stream_answer` in one."""
        async with aclosing(self.stream_answer(self.begin_chat(request, identity))) as chunks:
            async for chunk in chunks:
                yield chunk

    def _take_up(self, serving: Serving, chunk: Mapping[str, Any]) -> bool:
        """Remember a chunk; True where it has to wait for the disk."""
        if chunk.get("usage"):
            serving.usage = chunk["usage"]
        ends = not chunk.get("choices")
        for choice in chunk.get("choices") or ():
            serving.find(choice).add(choice.get("delta") or {}, choice.get("finish_reason"))
            ends = ends or choice.get("finish_reason") is not None
        return ends

    def _keep_later(self, serving: Serving, outcome: str) -> None:
        """The client left or the model broke off: keep what was said; it belongs to the denominator."""
        for choice in serving.choices:
            choice.finish_reason = choice.finish_reason or outcome
        self._start_writing(serving)

    async def _keep(self, serving: Serving) -> None:
        """Store every choice, also where the client leaves meanwhile. Raises `StoreError`."""
        await asyncio.shield(self._start_writing(serving))

    def _start_writing(self, serving: Serving) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._write(serving))
        self._tasks.add(task)
        task.add_done_callback(self._end_writing)
        return task

    def _end_writing(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError):
            log.error("a completion could not be stored", extra={"problem": str(error)})
        elif error is not None:
            log_fault(error)

    async def _write(self, serving: Serving) -> None:
        assert self.committer is not None
        usage = serving.usage
        self.rates.charge(serving.identity, "tokens", serving.count_tokens())
        self.telemetry.observe_answer(serving)
        request = serving.request
        sampling = {
            name: getattr(request, name) for name in SAMPLING_FIELDS if name in request.model_fields_set
        }
        messages = request.as_messages()
        conversation = _conversation_key(serving.identity.user_key, messages)
        await asyncio.gather(
            *(
                self.committer.add_completion(
                    Completion(
                        id=choice.completion_id,
                        user_key=serving.identity.user_key,
                        conversation_key=conversation,
                        messages=messages,
                        completion=choice.as_message(),
                        finish_reason=choice.finish_reason or "error",
                        model_version=serving.version,
                        arm=serving.arm,
                        created_us=serving.started_us,
                        sampling=sampling,
                        tools=request.tools,
                        n_prompt_tokens=usage.get("prompt_tokens"),
                        n_completion_tokens=usage.get("completion_tokens") if request.n == 1 else None,
                        api_key_id=serving.identity.key_id,
                    )
                )
                for choice in serving.choices
            )
        )

    # Votes

    async def vote(self, feedback: Feedback, identity: Identity) -> VoteReceipt:
        """Store a press; returns once it is on disk. Raises a `Problem` or `StoreError`."""
        assert self.committer is not None
        self.rates.take(identity, "votes")
        vote = _as_vote(feedback, identity)
        press = Press(vote, own_only=identity.role == "client")
        status = await self._add_vote(press)
        self.telemetry.observe_vote(vote, status)
        if status in ACCEPTED:
            return VoteReceipt(
                completion_id=vote.completion_id, kind=vote.kind, label=vote.label, status=status
            )
        if status == "conflict":
            raise Problem(
                409,
                "this idempotency key was used for another vote: take a new one",
                code="idempotency_conflict",
                param="idempotency_key",
            )
        raise Problem(
            404,
            "there is no such completion, or it is not yours",
            code="completion_not_found",
            param="completion_id",
        )

    async def _add_vote(self, press: Press) -> Status:
        """A vote that is faster than its completion waits for it, briefly."""
        assert self.committer is not None
        deadline = time.monotonic() + self.settings.race_seconds
        pause = 0.02
        while True:
            try:
                status = await self.committer.add_vote(press)
            except CommitterFullError as error:
                raise busy(str(error)) from error
            if status != "unknown_completion" or time.monotonic() + pause > deadline:
                return status
            await asyncio.sleep(pause)
            pause *= 2

    def import_rows(self, request: ImportRequest, identity: Identity) -> ImportReceipt:
        """Completions and votes from another product, in one transaction. Runs in a thread."""
        identity.require()
        hash_user = self.doorkeeper.secrets.user_key
        completions = [_as_imported_completion(row, request.source, hash_user) for row in request.completions]
        ids = {
            row.completion_source_id: _imported_id(request.source, row.completion_source_id)
            for row in request.votes
        }
        presses = [
            Press(
                Vote(
                    completion_id=ids[row.completion_source_id],
                    user_key=hash_user(f"user of {request.source}", row.user),
                    label=row.label,
                    created_us=int(row.created * 1e6),
                    kind=row.kind,
                    strength=1.0 if row.kind == "explicit" else IMPLICIT[row.kind][1],
                    reason=row.reason,
                    comment=row.comment,
                    correction=row.correction,
                    source=request.source,
                    source_id=row.source_id,
                )
            )
            for row in sorted(request.votes, key=lambda row: row.created)  # the newest press is the last one
        ]
        for _ in range(3):
            try:
                with self.store.write() as connection:
                    n_new = write_completions(connection, completions)
                    counts: dict[str, int] = dict(Counter(write_votes(connection, presses)))
                    if n_new or counts.keys() & {"recorded", "changed"}:
                        details = {"source": request.source, "n_completions": n_new, "votes": counts}
                        write_audit(connection, identity.actor, "import", details)
            except IntegrityError:  # another process wrote the same row in between: read again what it wrote
                continue
            return ImportReceipt(
                n_completions_new=n_new, n_completions_known=len(completions) - n_new, votes=counts
            )
        raise StoreError("another process imports the same rows: send the batch again")

    # Models

    async def point_champion(self, version: str, identity: Identity) -> Pointer:
        """Put a version in service. Raises a `Problem` for one that is not loaded."""
        identity.require()
        if version not in self.engine.versions:
            raise Problem(
                409, "this version is not loaded: load it first", code="version_not_loaded", param="version"
            )
        self.champion = await asyncio.to_thread(point, self.store, version, actor=identity.actor)
        return self.champion

    async def point_back(self, identity: Identity) -> Pointer:
        """Put the previous version back in service."""
        identity.require()
        before = self.champion.previous if self.champion else None
        if before is not None and before not in self.engine.versions:
            raise Problem(409, "the previous version is not loaded: load it first", code="version_not_loaded")
        try:
            self.champion = await asyncio.to_thread(point_back, self.store, actor=identity.actor)
        except ConfigError as error:
            raise Problem(409, str(error), code="no_way_back") from error
        return self.champion

    async def load_adapter(self, version: ModelVersion, identity: Identity) -> None:
        """Make an adapter answer beside the others, under its content-addressed name."""
        identity.require()
        await self.engine.load_adapter(version)
        await asyncio.to_thread(register_version, self.store, version)
        await asyncio.to_thread(self._write_audit, identity, "load adapter", {"version": version.version})

    def _write_audit(self, identity: Identity, act: str, details: Mapping[str, Any]) -> None:
        with self.store.write() as connection:
            write_audit(connection, identity.actor, act, details)

    # State

    def identity_of_session(self, username: str) -> Identity:
        """Who a session of the page is: `username` is what its cookie says. Raises a 401 `Problem`."""
        if username == "local" and self.doorkeeper.is_open:
            return self.doorkeeper.local_identity
        key = self.doorkeeper.keys.get(username)
        if key is None:
            raise Problem(401, "this session has ended: sign in again", code="signed_out")
        return self.doorkeeper.as_identity(key)

    def describe_state(self) -> dict[str, Any]:
        """How busy it is now, for the page and for `GET /v1/state`."""
        return {
            "champion": None if self.champion is None else self.champion.version,
            "versions": self.engine.versions,
            "engine": self.engine.describe_load(),
            "writes_waiting": self.committer.n_waiting if self.committer else 0,
            "uptime_seconds": round(time.time() - self.started_at, 1),
            "ready": self.is_ready,
            **self.telemetry.describe(),
        }


def _name_completion() -> str:
    """Unguessable, and growing with time so that an index appends."""
    return f"chatcmpl-{now_us():014x}{randomness.token_hex(10)}"


def _as_body(request: ChatRequest) -> dict[str, Any]:
    """What the engine sees: the request without who asks and without our own fields."""
    return request.model_dump(exclude_unset=True, exclude={"user", "model", "stream"})


def _as_vote(feedback: Feedback, identity: Identity) -> Vote:
    label, strength = feedback.label, 1.0
    if feedback.score is not None:
        label = feedback.score > 0
    if feedback.kind != "explicit":
        label, strength = IMPLICIT[feedback.kind]
    if feedback.retract:
        label = None
    return Vote(
        completion_id=feedback.completion_id,
        user_key=identity.user_key,
        label=label,
        created_us=now_us(),
        kind=feedback.kind,
        score=feedback.score,
        strength=strength,
        reason=feedback.reason,
        comment=feedback.comment,
        correction=feedback.correction,
        idempotency_key=feedback.idempotency_key,
        api_key_id=identity.key_id,
    )


def _as_imported_completion(row: Any, source: str, hash_user: Any) -> Completion:
    user_key = hash_user(f"user of {source}", row.user)
    messages = [message.model_dump(exclude_unset=True) for message in row.messages]
    return Completion(
        id=_imported_id(source, row.source_id),
        user_key=user_key,
        conversation_key=_conversation_key(user_key, messages),
        messages=messages,
        completion={"role": "assistant", "content": row.completion},
        finish_reason=row.finish_reason,
        model_version=row.model,
        arm="imported",
        created_us=int(row.created * 1e6),
        source=source,
        source_id=row.source_id,
    )


def _imported_id(source: str, source_id: str) -> str:
    return "imported-" + hashlib.sha256(f"{source}\n{source_id}".encode()).hexdigest()[:32]


def _conversation_key(user_key: str, messages: list[dict[str, Any]]) -> str:
    """Equal for the turns of one conversation: its user and what it began with, to the first user message."""
    end = next(
        (place for place, message in enumerate(messages) if message["role"] == "user"), len(messages) - 1
    )
    return hashlib.sha256(f"{user_key}\n{text_key(messages[: end + 1])}".encode()).hexdigest()[:32]


def _merge_tool_call(call: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Streamed tool calls come in pieces: names once, arguments bit by bit."""
    for name, value in piece.items():
        if name == "function" and value is not None:
            function = call.setdefault("function", {})
            for part, text in value.items():
                if text is not None:
                    function[part] = function.get(part, "") + text if part == "arguments" else text
        elif name != "index" and value is not None:
            call[name] = value
