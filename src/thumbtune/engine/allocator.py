"""Where tensors lie on a CPU: glibc's allocator told to keep what training frees, and helped to find a use for it.

By default it gives every freed tensor of some size back to the kernel, which hands out zeroed pages for the next one:
on a CPU a sixth to a third of a training step. Kept memory is used again at once. What this costs: the process does
not shrink while it runs, and holes between tensors count. So that they stay few:

- Torch asks for aligned memory, for which glibc wants 96 bytes more than a tensor's own: where one was freed, none of
  the same size ever fits. What a layer frees soon gets that room, and what is saved for the backward takes its place.
- What is used up inside one function is scratch memory, which stays.

Measured in LOG.md (2026-11-25 and 26).
"""

from __future__ import annotations

import ctypes
import math
import platform
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_STEP = 64 * 2**20
"""The heap grows by so many bytes at a time."""
_ROOM = 256
"""Bytes behind a short-lived tensor: more than glibc wants for torch's alignment."""


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the rest of the process; False where it is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _STEP))
    return all(mallopt(name, value) == 1 for name, value in settings)


_scratch = threading.local()


def scratch(purpose: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor with anything in it, the caller's until this thread asks for the same purpose again."""
    dtype, size = dtype or like.dtype, math.prod(shape)
    held: dict[Any, Tensor] = _scratch.__dict__.setdefault("held", {})
    buffer = held.get((purpose, dtype, like.device))
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):  # or training could not write to it afterwards
            buffer = torch.empty(size, dtype=dtype, device=like.device)
        held[purpose, dtype, like.device] = buffer
    return buffer[:size].view(*shape)


def empty_short_lived(like: Tensor, *shape: int) -> Tensor:
    """A tensor with anything in it, to be freed before what is made after it."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size = math.prod(shape)
    return like.new_empty(size + _ROOM // like.element_size())[:size].view(shape)
