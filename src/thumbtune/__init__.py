"""Thumbs in, better model out.

`from thumbtune import KTOTrainer, KTOConfig` replaces the same import of another library.
The names below are imported on first use, so `import thumbtune` and `thumbtune --help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thumbtune.version import __version__

if TYPE_CHECKING:
    from thumbtune.training.method_configs import (
        APOZeroConfig,
        BCOConfig,
        CPOConfig,
        DPOConfig,
        IPOConfig,
        KTOConfig,
        ORPOConfig,
        RPOConfig,
        SimPOConfig,
    )
    from thumbtune.training.trainers import (
        APOZeroTrainer,
        BCOTrainer,
        CPOTrainer,
        DPOTrainer,
        IPOTrainer,
        KTOTrainer,
        ORPOTrainer,
        RPOTrainer,
        SimPOTrainer,
    )

__all__ = [
    "APOZeroConfig",
    "APOZeroTrainer",
    "BCOConfig",
    "BCOTrainer",
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "IPOConfig",
    "IPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "ORPOConfig",
    "ORPOTrainer",
    "RPOConfig",
    "RPOTrainer",
    "SimPOConfig",
    "SimPOTrainer",
    "__version__",
]

_HOME = {"Config": "thumbtune.training.method_configs", "Trainer": "thumbtune.training.trainers"}
"""Where the names with this ending live."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        ending = next(ending for ending in _HOME if name.endswith(ending))
        return getattr(import_module(_HOME[ending]), name)
    raise AttributeError(f"module 'thumbtune' has no attribute {name!r}")
