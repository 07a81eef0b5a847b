"""What a run was made of, written before step 1.

Guaranteed: two runs whose manifests have the same `digest` on the same machine give the same weights, byte for byte.
The digest covers the settings, the data, the plan, the reference, the code and its libraries, the threads and the
processor; it leaves out names and times (`run`), which do not matter. `identity` covers what was asked for alone
(method, settings, rows, model, plan): it tells whether a run may be continued under newer libraries.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from thumbtune.data.chat import template_digest
from thumbtune.engine.reference import fingerprint_weights

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy", "bitsandbytes")

_NOT_SETTINGS = {
    "reference_cache",
    "output_dir",
    "logging_dir",
    "run_name",
    "report_to",
    "disable_tqdm",
    "hub_token",
    "resume_from_checkpoint",
}


def build_manifest(
    *,
    config: Any,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    plan: Mapping[str, Any],
    model_name: str,
) -> dict[str, Any]:
    """A manifest of JSON values, with its digest."""
    import thumbtune

    content = {
        "thumbtune": thumbtune.__version__,
        "git_commit": git_commit(),
        "code": digest_code(),
        "method": config.method,
        "seed": config.seed,
        "deterministic": describe_determinism(),
        "config": {k: v for k, v in config.to_dict().items() if k not in _NOT_SETTINGS},
        "adjustments": list(config.adjustments),
        "data": dict(data),
        "model": dict(model),
        "plan": dict(plan),
        "versions": package_versions(),
        "hardware": describe_hardware(),
        "processes": {"number": config.world_size, "kind": describe_processes()},
    }
    asked_for = {key: content[key] for key in ("method", "config", "data", "model", "plan")}
    return {
        "digest": _digest(content),
        "identity": _digest(asked_for),
        **content,
        "run": {"output_dir": str(config.output_dir), "model_name": model_name, "started_at": now()},
    }


def describe_run(trainer: Any) -> dict[str, Any]:
    """A trainer's manifest. Of a stream it tells the first window: the rest is not there yet."""
    rows = trainer.train_dataset.rows
    epochs = 1 if trainer.stream else math.ceil(trainer.planned_steps / trainer.steps_per_epoch)
    return build_manifest(
        config=trainer.config,
        model_name=trainer.model_name,
        data={
            "digest": rows.digest,
            "rows": len(rows),
            "classes": trainer.class_counts,
            "counts": dict(rows.counts),
            "template_digest": template_digest(trainer.processing_class),
            "tokens_digest": rows.digest_tokens(),
            "eval": {
                name: {"digest": dataset.rows.digest, "tokens_digest": dataset.rows.digest_tokens()}
                for name, dataset in trainer._eval_sets().items()
            },
        },
        model={
            "architecture": digest_architecture(trainer.model),
            "weights": fingerprint_weights(trainer.model),
            "reference": trainer._fingerprint_reference(),
            "adapters": describe_adapters(trainer.model),
        },
        plan={
            "digest": trainer.plan.digest(epochs),
            "batch_size": trainer.plan.batch_size,
            "steps": trainer.planned_steps,
            "one_sided_batches": trainer.plan.count_one_sided(),
        },
    )


def write_json(content: Any, path: Path) -> None:
    """Write JSON so that the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False, default=str)
            file.write("\n")
        os.chmod(staging, 0o644)
        os.replace(staging, path)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise


def digest_architecture(model: Any) -> str:
    """SHA-256 over the class and config of a model, without the path it came from."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = {k: v for k, v in base.config.to_dict().items() if k != "_name_or_path"}
    return _digest({"class": type(base).__name__, "config": settings})


def describe_adapters(model: Any) -> dict[str, dict[str, Any]]:
    """Settings of each PEFT adapter on a model as JSON values; weights alone do not tell its scale."""
    return {
        name: {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in adapter.to_dict().items()
            if key != "base_model_name_or_path"
        }
        for name, adapter in getattr(model, "peft_config", {}).items()
    }


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def describe_hardware() -> dict[str, Any]:
    """The processor, its cores, and the memory in GiB."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
    }


def describe_processes() -> str:
    """How accelerate has the processes work together: "NO", "MULTI_GPU", "FSDP" …"""
    from accelerate import PartialState

    return str(PartialState().distributed_type.value)


def describe_determinism() -> dict[str, Any]:
    import torch

    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def digest_code(*folders: str) -> str:
    """SHA-256 over thumbtune's own source files, since a commit does not tell one uncommitted change from another.

    Of the whole package, or of these folders of it.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(path for folder in folders or (".",) for path in (package / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def git_commit() -> str | None:
    """The commit of the source tree that runs, with `+changes` where it has uncommitted ones; None outside git."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")
