"""What the training tests share: rows, a policy, short settings, and child processes that may be killed."""

from __future__ import annotations

import copy
import gc
import importlib
import json
import multiprocessing
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = ["torch", "peft", "transformers.trainer", "thumbtune.training.trainers"]


@pytest.fixture(scope="session", autouse=True)
def _start_forkserver() -> None:
    """One process imports torch and is forked for each child: seconds saved per child."""
    from multiprocessing import forkserver

    _PROCESSES.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


@pytest.fixture(scope="session", autouse=True)
def _spare_the_garbage_collector(_start_forkserver: None) -> Iterator[None]:
    """Each run starts with a full collection; what the imports made need not be looked through every time."""
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reference cache of its own, and one thread, so that bits can be compared and cores shared."""
    import torch

    monkeypatch.setenv("THUMBTUNE_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Lab:
    """A small bench: each call of `trainer` starts from the same weights."""

    model_path: Path
    tokenizer: Any
    folder: Path
    blueprint: Any

    def model(self) -> Any:
        return copy.deepcopy(self.blueprint)

    def lora(self, **settings: Any) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
        )

    def thumbs(self, n: int) -> list[dict[str, Any]]:
        """Two rows per prompt, 👎 then 👍, of uneven lengths."""
        return [
            {
                "prompt": f"question {i // 2}?",
                "completion": f"yes {'.' * (i % 5)}" if i % 2 else f"no {i}",
                "label": bool(i % 2),
            }
            for i in range(n)
        ]

    def pairs(self, n: int) -> list[dict[str, Any]]:
        return [
            {"prompt": f"question {i}?", "chosen": f"yes {'.' * (i % 5)}", "rejected": f"no {i}"}
            for i in range(n)
        ]

    def config(self, method: str = "kto", **settings: Any) -> Any:
        from thumbtune.training.settings import CONFIGS

        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
        short = {"learning_rate": 1e-2, "logging_steps": 1, "per_device_train_batch_size": 4}
        return CONFIGS[method](**{"output_dir": str(self.folder / "run"), **quiet, **short, **settings})

    def trainer(
        self,
        method: str = "kto",
        rows: Any = None,
        *,
        model: Any = None,
        adapter: Any = None,
        given: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        """A trainer of the method; `given` goes to the trainer, `settings` to its config."""
        from thumbtune.training.methods import METHODS
        from thumbtune.training.trainers import TRAINERS

        if rows is None:
            rows = self.pairs(8) if METHODS[method].paired else self.thumbs(8)
        return TRAINERS[method](
            model=self.model() if model is None else model,
            args=self.config(method, **settings),
            train_dataset=rows,
            **{"processing_class": self.tokenizer, "peft_config": adapter, **(given or {})},
        )

    def run_child(self, script: str, **values: Any) -> Child:
        """Run a script in a process of its own, with `values` as its globals and `report(...)` to answer."""
        folder = self.folder / f"child-{len(list(self.folder.glob('child-*')))}"
        folder.mkdir()
        path = folder / "script.py"
        path.write_text(_PREAMBLE + script)
        known = {
            "MODEL": str(self.model_path),
            "ANSWER": str(folder / "answer.json"),
            "CACHE": str(self.folder / "cache"),  # they are forked from a server that knows of another
        }
        process = _PROCESSES.Process(
            target=runpy.run_path, args=(str(path), {**known, **values}), daemon=True
        )
        process.start()
        return Child(process, folder / "answer.json")


@dataclass
class Child:
    process: Any
    _answer: Path

    def wait(self, seconds: float = 120) -> int:
        """The exit code: minus the signal's number for a killed process."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the child hangs"
        return int(self.process.exitcode)

    @property
    def answer(self) -> Any:
        return json.loads(self._answer.read_text())


_PREAMBLE = """\
import json, os, signal, sys, time
import torch
os.environ["THUMBTUNE_CACHE"] = CACHE
torch.set_num_threads(1)
from pathlib import Path
from transformers import TrainerCallback
from thumbtune import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from thumbtune.errors import ThumbtuneError


def report(**content):
    Path(ANSWER).write_text(json.dumps(content))


"""


@pytest.fixture(scope="session")
def _blueprint(tiny_model_path: Path) -> Any:
    from thumbtune.engine.loading import load_model

    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def module_lab(
    tiny_model_path: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, _blueprint: Any
) -> Lab:
    """A bench whose children answer several tests."""
    return Lab(tiny_model_path, copy.deepcopy(tiny_tokenizer), tmp_path_factory.mktemp("lab"), _blueprint)


@pytest.fixture
def lab(tiny_model_path: Path, tiny_tokenizer: Any, tmp_path: Path, _blueprint: Any) -> Lab:
    return Lab(tiny_model_path, copy.deepcopy(tiny_tokenizer), tmp_path, _blueprint)
