"""What a turn of the loop is told: one TOML file with a table for each part."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thumbtune.errors import ConfigError
from thumbtune.loop import canary, gate
from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.curate import CurationRules
from thumbtune.loop.gate import GateRules
from thumbtune.loop.rules import read_fields


@dataclass(frozen=True)
class LoopSettings:
    """The loop, from votes to a canary. `[curation]`, `[gate]`, `[canary]` and `[training]` are tables of their own."""

    model: str
    """Base model: folder, hub name or packaged:…; the one that the gateway serves."""
    folder: Path = Path("cycles")
    """Where snapshots, runs and measurements are kept, one folder a turn."""
    fewest_new_votes: int = 100
    """New votes since the last snapshot before a turn is worth it."""
    method: str = "kto"
    """kto or bco: what is collected are thumbs."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's config, such as learning_rate and num_train_epochs."""
    lora_r: int = 16
    lora_targets: str = "all-linear"
    old_rows_for_a_new_one: float | None = 1.0
    """Replay: rows from before the last snapshot that are learned from again, for each new one, against forgetting.
    None takes all of them."""
    most_rows: int | None = None
    """Rows of one run at most, new ones first."""
    n_prompts: int = 64
    """Held-out prompts that champion and candidate answer at the gate."""
    most_held_out_votes: int = 512
    """Held-out votes that they rank there; which ones follows from their content, as the snapshot's order does."""
    max_new_tokens: int = 64
    system: str | None = None
    """System message of the service, for the gate's probes."""
    judge: str | None = None
    """Who judges the answers at the gate: taste:…, check:file.py:function, or none; then held-out votes speak alone."""
    must_pass: Path | None = None
    """JSONL of prompts with what their answers have to hold."""
    max_minutes: float | None = None
    """Training that takes longer ends the turn, and the champion stays."""
    max_memory_gib: float | None = None
    """The same for the process's memory."""
    notify: Sequence[str] = ()
    """A command that is told of the turn's end: JSON on its standard input."""
    curation: CurationRules = CurationRules()
    gate: GateRules = GateRules()
    canary: CanaryRules = CanaryRules()

    def __post_init__(self) -> None:
        if self.method not in ("kto", "bco"):
            raise ConfigError(
                f"method {self.method}: the loop collects thumbs, so kto or bco learn from them"
            )
        for name in _ABOVE_ZERO:
            number = getattr(self, name)
            if number is not None and number <= 0:
                raise ConfigError(f"{name} is {number}, expected more than 0")
        if self.must_pass is not None and not self.must_pass.is_file():
            raise ConfigError(f"must_pass: there is no file {self.must_pass}")
        if self.notify and shutil.which(self.notify[0]) is None:
            raise ConfigError(f"notify: there is no program {self.notify[0]} that may be run")

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }


_ABOVE_ZERO = (
    "fewest_new_votes",
    "lora_r",
    "most_rows",
    "n_prompts",
    "most_held_out_votes",
    "max_new_tokens",
    "max_minutes",
    "max_memory_gib",
)


def read_loop_settings(path: Path | None, **given: Any) -> LoopSettings:
    """Settings from a TOML file and from options (those that are not None). Raises `ConfigError`."""
    with _naming(path):
        return _read_settings(
            _read_toml(path) | {name: value for name, value in given.items() if value is not None}
        )


def _read_settings(content: dict[str, Any]) -> LoopSettings:
    if "model" not in content:
        raise ConfigError(
            "name the base model: --model packaged:smollm2-135m-instruct, or model = in --config"
        )
    readers: dict[str, Any] = {
        "gate": gate.read_rules,
        "canary": canary.read_rules,
        "curation": lambda given: read_fields(CurationRules, given, "curation rule"),
    }
    for name, read in readers.items():
        if isinstance(content.get(name), Mapping):
            content[name] = read(content[name])
    return read_fields(LoopSettings, content, "loop setting")


def read_canary_rules(path: Path | None) -> CanaryRules:
    """The `[canary]` table of a TOML file; the defaults without one. Raises `ConfigError`."""
    with _naming(path):
        return canary.read_rules(_read_toml(path).get("canary", {}))


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Errors say in which file they are."""
    try:
        yield
    except ConfigError as error:
        raise error if path is None else ConfigError(f"{path}: {error}") from error


def _read_toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("cannot be read: it is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(error)) from error
