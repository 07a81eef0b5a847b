"""Packed equals padded equals a plain forward of one row at a time: values and all gradients, family by family."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.families import (
    FAMILIES,
    PAD,
    WINDOW,
    CountedForwards,
    assert_same,
    assert_same_gradients,
    branch_lists,
    build,
    completions,
    gradients,
    slow_log_probs,
    some,
)
from thumbtune.engine import attention, head
from thumbtune.engine.fast_modules import speed_up_modules
from thumbtune.engine.logprobs import Branch, evaluating
from thumbtune.engine.paths import PackedPath, PaddedPath, choose_path

PADDED = PaddedPath(PAD, "asked for")
SIBLINGS = [
    Branch([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17]),
    Branch([18, 19], [20]),
    Branch([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [21]),
    Branch([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [22, 23, 24]),
    Branch([18, 19], [25, 26, 27, 28, 29, 30, 31]),
    Branch([18, 19], [20]),  # the same as another
    Branch([32, 33, 34], [35, 36]),  # alone under its prompt
]
RIDERS = [
    Branch([32, 33, 34], [12, 13, 14, 15, 16, 17, 20]),
    Branch([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [20]),
    Branch([18, 19], [35, 36]),
    Branch([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [25, 26, 27, 28, 29, 30, 31]),
]


@lru_cache
def plain(family: str) -> Any:
    """A model that no one has changed."""
    return build(family)


@lru_cache
def packing(family: str, fast: bool = False) -> tuple[Any, PackedPath]:
    """The same model, taking packed batches."""
    model = copy.deepcopy(plain(family))
    path = choose_path(model, "packed", pad_token_id=PAD)
    assert isinstance(path, PackedPath)
    if fast:
        assert speed_up_modules(model) or family == "gpt2"  # its layers are no nn.Linear
    return model, path


@pytest.fixture(scope="module", autouse=True)
def free_models() -> Iterator[None]:
    yield
    plain.cache_clear()
    packing.cache_clear()


# ---- the one number


@pytest.mark.parametrize("fast", [False, True], ids=["own modules", "fast modules"])
@pytest.mark.parametrize("family", FAMILIES)
@some(max_examples=12)
@given(branches=branch_lists())
def test_packed_equals_padded_equals_a_plain_row(family: str, fast: bool, branches: list[Branch]) -> None:
    model, path = packing(family, fast)
    found = path.log_probs(model, branches)
    expected = slow_log_probs(plain(family), branches)
    padded = PADDED.log_probs(model, branches)
    assert_same(found, expected)
    assert_same(padded, expected)
    slow = gradients(plain(family), expected)
    # some draws saturate the softmax of these random models: float64 then tells plain rows 4e-6 off, packed ones 2e-5
    assert_same_gradients(gradients(model, found), slow, tolerance=1e-4)
    assert_same_gradients(gradients(model, padded), slow, tolerance=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_of_one_long_prompt_have_the_gradients_of_plain_rows(family: str) -> None:
    model, path = packing(family)
    found, expected = path.log_probs(model, SIBLINGS), slow_log_probs(plain(family), SIBLINGS)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), gradients(plain(family), expected))


@pytest.mark.parametrize("family", FAMILIES)
@some(max_examples=12)
@given(
    carried=branch_lists(),
    others=st.lists(st.tuples(st.integers(0, 5), completions), min_size=1, max_size=5),
)
def test_riders_equal_plain_rows(
    family: str, carried: list[Branch], others: list[tuple[int, list[int]]]
) -> None:
    riders = [Branch(carried[which % len(carried)].prompt_ids, ids) for which, ids in others]
    model, path = packing(family)
    log_probs, carrier = path.carry(model, carried)
    riding = carrier.ride(model, riders)
    assert not riding.requires_grad
    with torch.no_grad():
        assert_same(riding, slow_log_probs(plain(family), riders))
        assert_same(log_probs.detach(), slow_log_probs(plain(family), carried))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_for_riders_takes_no_gradient(family: str) -> None:
    model, path = packing(family)
    _, carrier = path.carry(model, SIBLINGS)
    store: Any = carrier.batch.keeps  # type: ignore[attr-defined]
    assert len(store.keys_values) == model.config.num_hidden_layers
    kept = [tensor for pair in store.keys_values.values() for tensor in pair]
    assert not any(tensor.requires_grad for tensor in [*kept, store.last_hidden])


@pytest.mark.parametrize("family", FAMILIES)
def test_riders_change_no_gradient_of_their_carrier(family: str) -> None:
    model, path = packing(family)
    found, carrier = path.carry(model, SIBLINGS)
    riding = carrier.ride(model, RIDERS)
    expected = slow_log_probs(plain(family), SIBLINGS)
    with torch.no_grad():
        assert_same(riding, slow_log_probs(plain(family), RIDERS))
    assert_same_gradients(gradients(model, found), gradients(plain(family), expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_riders_of_one_token_each_equal_plain_rows(family: str) -> None:
    model, path = packing(family)
    _, carrier = path.carry(model, SIBLINGS)
    riders = [Branch([18, 19], [7]), Branch([32, 33, 34], [8]), Branch([18, 19], [9])]
    with torch.no_grad():
        assert_same(carrier.ride(model, riders), slow_log_probs(plain(family), riders))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_rows_however_the_forwards_are_cut(family: str) -> None:
    model, path = packing(family)
    with torch.no_grad():
        expected = slow_log_probs(plain(family), SIBLINGS)
    for max_tokens in (1, 15, 30, 4096):
        found = path.score(model, SIBLINGS, max_tokens=max_tokens)
        assert not found.requires_grad
        assert_same(found, expected)


# ---- laws


def test_the_order_of_branches_changes_nothing_but_their_order() -> None:
    model, path = packing("gemma2")
    with torch.no_grad():
        expected = path.log_probs(model, SIBLINGS)
        for order in list(permutations(range(len(SIBLINGS))))[::500]:
            found = path.log_probs(model, [SIBLINGS[place] for place in order])
            assert_same(found, expected[list(order)])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@some(max_examples=15)
@given(branches=branch_lists(), data=st.data())
def test_a_batch_cut_in_two_has_the_gradients_of_the_whole(
    family: str, branches: list[Branch], data: st.DataObject
) -> None:
    model, path = packing(family)
    first = data.draw(st.integers(0, len(branches)))
    parts = [part for part in (branches[:first], branches[first:]) if part]
    whole = gradients(model, path.log_probs(model, branches))
    cut = gradients(model, torch.cat([path.log_probs(model, part) for part in parts]))
    assert_same_gradients(cut, whole, tolerance=1e-4)  # of drawn branches, as above


@some(max_examples=15)
@given(branches=branch_lists())
def test_a_branch_does_not_see_the_others(branches: list[Branch]) -> None:
    model, path = packing("mistral")
    with torch.no_grad():
        together = path.log_probs(model, branches)
        alone = torch.cat([path.log_probs(model, [branch]) for branch in branches])
    assert_same(together, alone)


def test_a_shared_prompt_gets_the_gradient_of_all_its_completions() -> None:
    model, path = packing("llama")
    branches = [Branch([1, 2, 3], [4, 5]), Branch([1, 2, 3], [6]), Branch([1, 2, 3], [7, 8, 9])]
    embedding = model.get_input_embeddings().weight

    def slope_at_the_prompt(log_probs: Tensor) -> Tensor:
        return torch.autograd.grad(log_probs.sum(), embedding)[0][[1, 2, 3]]

    together = slope_at_the_prompt(path.log_probs(model, branches))
    each = [slope_at_the_prompt(path.log_probs(model, [branch])) for branch in branches]
    assert_same(together, torch.stack(each).sum(0))
    assert all(float(slope.abs().max()) > 0 for slope in each)


# ---- ways of computing that change no number


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_small_blocks_of_queries_change_nothing(
    family: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = packing(family)
    expected = path.log_probs(model, SIBLINGS)
    slopes = gradients(model, expected)
    monkeypatch.setattr(attention, "QUERY_BLOCK", size)
    found, carrier = path.carry(model, SIBLINGS)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), slopes)
    with torch.no_grad():
        assert_same(carrier.ride(model, RIDERS), slow_log_probs(plain(family), RIDERS))


@pytest.mark.parametrize("family", ["gemma2", "granite", "phi"])
def test_small_tiles_of_logits_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = packing(family)
    expected = path.log_probs(model, SIBLINGS)
    slopes = gradients(model, expected)
    monkeypatch.setattr(head, "TILE_LOGITS", 100)  # two positions
    found = path.log_probs(model, SIBLINGS)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), slopes)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_activation_checkpointing_changes_no_gradient_and_keeps_no_prompts(
    family: str, use_reentrant: bool
) -> None:
    model, path = packing(family)
    expected = gradients(model, path.log_probs(model, SIBLINGS))
    model = copy.deepcopy(model).train()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    forwards: list[int] = []
    model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: forwards.append(1))
    log_probs, carrier = path.carry(model, SIBLINGS)
    with evaluating(model), torch.no_grad():
        assert_same(carrier.ride(model, RIDERS), slow_log_probs(plain(family), RIDERS))
    n_before = len(forwards)
    # reentrant checkpoints know no torch.autograd.grad
    (log_probs * torch.linspace(1, 2, len(log_probs))).sum().backward()
    assert len(forwards) == n_before + 1  # computed again, so it was checkpointed
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_same_gradients(found, expected)
    store: Any = carrier.batch.keeps  # type: ignore[attr-defined]
    assert (store.keys_values, store.last_hidden) == ({}, None)


def test_a_carrier_lets_go_of_its_prompts_once_they_were_ridden() -> None:
    model, path = packing("llama")
    _, carrier = path.carry(model, SIBLINGS)
    store: Any = carrier.batch.keeps  # type: ignore[attr-defined]
    assert len(store.keys_values) == 2
    carrier.ride(model, RIDERS)
    assert (store.keys_values, store.last_hidden, store.closed) == ({}, None, True)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_windows_matter_in_these_tests(family: str) -> None:
    # or a window that was not honoured would show nowhere
    model = copy.deepcopy(plain(family))
    assert model.config.sliding_window == WINDOW
    model.config.sliding_window = 64
    with torch.no_grad():
        wide, narrow = slow_log_probs(model, SIBLINGS), slow_log_probs(plain(family), SIBLINGS)
    assert float((wide - narrow).abs().max()) > 1e-2


# ---- progress and parts of the scoring pass


def test_progress_counts_branches_up_to_all() -> None:
    model, path = packing("llama")
    seen: list[tuple[int, int]] = []
    path.score(model, SIBLINGS, max_tokens=12, on_progress=lambda *at: seen.append(at))
    assert seen[-1] == (len(SIBLINGS), len(SIBLINGS))
    assert len(seen) > 2
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize("max_tokens", [1, 20, 4096])
def test_parts_of_the_scoring_pass_sum_to_the_whole(max_tokens: int) -> None:
    model, path = packing("llama")
    whole = path.score(model, SIBLINGS, max_tokens=max_tokens)
    parts = [path.score(model, SIBLINGS, max_tokens=max_tokens, part=(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    n_taken = torch.stack([part != 0 for part in parts]).sum(0)
    assert n_taken.tolist() == [1] * len(SIBLINGS)


@some(max_examples=40)
@given(branches=branch_lists(), max_tokens=st.integers(1, 40))
def test_no_forward_of_the_scoring_pass_is_larger_than_the_bound_unless_one_branch_is(
    branches: list[Branch], max_tokens: int
) -> None:
    model, path = packing("llama")
    with CountedForwards(model) as forwards:
        path.score(model, branches, max_tokens=max_tokens)
    sizes = [n_tokens for _, n_tokens in forwards.shapes]
    longest = max(path.count_tokens([branch]) for branch in branches)
    assert max(sizes) <= max(max_tokens, longest)
    if max_tokens >= path.count_tokens(branches):
        assert len(sizes) == 1


def test_no_branches_give_no_scores() -> None:
    model, path = packing("llama")
    assert path.score(model, [], max_tokens=10).shape == (0,)


def test_scoring_leaves_the_model_in_its_mode() -> None:
    model, path = packing("llama")
    modes: list[bool] = []
    model.train()
    try:
        path.score(model, SIBLINGS, max_tokens=4096, on_progress=lambda *_: modes.append(model.training))
        assert modes == [False]
        assert model.training
    finally:
        model.eval()
