"""The engine on a GPU: the kernel over pieces of a packed row, and each family's packed row. Skipped without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.families import (
    FAMILIES,
    N_TOKENS,
    assert_same,
    assert_same_gradients,
    build,
    gradients,
    slow_log_probs,
)
from engine.test_attention import draw, make_branches
from thumbtune.engine import attention, reference
from thumbtune.engine.attention import Rule, attend_packed
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.packing import pack_branches, pack_riders
from thumbtune.engine.paths import choose_path

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

LENGTHS = [(5, [3]), (300, [40, 1, 77]), (17, [2, 130]), (1, [1]), (70, [600])]
HALF_TOLERANCE = 2e-2
"""Of the largest number: bf16 rounds to one part in 256."""


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each call of the kernel."""
    calls: list[int] = []
    own = attention.attend_varlen

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return own(*args, **kwargs)

    monkeypatch.setattr(attention, "attend_varlen", counted)
    return calls


def rounded(x: Tensor) -> Tensor:
    """What bf16 holds of it, as float32."""
    return x.detach().bfloat16().float().requires_grad_()


@pytest.mark.parametrize("window", [None, 1, 12, 100])
@pytest.mark.parametrize(("heads", "size"), [((4, 2), 8), ((9, 3), 64), ((2, 2), 128), ((4, 1), 256)])
@pytest.mark.parametrize("lengths", [LENGTHS, [(30, [9]), (200, [400])]], ids=["siblings", "alone"])
def test_the_kernel_gives_what_blocks_give_value_and_gradient(
    lengths: list[Any], heads: tuple[int, int], size: int, window: int | None, kernel_calls: list[int]
) -> None:
    branches = make_branches(lengths)
    carrier = pack_branches(branches, keep_prompts=True)
    row = [
        rounded(draw(n, carrier.n_tokens, size, seed))
        for seed, n in enumerate((heads[0], heads[1], heads[1]))
    ]
    rule = Rule(size**-0.5, window)
    others = [Branch(branch.prompt_ids, [0] * 33) for branch in branches]
    ride: list[Tensor] = []
    found: dict[str, list[Tensor]] = {}
    for device in ("cpu", "cuda"):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        batch = pack_branches(branches, keep_prompts=True).to(device)
        inputs = [x.detach().to(device, dtype).requires_grad_() for x in row]
        output = attend_packed(*inputs, batch, layer=0, rule=rule)
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(device)
        grads = torch.autograd.grad((output * weights).sum(), inputs)
        riders = pack_riders(others, batch, branches).to(device)
        if not ride:
            ride = [rounded(draw(n, riders.n_tokens, size, 7 + n)) for n in (heads[0], heads[1], heads[1])]
        with torch.no_grad():
            riding = attend_packed(*(x.to(device, dtype) for x in ride), riders, layer=0, rule=rule)
        found[device] = [x.detach().float().cpu() for x in (output, *grads, riding)]
    assert len(kernel_calls) == 2
    for expected, on_gpu in zip(found["cpu"], found["cuda"], strict=True):
        # a window of one key leaves queries and keys no gradient
        largest = float(expected.abs().max()) or 1.0
        assert_same(on_gpu / largest, expected / largest, tolerance=HALF_TOLERANCE)


def make_rows() -> list[Branch]:
    draw_ids = torch.Generator().manual_seed(3)
    ids = torch.randint(0, N_TOKENS - 1, (60,), generator=draw_ids).tolist()
    first, second = ids[:9], ids[9:12]
    return [
        Branch(first, ids[12:19]),
        Branch(second, ids[19:21]),
        Branch(first, ids[21:27]),
        Branch(second, ids[30:36]),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_packs_on_a_gpu_in_float32(family: str) -> None:
    branches, model = make_rows(), build(family)
    expected = slow_log_probs(model, branches)
    expected_gradients = gradients(model, expected)
    model.cuda()
    path = choose_path(model, "auto", pad_token_id=N_TOKENS - 1)
    assert path.name == "packed", path.reason
    log_probs = path.log_probs(model, branches)
    found = {name: gradient.cpu() for name, gradient in gradients_on(log_probs, model).items()}
    assert_same(log_probs.cpu(), expected, tolerance=1e-4)
    assert_same_gradients(found, expected_gradients, tolerance=1e-4)


def test_weights_on_a_gpu_have_the_fingerprint_that_they_have_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "_STAGING_BYTES", 1000)
    model = build("llama")
    on_cpu = reference.fingerprint_weights(model)
    assert reference.fingerprint_weights(model.cuda()) == on_cpu
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1
    assert reference.fingerprint_weights(model) != on_cpu


def gradients_on(log_probs: Tensor, model: Any) -> dict[str, Tensor]:
    with torch.device(log_probs.device):
        return gradients(model, log_probs)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "smollm3", "granite"])
def test_a_family_in_bf16_calls_the_kernel_and_stays_near_float32(
    family: str, kernel_calls: list[int]
) -> None:
    """As near as its own plain forward in bf16 is, three times over."""
    branches = make_rows()
    model = widen(family)
    expected = slow_log_probs(model, branches)
    model.cuda()
    path = choose_path(model, "auto", pad_token_id=N_TOKENS - 1)
    padded = choose_path(model, "padded", pad_token_id=N_TOKENS - 1)
    with torch.autocast("cuda", torch.bfloat16):
        found = path.log_probs(model, branches).cpu()
        plain = padded.log_probs(model, branches).cpu()
        ours, carrier = path.carry(model, branches)
        riding = carrier.ride(model, branches).cpu()
    assert len(kernel_calls) >= 2 * model.config.num_hidden_layers
    allowed = max(3 * float((plain - expected).detach().abs().max()), 0.05)
    for log_probs in (found, ours.cpu(), riding):
        assert float((log_probs - expected).detach().abs().max()) <= allowed


def widen(family: str) -> Any:
    """The family with heads of a size that the kernel takes."""
    make = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        shape = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
        return make(**shape).eval()  # type: ignore[call-arg]
