"""The stores that the store's tests use, a crowd's votes for them, and a loop small enough to turn in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.conftest import store, store_url
from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.curate import CurationRules
from thumbtune.loop.gate import GateRules
from thumbtune.loop.settings import LoopSettings
from thumbtune.loop.versions import describe_base
from thumbtune.records import Completion, Vote
from thumbtune.store.database import Store, now_us
from thumbtune.store.models import point, register_version
from thumbtune.store.votes import Press, write_completions, write_votes

__all__ = ["store", "store_url"]

OnStep = Callable[[str], Any]


def press(
    store: Store,
    person: str,
    text: str,
    label: bool | None,
    *,
    prompt: str = "Which?",
    version: str = "base-1",
    arm: str = "champion",
    name: str | None = None,
    **changes: Any,
) -> str:
    """One answer to one person and their thumb on it; None leaves it without. Gives the answer's id."""
    at = now_us()
    name = name or f"chatcmpl-{at:014x}{abs(hash((person, text, prompt))) % 16**6:06x}"
    settings: dict[str, Any] = {
        "id": name,
        "user_key": person,
        "conversation_key": f"talk of {person}, {prompt}"[:64],
        "messages": [{"role": "user", "content": prompt}],
        "completion": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "model_version": version,
        "arm": arm,
        "created_us": at,
    }
    completion = Completion(**{**settings, **changes})
    with store.write() as connection:
        write_completions(connection, [completion])
        if label is not None:
            write_votes(connection, [Press(Vote(completion.id, person, label, at))])
    return name


def fill(store: Store, n: int = 120, *, first: int = 0) -> None:
    """Votes of `n` people, one each: 👍 on "yes", 👎 on "no"."""
    rows, presses = [], []
    for i in range(first, first + n):
        at, up = now_us(), i % 2 == 0
        rows.append(
            Completion(
                id=f"c{i:06}",
                user_key=f"person {i}",
                conversation_key=f"talk {i}",
                messages=[{"role": "user", "content": f"Question {i}?"}],
                completion={"role": "assistant", "content": f"yes {i}" if up else f"no {i}"},
                finish_reason="stop",
                model_version="base-1",
                arm="champion",
                created_us=at,
            )
        )
        presses.append(Press(Vote(f"c{i:06}", f"person {i}", up, at)))
    with store.write() as connection:
        write_completions(connection, rows)
        write_votes(connection, presses)


def make_settings(model: Path, folder: Path, **changes: Any) -> LoopSettings:
    """A turn of three steps, with a gate that lets pass what a few prompts can tell."""
    settings: dict[str, Any] = {
        "model": str(model),
        "folder": folder / "cycles",
        "fewest_new_votes": 50,
        "training": {
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "max_length": 128,
            "save_steps": 1,
        },
        "lora_r": 2,
        "n_prompts": 4,
        "most_held_out_votes": 24,
        "max_new_tokens": 6,
        "curation": CurationRules(held_out_share=0.3, near_duplicates=None),
        "gate": GateRules(
            fewest_votes=10, fewest_prompts=2, auc_drop=1.0, repetition_more=1.0, longest=100.0, shortest=0.0
        ),
        "canary": CanaryRules(stages=(0.25, 0.5), votes_per_stage=5),
    }
    return LoopSettings(**{**settings, **changes})


def serve_base(store: Store, model: Path) -> str:
    """Put the base in service, as a gateway's first start does; gives its version."""
    from thumbtune.engine.loading import load_model

    version = describe_base(load_model(model), str(model))
    register_version(store, version)
    point(store, version.version, actor="test")
    return version.version


@pytest.fixture
def say_nothing() -> OnStep:
    """Progress that nobody sees."""
    from contextlib import nullcontext

    return lambda name: nullcontext(lambda *_: None)
