"""A transformers model that answers many chats at once, each as if it were alone.

One thread decodes. Between two steps it lets waiting prompts in, lets go of rows whose reader left, and loads or drops
adapters, so nothing of that needs a lock around the model. Answers go to the event loop once a step.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from thumbtune.data.chat import tokenize_prompt
from thumbtune.errors import ConfigError, ModelError, ThumbtuneError
from thumbtune.evaluation.generate import stop_token_ids
from thumbtune.gateway.answer_text import AnswerText
from thumbtune.gateway.batch_decoding import BatchDecoder, Encoding, Row
from thumbtune.gateway.served_adapters import ServedAdapters
from thumbtune.records import Message

log = logging.getLogger("thumbtune.gateway")

PREFILL_TOKENS = 256
"""Prompt tokens, padding included, that are read in one step: the rows under way wait for them, half a second where
two cores read for a model of 135 million weights. A longer prompt is read in pieces, one a step."""


class EngineFull(ThumbtuneError):  # noqa: N818 - a state, not a mistake
    """As many wait as may wait: come again."""


class PromptTooLong(ThumbtuneError, ValueError):  # noqa: N818
    """The prompt leaves no room for an answer."""


class UnknownVersion(ThumbtuneError, ValueError):  # noqa: N818
    """No adapter of this name is loaded."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to answer, and how."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A bit of one choice; the last one says how it ended and what it took."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0


@dataclass(eq=False)
class _Answer:
    """One request under way."""

    request: GenerationRequest
    prompt_ids: Sequence[int]
    version: str
    max_tokens: int
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False
    """The reader left."""


@dataclass(eq=False)
class _Voice:
    """One choice of an answer, and what it says."""

    answer: _Answer
    index: int
    text: AnswerText


