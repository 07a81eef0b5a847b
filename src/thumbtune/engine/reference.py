"""The frozen reference: log π_ref of every branch that training will meet, computed once and kept on disk.

Before step 1 the policy is its own reference: full weights, a fresh adapter (which changes nothing yet) and an
adapter that was trained before all stand where they stood. So one pass before training needs no second model in
memory; an explicit reference model is scored the same way and can be dropped afterwards.

Results are keyed by content: weights, how the model uses them, precision, token ids and their order, and the versions
of what computes. Same key, same bytes, so a run that finds them cached is the run that computed them, bit for bit. A
file that cannot be read whole is computed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.paths import LogProbPath
from thumbtune.engine.ranks import Ranks
from thumbtune.version import __version__

_STAGING_BYTES = 1 << 26
"""Of pinned memory, by way of which weights come from a GPU to be hashed."""


def reference_log_probs(
    model: Any,
    branches: Sequence[Branch],
    *,
    path: LogProbPath,
    cache: Path | None,
    max_tokens: int = 4096,
    precision: str = "float32",
    fingerprint: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = Ranks(),
) -> Tensor:  # (N,) float32, nats
    """log π_ref of each branch, from the cache folder if these very branches were scored before.

    `cache` None keeps nothing. `fingerprint` saves hashing the weights twice. Of several ranks the main one reads and
    writes the cache, and each scores its part of the forwards: the result is one process's, bit for bit.
    """
    file = None
    if cache is not None:
        key = hashlib.sha256((fingerprint or fingerprint_weights(model)).encode())
        key.update(describe_forward(model).encode())
        key.update(f"/{path.name}/{precision}/{max_tokens}/{torch.get_num_threads()}".encode())
        key.update(f"/{__version__}/{torch.__version__}".encode())
        for branch in branches:
            for ids in branch:
                key.update(len(ids).to_bytes(8, "little"))
                key.update(np.asarray(ids, dtype=np.int64).tobytes())
        file = cache / f"{key.hexdigest()}.safetensors"
        cached = ranks.decide(partial(_read_cached, file, len(branches)))
        if cached is not None:
            return cached
    with ranks.in_step(model, partial(path.log_probs, model, branches[:1])):
        own = path.score(model, branches, max_tokens=max_tokens, on_progress=on_progress, part=ranks.part)
    scores = ranks.sum(own)
    if file is not None:
        ranks.decide(partial(_save_atomically, scores, file))
    return scores


def fingerprint_weights(model: Any, *, without: str | None = None) -> str:
    """A digest of every parameter and buffer: equal for equal weights, wherever they were loaded from.

    `without` leaves out names that contain it, such as "lora_" for the base under an adapter.
    """
    import xxhash

    digest, staging = xxhash.xxh3_128(), None
    for name, tensor in sorted(model.state_dict().items()):
        if without is not None and without in name:
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.is_cuda and staging is None:
            staging = torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=True)
        for part in tensor.detach().contiguous().flatten().view(torch.uint8).split(_STAGING_BYTES):
            on_cpu: Any = part.cpu() if staging is None else staging[: len(part)].copy_(part)
            digest.update(on_cpu.numpy())
    return digest.hexdigest()


def describe_forward(model: Any) -> str:
    """What changes log-probs without being a weight: the model's config, and which adapters act how strongly."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    for name in ("_name_or_path", "transformers_version", "use_cache"):
        settings.pop(name, None)
    adapters = [
        (name, module.active_adapters, [module.scaling.get(adapter) for adapter in module.active_adapters])
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and hasattr(module, "scaling") and not module.disable_adapters
    ]
    attention = getattr(config, "_attn_implementation", None)
    return json.dumps([settings, attention, adapters], sort_keys=True, default=str)


def _read_cached(path: Path, n_branches: int) -> Tensor | None:
    """The scores in a cache file, or None where there is none or it is not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        scores = load_file(path)["log_probs"]
    except (SafetensorError, KeyError):
        return None
    return scores if scores.shape == (n_branches,) else None


def _save_atomically(scores: Tensor, path: Path) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save({"log_probs": scores}))
        os.replace(staging, path)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise
