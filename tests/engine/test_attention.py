"""Packed attention against softmax over one branch at a time, for any window, cap, block and sharing of heads."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.families import assert_same
from thumbtune.engine import attention
from thumbtune.engine.attention import Rule, attend_packed
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.packing import PackedBatch, pack_branches, pack_riders

rules = st.builds(
    Rule,
    st.sampled_from([1.0, 0.35]),
    st.none() | st.integers(1, 12),
    st.none() | st.sampled_from([0.7, 5.0]),
)
steps = st.sampled_from([(1, 1, 2), (4, 8, 1024), (16, 32, 24)])
"""To multiples of what queries and keys of a block are filled up, and how many keys are summed at once."""
lengths = st.lists(  # per prompt: its length, and those of its completions
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=3)),
    min_size=1,
    max_size=3,
)


def make_branches(lengths: list[tuple[int, list[int]]]) -> list[Branch]:
    return [
        Branch([number] * n_prompt, [0] * n)
        for number, (n_prompt, completions) in enumerate(lengths)
        for n in completions
    ]


def draw(n_heads: int, n_tokens: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, n_heads, n_tokens, size, generator=generator).requires_grad_()


def attend_slowly(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:  # (H, T, E)
    """Softmax attention of one row that stands alone, query by query."""
    repeats = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
    rows = []
    for place in range(query.shape[1]):
        first = 0 if rule.window is None else max(0, place - rule.window + 1)
        scores = rule.scaling * torch.einsum("hd,hkd->hk", query[:, place], key[:, first : place + 1])
        if rule.soft_cap is not None:
            scores = rule.soft_cap * (scores / rule.soft_cap).tanh()
        rows.append(torch.einsum("hk,hke->he", scores.softmax(-1), value[:, first : place + 1]))
    return torch.stack(rows, 1)


def cut_into_blocks(patch: pytest.MonkeyPatch, block: int, steps: tuple[int, int, int]) -> None:
    names = ("QUERY_BLOCK", "QUERY_STEP", "KEY_STEP", "KEY_STRETCH")
    for name, value in zip(names, (block, *steps), strict=True):
        patch.setattr(attention, name, value)


def places_of_pieces(batch: PackedBatch) -> list[tuple[list[int], list[int]]]:
    """Per piece: places of the prompt before it, and its own."""
    return [
        (list(range(*piece.prompt)) if piece.prompt else [], list(range(piece.start, piece.stop)))
        for piece in batch.pieces
    ]


@given(
    lengths=lengths,
    rule=rules,
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    block=st.sampled_from([1, 2, 3, 256]),
    steps=steps,
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_it_equals_slow_attention_of_each_branch_value_and_gradient(
    lengths: list[tuple[int, list[int]]],
    rule: Rule,
    heads: tuple[int, int],
    block: int,
    steps: tuple[int, int, int],
    seed: int,
) -> None:
    batch = pack_branches(make_branches(lengths))
    query = draw(heads[0], batch.n_tokens, 5, seed)
    key, value = draw(heads[1], batch.n_tokens, 5, seed + 1), draw(heads[1], batch.n_tokens, 3, seed + 2)
    with pytest.MonkeyPatch.context() as patch:
        cut_into_blocks(patch, block, steps)
        found = attend_packed(query, key, value, batch, layer=0, rule=rule)
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
        slopes = torch.autograd.grad((found * weights).sum(), (query, key, value))
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    expected = torch.empty(found.shape, dtype=torch.float64)
    for before, own in places_of_pieces(batch):
        row = [x[0, :, [*before, *own]] for x in exact]
        expected[0, own] = attend_slowly(*row, rule)[:, len(before) :].transpose(0, 1)
    assert_same(found.double(), expected, tolerance=3e-6)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    for slope, slow in zip(slopes, wanted, strict=True):
        assert_same(slope.double(), slow, tolerance=1e-5)


@given(
    lengths=lengths,
    n_fed=st.lists(st.integers(2, 7), min_size=1, max_size=4),
    rule=rules,
    block=st.sampled_from([1, 3, 256]),
    steps=steps,
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_riders_attend_to_what_was_kept_as_if_it_stood_before_them(
    lengths: list[tuple[int, list[int]]],
    n_fed: list[int],
    rule: Rule,
    block: int,
    steps: tuple[int, int, int],
    seed: int,
) -> None:
    branches = make_branches(lengths)
    carrier = pack_branches(branches, keep_prompts=True)
    kept: list[Any] = [draw(heads, carrier.n_tokens, 4, seed + n) for n, heads in enumerate((4, 2, 2))]
    attend_packed(*kept, carrier, layer=3, rule=rule)
    riders = pack_riders(
        [Branch(branches[i % len(branches)].prompt_ids, [0] * n) for i, n in enumerate(n_fed)],
        carrier,
        branches,
    )
    own: list[Any] = [draw(heads, riders.n_tokens, 4, seed + 3 + n) for n, heads in enumerate((4, 2, 2))]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        cut_into_blocks(patch, block, steps)
        found = attend_packed(*own, riders, layer=3, rule=rule)
        for before, mine in places_of_pieces(riders):
            row = [torch.cat([k[0, :, before], o[0, :, mine]], 1) for k, o in zip(kept, own, strict=True)]
            expected = attend_slowly(*row, rule)[:, len(before) :].transpose(0, 1)
            assert_same(found[0, mine], expected, tolerance=1e-5)


def products_are_blind_to_zeros() -> bool:
    """Whether this machine's products of up to 1,024 keys give the same bits with zeros behind them."""
    weights, keys = draw(1, 48, 1024, 0)[0].bfloat16(), draw(1, 1024, 64, 1)[0].bfloat16()
    weights = weights.detach().index_fill(-1, torch.arange(600, 1024), 0)
    few = torch.bmm(weights[..., :608].contiguous(), keys[:, :608].contiguous())
    return torch.equal(few, torch.bmm(weights, keys))