class LocalEngine:
    """Generates for many at once. `base_version` names the model without an adapter."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        base_version: str,
        max_rows: int = 32,
        max_waiting: int = 256,
        max_new_tokens: int = 512,
        max_context: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{type(tokenizer).__name__} is a slow tokenizer: serving needs a fast one")
        self._tokenizer = tokenizer
        self._tokenizer_lock = threading.Lock()
        self._base = base_version
        self._loaded: set[str] = set()
        self._max_rows, self._max_waiting, self._max_new_tokens = max_rows, max_waiting, max_new_tokens
        self._max_context = max_context or getattr(model.config, "max_position_embeddings", None) or 2**31
        self._stops = stop_token_ids(model, tokenizer)
        self._adapters = ServedAdapters(model, base_version)
        self._decoder = BatchDecoder(self._adapters, pad_token_id=tokenizer.pad_token_id)
        self._encoding: Encoding | None = None
        self._waiting: deque[_Answer] = deque()
        self._errands: deque[tuple[Callable[[], bool], asyncio.AbstractEventLoop, asyncio.Future[None]]] = (
            deque()
        )
        self._wake = threading.Condition()
        self._closing: Literal["no", "drain", "now"] = "no"
        self._recent: deque[tuple[float, int]] = deque(maxlen=64)
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def versions(self) -> list[str]:
        """The base and the adapters."""
        return [*sorted(self._loaded), self._base]

    def load(self) -> dict[str, float]:
        """How busy it is."""
        recent = list(self._recent)
        span = time.monotonic() - recent[0][0] if recent else 0.0
        return {
            "rows": len(self._decoder.rows),
            "waiting": len(self._waiting),
            "tokens_per_second": round(sum(n for _, n in recent) / span, 1) if 0 < span < 60 else 0.0,
        }

    async def generate(self, request: GenerationRequest, version: str) -> AsyncGenerator[Piece, None]:
        """The answer, piece by piece; closing the iterator stops the model's work on it.

        Raises `EngineFull`, `PromptTooLong`, `UnknownVersion`, and what went wrong while decoding.
        """
        answer = await self._prepare(request, version)
        with self._wake:
            if self._closing != "no":
                raise EngineFull("the model is being shut down")
            self._check_version(version)  # it may have gone while the prompt was tokenised
            if not self._has_room(request.n):
                raise EngineFull(f"{self._max_waiting} chats wait for the model already: try again")
            self._waiting.append(answer)
            self._wake.notify()
        n_open = request.n
        try:
            while n_open:
                piece = await answer.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                n_open -= piece.finish_reason is not None
                yield piece
        finally:
            answer.gone = True
            if n_open:
                with self._wake:
                    if answer in self._waiting:
                        self._waiting.remove(answer)
                    self._wake.notify()

    def _has_room(self, n: int) -> bool:
        """Whether a request for `n` choices can start at the next step, or else may wait."""
        free = self._max_rows - self._n_rows()
        for place, answer in enumerate(self._waiting):
            free -= answer.request.n
            if free < 0:
                return len(self._waiting) - place < self._max_waiting
        return n <= free or self._max_waiting > 0

    def _n_rows(self) -> int:
        return len(self._decoder.rows) + (len(self._encoding.rows) if self._encoding else 0)

    async def _prepare(self, request: GenerationRequest, version: str) -> _Answer:
        self._check_version(version)
        if request.n > self._max_rows:
            raise ConfigError(f"n is {request.n}, and the model decodes {self._max_rows} answers at most")
        prompt_ids = await asyncio.to_thread(self._tokenize, request)
        room = self._max_context - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(prompt_ids)} tokens and the model's context {self._max_context}: shorten it"
            )
        max_tokens = min(request.max_tokens or self._max_new_tokens, room)
        return _Answer(request, prompt_ids, version, max_tokens, asyncio.get_running_loop())

    def _check_version(self, version: str) -> None:
        if version not in self.versions:
            raise UnknownVersion(f"'{version}' is not loaded: {', '.join(self.versions)}")

    def _tokenize(self, request: GenerationRequest) -> list[int]:
        tools = {"tools": list(request.tools)} if request.tools else {}
        with self._tokenizer_lock:
            return tokenize_prompt(self._tokenizer, request.messages, **tools)

    async def load_adapter(self, version: str, folder: Path) -> None:
        """Load a PEFT adapter under a name, between two steps. Raises `ModelError`."""

        def load() -> bool:
            self._adapters.load(version, folder)
            self._loaded.add(version)
            return True

        if version not in self._loaded:
            await self._send_errand(load)

    async def unload_adapter(self, version: str) -> None:
        """Let an adapter go, once its answers under way have ended. Raises `UnknownVersion`."""
        self._check_version(version)
        if version == self._base:
            raise ConfigError(f"'{version}' is the base that the adapters stand on: it stays")
        with self._wake:
            self._loaded.discard(version)  # nobody new

        def unload() -> bool:
            with self._wake:
                in_use = {row.version for row in self._rows_under_way()}
                in_use |= {answer.version for answer in self._waiting}
            if version in in_use:
                return False
            self._adapters.unload(version)
            return True

        await self._send_errand(unload)

    async def close(self, *, drain: bool) -> None:
        """Stop; with `drain`, once the answers that were asked for have ended."""
        with self._wake:
            if self._closing != "now":
                self._closing = "drain" if drain else "now"
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    async def _send_errand(self, errand: Callable[[], bool]) -> None:
        """Have the decoding thread do something between two steps; done when it gives True."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._wake:
            if self._closing != "no":
                raise EngineFull("the model is being shut down")
            self._errands.append((errand, loop, future))
            self._wake.notify()
        await future

    # The decoding thread

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._run_errands()
                self._step()
            except Exception as error:
                log.exception("decoding failed; the answers under way are lost")
                self._fail(ModelError(f"decoding failed: {type(error).__name__}"), everyone=False)
        self._fail(EngineFull("the model was shut down"), everyone=True)

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._is_busy() or self._errands or self._closing != "no"):
                self._wake.wait()
            return self._closing == "no" or (self._closing == "drain" and self._is_busy())

    def _is_busy(self) -> bool:
        return bool(self._waiting or self._decoder.rows or self._encoding)

    def _rows_under_way(self) -> list[Row]:
        return [*self._decoder.rows, *(self._encoding.rows if self._encoding else ())]

    def _run_errands(self) -> None:
        for _ in range(len(self._errands)):
            errand, loop, future = self._errands.popleft()
            try:
                done = errand()
            except Exception as error:
                loop.call_soon_threadsafe(_set, future, error)
                continue
            if done:
                loop.call_soon_threadsafe(_set, future, None)
            else:
                self._errands.append((errand, loop, future))

    def _step(self) -> None:
        """Let rows in, pick a token for each, send what it says, compute on."""
        self._admit()
        outgoing: dict[asyncio.AbstractEventLoop, list[tuple[_Answer, Piece]]] = {}
        leaving: list[Row] = []
        for row, token in zip(
            self._decoder.rows, self._decoder.pick() if self._decoder.rows else (), strict=True
        ):
            voice: _Voice = row.owner
            if voice.answer.gone:
                leaving.append(row)
                continue
            piece = self._say(row, voice, token)
            if piece is not None:
                outgoing.setdefault(voice.answer.loop, []).append((voice.answer, piece))
                if piece.finish_reason is not None:
                    leaving.append(row)
        self._recent.append((time.monotonic(), len(self._decoder.rows)))
        for loop, pieces in outgoing.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, pieces)
        self._decoder.advance(leaving)

    def _say(self, row: Row, voice: _Voice, token: int) -> Piece | None:
        """What a token adds to a choice, if anything can be sent."""
        n_prompt = len(row.prompt_ids)
        if token in self._stops:
            return Piece(voice.index, self._end(row, voice), "stop", n_prompt, len(row.token_ids) + 1)
        row.token_ids.append(token)
        text, stopped = voice.text.add(token)
        n = len(row.token_ids)
        if stopped:
            return Piece(voice.index, text, "stop", n_prompt, n)
        if n >= voice.answer.max_tokens:
            return Piece(voice.index, text + self._end(row, voice), "length", n_prompt, n)
        return Piece(voice.index, text) if text else None

    def _end(self, row: Row, voice: _Voice) -> str:
        return voice.text.end(self._tokenizer.decode(row.token_ids, skip_special_tokens=True))

    def _admit(self) -> None:
        """Read waiting prompts, as many tokens as one step may take, and let in the rows that are read."""
        budget = PREFILL_TOKENS
        while budget > 0:
            if self._encoding is None:
                self._begin_encoding(budget)
            if self._encoding is None:
                return
            encoding = self._encoding
            try:
                before = encoding.n_done
                is_read = self._decoder.encode(encoding, budget)
                budget -= (encoding.n_done - before) * encoding.n_prompts
                if is_read:
                    self._decoder.take_in(encoding)
            except Exception as error:
                log.exception("prompts could not be encoded")
                failure = (
                    error if isinstance(error, ModelError) else ModelError("the prompt could not be encoded")
                )
                _send(_answers_of(encoding.rows), failure)
                is_read = True
            if is_read or all(row.owner.answer.gone for row in encoding.rows):
                self._encoding = None

    def _begin_encoding(self, budget: int) -> None:
        """Take waiting requests of one version whose prompts fit together into `budget`; a long one comes alone."""
        with self._wake:
            room = self._max_rows - len(self._decoder.rows)
            joining: list[_Answer] = []
            while self._waiting:
                answer = self._waiting[0]
                n_padded = max(len(each.prompt_ids) for each in (*joining, answer)) * (len(joining) + 1)
                fits = n_padded <= budget or (budget == PREFILL_TOKENS and not joining)
                if answer.request.n > room or not fits:
                    break
                if joining and answer.version != joining[0].version:
                    break
                joining.append(self._waiting.popleft())
                room -= answer.request.n
            if joining:
                rows = [row for answer in joining for row in self._make_rows(answer)]
                self._encoding = self._decoder.begin(rows)

    def _make_rows(self, answer: _Answer) -> list[Row]:
        request = answer.request
        seed = random.getrandbits(62) if request.seed is None else request.seed
        backend = self._tokenizer.backend_tokenizer
        return [
            Row(
                answer.prompt_ids,
                answer.version,
                request.temperature,
                request.top_p,
                torch.Generator().manual_seed((seed + index * 7_919) % 2**63),
                _Voice(answer, index, AnswerText(backend, request.stop)),
            )
            for index in range(request.n)
        ]

    def _fail(self, error: Exception, *, everyone: bool) -> None:
        """Tell the answers under way, and those that wait if `everyone`, and begin anew without them."""
        answers = _answers_of(self._decoder.rows)
        if everyone:
            with self._wake:
                answers = [*_answers_of(self._rows_under_way()), *self._waiting]
                self._waiting.clear()
                self._encoding = None
        _send(answers, error)
        if everyone:
            for _, loop, future in self._errands:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_set, future, error)
            self._errands.clear()
        self._decoder = BatchDecoder(self._adapters, pad_token_id=self._tokenizer.pad_token_id)


def _set(future: asyncio.Future[None], error: Exception | None) -> None:
    if not future.done():
        future.set_result(None) if error is None else future.set_exception(error)


def _deliver(pieces: Sequence[tuple[_Answer, Piece]]) -> None:
    for answer, piece in pieces:
        answer.pieces.put_nowait(piece)


def _answers_of(rows: Sequence[Row]) -> list[_Answer]:
    return list(dict.fromkeys(row.owner.answer for row in rows))


def _send(answers: Sequence[_Answer], error: Exception) -> None:
    for answer in answers:
        if not answer.loop.is_closed():
            answer.loop.call_soon_threadsafe(answer.pieces.put_nowait, error)
