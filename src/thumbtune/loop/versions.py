"""Names of model versions, made from their content: equal names, equal weights, wherever they were loaded from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from thumbtune.errors import ModelError
from thumbtune.store.models import ModelVersion

DIGITS = 12
"""Hex digits of a digest in a name: 48 bits."""

_PLACES = ("base_model_name_or_path", "revision", "parent_library", "auto_mapping")
"""Fields of an adapter's config that say where things lay, not what they are."""


def describe_base(model: Any, location: str) -> ModelVersion:
    """A loaded base model's version."""
    from thumbtune.engine.reference import fingerprint_weights

    return ModelVersion(f"{_slug(location)}-{fingerprint_weights(model)[:DIGITS]}", "base", location)


def is_base(model: Any, version: ModelVersion) -> bool:
    """Whether a loaded model has the weights of a base version, wherever it was loaded from."""
    return describe_base(model, version.location).version == version.version


def describe_adapter(folder: Path, base: str) -> ModelVersion:
    """The version of a PEFT adapter's folder, with its training run beside it where there is one.

    Raises `ModelError` for a folder without an adapter in safetensors.
    """
    config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise ModelError(f"{folder} holds no adapter: {file.name} is missing")
    try:
        config = json.loads(config_file.read_text())
        content = {name: value for name, value in config.items() if name not in _PLACES}
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{config_file} is no JSON object: {error}") from error
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    with open(weights, "rb") as content_file:
        digest.update(hashlib.file_digest(content_file, "sha256").digest())
    manifest = _read_manifest(folder)
    return ModelVersion(
        version=f"{_slug(folder.resolve().name)}-{digest.hexdigest()[:DIGITS]}",
        kind="adapter",
        location=str(folder.resolve()),
        parent=base,
        snapshot=manifest.get("data", {}).get("digest"),
        config={
            "method": manifest.get("method"),
            "seed": manifest.get("seed"),
            "run": manifest.get("digest"),
        },
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _slug(location: str) -> str:
    name = location.rstrip("/").split("/")[-1].split(":")[-1]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "model"