@pytest.mark.parametrize(("n_prompt", "n_completion"), [(200, 300), (539, 503), (1100, 400)])
def test_a_completion_has_the_same_bits_beside_siblings_as_alone(n_prompt: int, n_completion: int) -> None:
    """Its blocks begin elsewhere, and are filled up by other numbers of zeros."""
    if not products_are_blind_to_zeros():
        pytest.skip("this machine's products of bf16 differ by how many zeros stand behind the keys")
    prompt = [1] * n_prompt
    alone = pack_branches([Branch(prompt, [2] * n_completion)])
    beside = pack_branches([Branch(prompt, [2] * n_completion), Branch(prompt, [3] * 5)])
    row = [draw(heads, alone.n_tokens, 64, seed).detach().bfloat16() for seed, heads in enumerate((9, 3, 3))]
    sibling = [draw(heads, 5, 64, seed).detach().bfloat16() for seed, heads in enumerate((9, 3, 3), 3)]
    both = [torch.cat(parts, 2).requires_grad_() for parts in zip(row, sibling, strict=True)]
    row = [x.requires_grad_() for x in row]
    found = attend_packed(*row, alone, layer=0, rule=Rule(0.35))
    other = attend_packed(*both, beside, layer=0, rule=Rule(0.35))[:, : alone.n_tokens]
    assert torch.equal(found, other)
    weights = draw(9, alone.n_tokens, 64, 6).detach().bfloat16().transpose(1, 2)
    (slope,) = torch.autograd.grad((found * weights).sum(), row[:1])
    (other_slope,) = torch.autograd.grad((other * weights).sum(), both[:1])
    assert torch.equal(slope, other_slope[:, :, : alone.n_tokens])


