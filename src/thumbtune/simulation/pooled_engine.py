"""An engine whose answers are a real model's, drawn beforehand: a year of chats in minutes.

For each version and each prompt of a catalogue the model answers a few times, all prompts together in large batches;
each chat then gets one of these answers. So votes are on what the model says, and a chat costs no decoding.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from thumbtune.data.synth.simulate import as_messages
from thumbtune.engine.loading import load_model_and_tokenizer
from thumbtune.evaluation.generate import Sampled
from thumbtune.evaluation.judge import Sampling, sample_with_cache
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.served_adapters import ServedAdapters
from thumbtune.loop.versions import describe_base
from thumbtune.records import Text, text_key
from thumbtune.store.models import ModelVersion


class PooledEngine:
    """A model with its adapters as an `Engine` that knows a catalogue of prompts."""

    def __init__(
        self,
        location: str,
        catalogue: Sequence[Text],
        sampling: Sampling,
        folder: Path,
        on_pool: Callable[[str], Any] = lambda _: nullcontext(lambda *_: None),
    ) -> None:
        self._location = location
        self.catalogue = list(catalogue)
        """The prompts that a version answers once it is loaded."""
        self._sampling = sampling
        self._folder = folder
        self._on_pool = on_pool
        self._pools: dict[str, dict[str, list[Sampled]]] = {}
        self._random = random.Random(sampling.seed)

    async def start(self) -> list[ModelVersion]:
        self._model, self._tokenizer = await asyncio.to_thread(load_model_and_tokenizer, self._location)
        self.base = await asyncio.to_thread(describe_base, self._model, self._location)
        self._adapters = ServedAdapters(self._model, self.base.version)
        await asyncio.to_thread(self._fill, self.base.version)
        return [self.base]

    @property
    def versions(self) -> list[str]:
        return list(self._pools)

    async def load_adapter(self, version: ModelVersion) -> None:
        if version.version not in self._pools:
            await asyncio.to_thread(self._load, version)

    async def unload_adapter(self, version: str) -> None:
        del self._pools[version]

    async def complete(self, body: Mapping[str, Any], version: str) -> dict[str, Any]:
        said = self._random.choice(self.find_pool(version, body["messages"]))
        n_tokens = len(said.scored_ids)
        return {
            "id": "pooled",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": version,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": said.text},
                    "finish_reason": "stop" if said.finished else "length",
                }
            ],
            "usage": {"prompt_tokens": 0, "completion_tokens": n_tokens, "total_tokens": n_tokens},
        }

    async def stream(self, body: Mapping[str, Any], version: str) -> AsyncIterator[dict[str, Any]]:
        answer = await self.complete(body, version)
        choice = answer["choices"][0]
        yield {**answer, "choices": [{"index": 0, "delta": choice["message"], "finish_reason": None}]}
        yield {**answer, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}

    def find_pool(self, version: str, prompt: Text) -> list[Sampled]:
        """What a version says to a prompt. Raises a `Problem` for one outside of the catalogue."""
        found = self._pools[version].get(text_key(as_messages(prompt)))
        if not found:
            raise Problem(400, "the simulation does not know this prompt", code="unknown_prompt")
        return found

    def describe_load(self) -> dict[str, float]:
        return {"pools": len(self._pools)}

    async def close(self, drain_seconds: float) -> None:
        self._pools.clear()

    def _load(self, version: ModelVersion) -> None:
        self._adapters.load(version.version, Path(version.location))
        self._fill(version.version)
        self._adapters.unload(version.version)  # its answers are known

    def _fill(self, version: str) -> None:
        self._adapters.choose([version])
        path = self._folder / f"{version}.json"
        with self._on_pool(version) as progress:
            rows = sample_with_cache(
                self._adapters.model,
                self._tokenizer,
                self.catalogue,
                self._sampling,
                path,
                version,
                progress,
            )
        self._pools[version] = {
            text_key(as_messages(prompt)): row for prompt, row in zip(self.catalogue, rows, strict=True)
        }
