"""Thumbs in, better model out.

`from thumbtune import KTOTrainer, KTOConfig` replaces the same import of another library.
The names below are imported on first use, so `import thumbtune` and `thumbtune --help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thumbtune.version import __version__

if TYPE_CHECKING:
    from thumbtune.training.config import DPOConfig, KTOConfig
    from thumbtune.training.trainer import DPOTrainer, KTOTrainer

__all__ = ["DPOConfig", "DPOTrainer", "KTOConfig", "KTOTrainer", "__version__"]

_HOME = {
    "KTOConfig": "thumbtune.training.config",
    "DPOConfig": "thumbtune.training.config",
    "KTOTrainer": "thumbtune.training.trainer",
    "DPOTrainer": "thumbtune.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'thumbtune' has no attribute {name!r}")