def test_a_window_of_one_sees_itself_alone() -> None:
    batch = pack_branches([Branch([1, 2, 3], [4, 5]), Branch([1, 2, 3], [6])])
    query, key, value = (draw(1, batch.n_tokens, 2, seed) for seed in range(3))
    found = attend_packed(query, key, value, batch, layer=0, rule=Rule(1.0, window=1))
    assert_same(found[0, :, 0], value[0, 0])


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_rows_of_weights_sum_to_one_and_future_keys_weigh_nothing(soft_cap: float | None) -> None:
    # with values that tell where they stand, a later place cannot leak into an earlier one
    batch = pack_branches([Branch([1] * 4, [2] * 3), Branch([1] * 4, [3] * 2)])
    query, key = draw(2, batch.n_tokens, 3, 0), draw(2, batch.n_tokens, 3, 1)
    ones = torch.ones(1, 2, batch.n_tokens, 1)
    rule = Rule(1.0, None, soft_cap)
    assert_same(
        attend_packed(query, key, ones, batch, layer=0, rule=rule), torch.ones(1, batch.n_tokens, 2, 1)
    )
    for place in range(batch.n_tokens):
        marked = torch.zeros(1, 2, batch.n_tokens, 1)
        marked[0, :, place] = 1
        felt = attend_packed(query, key, marked, batch, layer=0, rule=rule)[0, :, 0, 0] > 0
        sees = {
            0: range(9),
            1: range(1, 9),
            2: range(2, 9),
            3: range(3, 9),
            4: range(4, 7),
            5: (5, 6),
            6: (6,),
        }
        assert felt.nonzero().flatten().tolist() == list({**sees, 7: (7, 8), 8: (8,)}[place])


def test_only_query_key_and_value_are_kept_for_the_backward() -> None:
    # scores would be tokens × tokens × heads
    batch = pack_branches([Branch([1] * 20, [2] * 30)])
    kept: list[int] = []
    query, key, value = (draw(2, batch.n_tokens, 4, seed) for seed in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend_packed(query, key, value, batch, layer=0, rule=Rule(1.0))
    assert kept == [2 * 50 * 4] * 3


class Shapes(TorchDispatchMode):
    """Notes the shapes of batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[tuple[torch.Size, torch.Size]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default:
            self.met.add((args[0].shape, args[1].shape))
        return func(*args, **kwargs or {})


def count_shapes(steps: tuple[int, int, int]) -> int:
    draw_length = random.Random(0)
    with Shapes() as shapes, pytest.MonkeyPatch.context() as patch:
        cut_into_blocks(patch, 160, steps)
        for seed in range(20):
            pairs = [(draw_length.randint(1, 300), [draw_length.randint(2, 200)]) for _ in range(4)]
            batch = pack_branches(make_branches(pairs))
            attend_packed(
                *(draw(1, batch.n_tokens, 2, seed) for _ in range(3)), batch, layer=0, rule=Rule(1.0)
            )
    return len(shapes.met)


def test_batches_of_new_lengths_bring_few_new_shapes_of_products() -> None:
    # oneDNN keeps what it made for each of them: see KEY_STEP
    chosen = (attention.QUERY_STEP, attention.KEY_STEP, attention.KEY_STRETCH)
    assert count_shapes(chosen) < count_shapes((1, 1, attention.KEY_STRETCH)) / 2


def test_under_autocast_it_computes_in_its_precision_with_a_float32_softmax() -> None:
    batch = pack_branches([Branch([1] * 9, [2] * 8), Branch([1] * 9, [2] * 3)])
    inputs = [draw(2, batch.n_tokens, 4, seed) for seed in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_packed(*inputs, batch, layer=0, rule=Rule(0.5))
    assert found.dtype == torch.bfloat16
    rounded = [x.detach().bfloat16().float() for x in inputs]
    expected = attend_packed(*rounded, batch, layer=0, rule=Rule(0.5))
    assert_same(found.float(), expected, tolerance=2**-7)  # two roundings: of the weights, of the result
    slopes = torch.autograd.grad(found.float().sum(), inputs)
    assert all(slope.dtype == torch.float32 for slope in slopes)
