"""What the gateway does, without HTTP: routes and page are thin callers of this.

A completion is stored before its last piece is handed out, so a vote token never names what is not on disk. The ids
and tokens are made beforehand, and stand in the headers too; a vote that is faster than its completion waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets as randomness
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from sqlalchemy.exc import IntegrityError

from thumbtune.errors import ConfigError, StoreError
from thumbtune.gateway.canary_state import record_by_hand
from thumbtune.gateway.engines import Engine
from thumbtune.gateway.identity import REFRESH_SECONDS, Doorkeeper, Identity
from thumbtune.gateway.in_service import InService
from thumbtune.gateway.incoming import as_rows, as_vote, make_conversation_key
from thumbtune.gateway.problems import Problem, busy, log_fault
from thumbtune.gateway.rates import Rates
from thumbtune.gateway.schemas import ChatRequest, Feedback, ImportReceipt, ImportRequest, VoteReceipt
from thumbtune.gateway.serving import ServedChoice, Serving
from thumbtune.gateway.settings import GatewaySettings
from thumbtune.gateway.telemetry import Telemetry
from thumbtune.records import Completion
from thumbtune.store.canaries import Canary, State, end_canary, find_canary, find_running_canary
from thumbtune.store.committer import Committer, CommitterFullError
from thumbtune.store.database import Store, now_us
from thumbtune.store.keys import write_audit
from thumbtune.store.models import (
    CHAMPION,
    ModelVersion,
    Pointer,
    point,
    point_back,
    register_version,
)
from thumbtune.store.secrets import Secrets
from thumbtune.store.votes import ACCEPTED, Press, Status, write_completions, write_votes

log = logging.getLogger("thumbtune.gateway")

SAMPLING_FIELDS = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n")


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
            is_private=settings.is_private,
            vote_days=settings.vote_token_days,
            session_hours=settings.session_hours,
        )
        self.in_service = InService(store, engine)
        self.committer: Committer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self.started_at = time.time()
        self.is_ready = False

    # Life

    async def start(self) -> None:
        """Get the engine ready and know the champion. Raises `ThumbtuneError` or `Problem`."""
        served = await self.engine.start()
        await self.in_service.start(served)
        self.committer = Committer(self.store, on_commit=self.telemetry.observe_commit)
        self._watching = asyncio.create_task(self._watch())
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
        await asyncio.to_thread(self.store.close)

    async def _watch(self) -> None:
        """What other processes change, keys, champion and canary, is known here within a second."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.doorkeeper.keys.refresh()
                await self.in_service.follow()
                await self.in_service.look()
            except StoreError as error:
                log.warning("the store does not answer", extra={"problem": str(error)})
            except Exception as error:  # the watch outlives whatever it met: a revoked key has to stop
                log_fault(error)

    @property
    def champion(self) -> Pointer | None:
        """The version in service."""
        return self.in_service.champion

    # Chats

    def begin_chat(self, request: ChatRequest, identity: Identity) -> Serving:
        """Check limits, pick the version, name the completions. Raises a `Problem`."""
        identity.require("client")
        if not self.is_ready:
            raise busy("the gateway is starting or stopping")
        self.rates.check(identity, "tokens")
        self.rates.take(identity, "requests")
        version, arm = self._route(request.model, identity)
        ids = [_name_completion() for _ in range(request.n)]
        sign = self.doorkeeper.vote_tokens.sign
        choices = [ServedChoice(name, sign(name, identity.user_key)) for name in ids]
        return Serving(request, identity, version, arm, choices, now_us())

    def _route(self, model: str, identity: Identity) -> tuple[str, str]:
        if model == CHAMPION:
            return self.in_service.choose(identity.user_key)
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
        except Exception as error:
            if self._tells_of_canary(serving, error):
                self._keep_later(serving, "error")
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
        except Exception as error:
            # a refusal before the first piece is no answer: it belongs to no denominator
            counts = serving.has_begun or self._tells_of_canary(serving, error)
            outcome = "error" if outcome is not None and counts else None
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

    def _tells_of_canary(self, serving: Serving, error: Exception) -> bool:
        """While a canary runs, answers that fail by our fault are counted in both arms: silence gets no votes."""
        is_fault = not isinstance(error, Problem) or error.status in (500, 502)
        return is_fault and self.in_service.canary is not None and serving.arm != "named"

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
        conversation = make_conversation_key(serving.identity.user_key, messages)
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
        vote = as_vote(feedback, identity)
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
        completions, presses = as_rows(request, self.doorkeeper.secrets.user_key)
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
        pointer = await asyncio.to_thread(point, self.store, version, actor=identity.actor)
        await self.in_service.follow()
        return pointer

    async def point_back(self, identity: Identity) -> Pointer:
        """Put the previous version back in service."""
        identity.require()
        before = self.champion.previous if self.champion else None
        if before is not None and before not in self.engine.versions:
            raise Problem(409, "the previous version is not loaded: load it first", code="version_not_loaded")
        try:
            pointer = await asyncio.to_thread(point_back, self.store, actor=identity.actor)
        except ConfigError as error:
            raise Problem(409, str(error), code="no_way_back") from error
        await self.in_service.follow()
        return pointer

    async def end_canary(self, state: State, identity: Identity, canary_id: str | None = None) -> Canary:
        """A person ends the running canary, or only the one that they mean. Raises a 409 `Problem` where it is over."""
        identity.require()
        canary = await asyncio.to_thread(find_running_canary, self.store)
        if canary is None or canary_id not in (None, canary.id):
            raise Problem(409, "no such canary runs: GET /v1/canaries shows how it ended", code="no_canary")
        if state == "promoted" and canary.candidate not in self.engine.versions:
            raise Problem(409, "the candidate is not loaded: load it first", code="version_not_loaded")
        record = await asyncio.to_thread(record_by_hand, self.store, canary, state, identity.actor)
        done = await asyncio.to_thread(end_canary, self.store, canary, state, record, actor=identity.actor)
        if not done:
            raise Problem(409, "the canary has ended meanwhile", code="no_canary")
        await self.in_service.follow()
        return await asyncio.to_thread(find_canary, self.store, canary.id)

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
        canary = self.in_service.canary
        return {
            "champion": None if self.champion is None else self.champion.version,
            "canary": None if canary is None else {"version": canary.candidate, "share": canary.share},
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
