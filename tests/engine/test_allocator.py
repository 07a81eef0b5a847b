"""Where tensors lie: what is freed soon leaves room for its like, and scratch memory is the caller's alone."""

from __future__ import annotations

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from thumbtune.engine.allocator import empty_short_lived, scratch

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's allocator")

REUSE = """
import torch
from thumbtune.engine.allocator import empty_short_lived, keep_freed_memory

assert keep_freed_memory()
like = torch.empty(0, dtype=torch.bfloat16)
reused, saved = 0, []
for layer in range(20):
    soon_freed = empty_short_lived(like, 1500, 576)
    saved.append(torch.empty(1500, 576, dtype=torch.bfloat16))
    place = soon_freed.data_ptr()
    del soon_freed
    saved.append(torch.empty(1500, 576, dtype=torch.bfloat16))
    reused += abs(saved[-1].data_ptr() - place) < 256
print(reused)
"""


@on_glibc
def test_what_is_saved_takes_the_place_of_what_was_freed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REUSE], capture_output=True, text=True, timeout=100, check=True
    )
    assert int(done.stdout) >= 18  # other small requests may have cut into one


def test_a_short_lived_tensor_is_one_like_any_other() -> None:
    like = torch.empty(3, dtype=torch.bfloat16)
    made = empty_short_lived(like, 4, 5)
    assert (made.shape, made.dtype, made.is_contiguous()) == ((4, 5), torch.bfloat16, True)
    made[:] = 1
    assert made.sum() == 20
    assert empty_short_lived(like, 0, 5).shape == (0, 5)


def test_scratch_memory_is_one_a_purpose_and_a_thread_and_grows() -> None:
    like = torch.empty(0)
    first, other = scratch("first", (3, 4), like), scratch("other", (3, 4), like)
    assert first.data_ptr() != other.data_ptr()
    assert scratch("first", (2, 2), like).data_ptr() == first.data_ptr()
    assert scratch("first", (2, 2), like, torch.bfloat16).dtype == torch.bfloat16
    assert scratch("first", (30, 40), like).shape == (30, 40)
    with ThreadPoolExecutor(1) as thread:
        elsewhere = thread.submit(scratch, "other", (3, 4), like).result()
    assert elsewhere.data_ptr() != other.data_ptr()


def test_scratch_memory_that_an_inference_made_serves_training() -> None:
    with torch.inference_mode():
        scratch("inference", (3,), torch.empty(0)).fill_(1)
    weight = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        product = torch.mul(weight, 2, out=scratch("inference", (3,), weight))
    assert product.sum() == 6
