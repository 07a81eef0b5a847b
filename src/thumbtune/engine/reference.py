"""The frozen reference: log π_ref of every branch that training will meet, computed once and kept on disk.

Before step 1 the policy is its own reference: full weights, a fresh adapter (which changes nothing yet) and an
adapter that was trained before all stand where they stood. So one pass before training needs no second model in
memory; an explicit reference model is scored the same way and can be dropped afterwards.

Results are keyed by content: weights, precision, token ids and their order. Same key, same bytes, so a run that
finds them cached is the run that computed them, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thumbtune.engine.logprobs import Branch, score_branches


def reference_log_probs(
    model: Any,
    branches: Sequence[Branch],
    *,
    pad_token_id: int,
    cache: Path | None,
    max_tokens: int = 4096,
    precision: str = "float32",
    fingerprint: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:  # (N,) float32, nats
    """log π_ref of each branch, from the cache folder if these very branches were scored before.

    `cache` None keeps nothing. `fingerprint` saves hashing the weights twice.
    """
    path = None
    if cache is not None:
        key = hashlib.sha256((fingerprint or fingerprint_weights(model)).encode())
        key.update(f"/{precision}/{max_tokens}/{torch.get_num_threads()}".encode())
        for branch in branches:
            key.update(repr((list(branch.prompt_ids), list(branch.completion_ids))).encode())
        path = cache / f"{key.hexdigest()}.safetensors"
        if path.is_file():
            from safetensors.torch import load_file

            return load_file(path)["log_probs"]
    scores = score_branches(
        model, branches, pad_token_id=pad_token_id, max_tokens=max_tokens, on_progress=on_progress
    )
    if path is not None:
        _save_atomically(scores, path)
    return scores


def fingerprint_weights(model: Any, *, without: str | None = None) -> str:
    """A digest of every parameter and buffer: equal for equal weights, wherever they were loaded from.

    `without` leaves out names that contain it, such as "lora_" for the base under an adapter.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        if without is not None and without in name:
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
