"""One log-prob, however it is made: padded, shared, cut into chunks, and by model families with ways of their own.

The reference is a loop over rows, one unpadded forward each, without position ids, masks or caches of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.families import (
    N_TOKENS,
    PAD,
    CountedForwards,
    branch_lists,
    build,
    completions,
    gradients,
    prompts,
    slow_log_probs,
    some,
)
from thumbtune.engine.logprobs import (
    Branch,
    completion_log_probs,
    evaluating,
    forward_logits,
    pad_branches,
    score_branches,
)

FAMILIES = ["llama", "gpt2", "qwen2", "gemma2"]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """One seeded model of each family, with weights large enough that positions and windows matter."""
    return {family: build(family) for family in FAMILIES}


# ---- the padded microbatch


def test_padding_worked_by_hand() -> None:
    # prompts of 2 and 1 tokens, completions of 1 and 3: P = 2, C = 3
    batch = pad_branches([Branch([5, 6], [7]), Branch([8], [9, 10, 11])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0], [0, 8, 9, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2, 2], [0, 0, 1, 2, 3]]
    assert batch["completion_mask"].tolist() == [[True, False, False], [True, True, True]]


@given(branches=branch_lists())
@settings(deadline=None)
def test_every_token_stands_once_in_its_row_and_all_completions_start_in_one_column(
    branches: list[Branch],
) -> None:
    batch = pad_branches(branches, PAD)
    start = max(len(branch.prompt_ids) for branch in branches)
    for row, (prompt_ids, completion_ids) in enumerate(branches):
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == [*prompt_ids, *completion_ids]
        assert batch["position_ids"][row][real].tolist() == list(range(int(real.sum())))
        assert batch["input_ids"][row][start:][batch["completion_mask"][row]].tolist() == completion_ids
        assert bool((batch["input_ids"][row][~real] == PAD).all())


def test_a_log_prob_worked_by_hand() -> None:
    # A model that gives every token the same odds: each of 3 tokens costs log 40 = 3.688879
    model = build("llama")
    nn.init.zeros_(model.lm_head.weight)
    batch = pad_branches([Branch([1, 2], [3, 4, 5]), Branch([1], [3])], PAD)
    assert completion_log_probs(model, batch).tolist() == pytest.approx([-11.066638, -3.688879], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@some(max_examples=20)
@given(branches=branch_lists())
def test_the_padded_path_equals_one_unpadded_row_at_a_time(
    family: str, models: dict[str, Any], branches: list[Branch]
) -> None:
    model = models[family]
    found = completion_log_probs(model, pad_branches(branches, PAD))
    expected = slow_log_probs(model, branches)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    slow = gradients(model, expected)
    for name, gradient in gradients(model, found).items():
        torch.testing.assert_close(
            gradient, slow[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_model_on_disk_gives_the_same_through_the_padded_path(
    tiny_model_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    texts = [("Why?", " Because."), ("İstanbul nüfusu?", " Yaklaşık 15 milyon."), ("A", "b")]
    branches = [
        Branch(tiny_tokenizer(a)["input_ids"], [*tiny_tokenizer(b)["input_ids"], tiny_tokenizer.eos_token_id])
        for a, b in texts
    ]
    batch = pad_branches(branches, tiny_tokenizer.pad_token_id)
    with torch.no_grad():
        expected = slow_log_probs(model, branches)
        torch.testing.assert_close(completion_log_probs(model, batch), expected, rtol=1e-5, atol=1e-4)
    scored = score_branches(model, branches, pad_token_id=tiny_tokenizer.pad_token_id)
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_neither_value_nor_gradient_and_gets_none(
    family: str, models: dict[str, Any]
) -> None:
    model, row, wide = models[family], Branch([1, 2, 3], [4, 5]), Branch([6] * 8, [7] * 9)
    alone = completion_log_probs(model, pad_branches([row], PAD))
    beside = completion_log_probs(model, pad_branches([row, wide], PAD))[:1]
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-5)
    expected = gradients(model, alone)
    for name, gradient in gradients(model, beside).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
    embedding = model.get_input_embeddings().weight
    if embedding is not model.get_output_embeddings().weight:  # a tied head teaches all tokens
        both = completion_log_probs(model, pad_branches([row, wide], PAD))
        (slope,) = torch.autograd.grad(both.sum(), embedding)
        assert bool((slope[PAD] == 0).all())
        assert bool((slope[1] != 0).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_which_token_is_the_padding_does_not_matter(family: str, models: dict[str, Any]) -> None:
    branches = [Branch([1, 2, 3], [4]), Branch([5], [6, 7, 8])]
    with torch.no_grad():
        first, second = (
            completion_log_probs(models[family], pad_branches(branches, pad)) for pad in (PAD, 6)
        )
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_a_padding_token_inside_a_completion_counts_like_any_other(models: dict[str, Any]) -> None:
    # eos is the padding token of many models, and the end of turn has to be learned
    branches = [Branch([1, 2], [3, PAD]), Branch([1], [PAD])]
    with torch.no_grad():
        found = completion_log_probs(models["llama"], pad_branches(branches, PAD))
        expected = slow_log_probs(models["llama"], branches)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_prompt_token_is_scored_and_no_completion_token_is_missed(models: dict[str, Any]) -> None:
    # log π(abc|x) = log π(a|x) + log π(b|xa) + log π(c|xab)
    model, prompt, completion = models["llama"], [1, 2, 3], [4, 5, 6]
    steps = [Branch([*prompt, *completion[:k]], completion[k : k + 1]) for k in range(3)]
    with torch.no_grad():
        whole = completion_log_probs(model, pad_branches([Branch(prompt, completion)], PAD))
        parts = torch.cat([completion_log_probs(model, pad_branches([step], PAD)) for step in steps])
    torch.testing.assert_close(whole.sum(), parts.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probabilities_of_all_next_tokens_sum_to_one(family: str, models: dict[str, Any]) -> None:
    branches = [Branch([1, 2, 3], [token]) for token in range(N_TOKENS)]
    scores = score_branches(models[family], branches, pad_token_id=PAD)
    assert float(scores.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_soft_caps_bound_every_token_s_log_prob(models: dict[str, Any]) -> None:
    # logits in (−3, 3): no token is likelier than e^3 / (e^3 + 39 e^−3) or less likely than e^−3 / (e^−3 + 39 e^3)
    scores = score_branches(
        models["gemma2"], [Branch([1, 2, 3], [token]) for token in range(N_TOKENS)], pad_token_id=PAD
    )
    assert float(scores.min()) > -3 - torch.tensor([3.0] * 39 + [-3.0]).logsumexp(0).item()
    assert float(scores.max()) < 3 - torch.tensor([-3.0] * 39 + [3.0]).logsumexp(0).item()


def test_bf16_logits_are_summed_in_float32(models: dict[str, Any]) -> None:
    import copy

    model = copy.deepcopy(models["llama"]).to(torch.bfloat16)
    batch = pad_branches([Branch([1, 2], [3] * 20)], PAD)
    with torch.no_grad():
        found = completion_log_probs(model, batch)
        logits = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits[0, 1:-1]
    assert found.dtype == torch.float32
    exact = logits.double().log_softmax(-1)[:, 3].sum()
    assert float(found) == pytest.approx(float(exact), rel=1e-6)


def test_a_head_that_cannot_skip_positions_gives_the_same(models: dict[str, Any]) -> None:
    class Plain(nn.Module):
        """A model whose forward takes the least that a forward can take."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    # without position ids of ours only a model with relative positions can be right: Llama's rotations are
    branches = [Branch([1, 2, 3], [4, 5]), Branch([6], [7, 8, 9])]
    batch = pad_branches(branches, PAD)
    with torch.no_grad():
        found = completion_log_probs(Plain(models["llama"]), batch)
        expected = completion_log_probs(models["llama"], batch)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        assert forward_logits(Plain(models["llama"]), keep=2, **inputs).logits.shape[1] == 2


# ---- scoring with shared prompts


@pytest.mark.parametrize("family", FAMILIES)
@some(max_examples=20)
@given(
    few_prompts=st.lists(prompts, min_size=1, max_size=3),
    rows=st.lists(st.tuples(st.integers(0, 2), completions), min_size=1, max_size=8),
    max_tokens=st.sampled_from([1, 20, 60, 4096]),
)
def test_shared_prompts_duplicates_and_chunks_change_nothing(
    family: str,
    models: dict[str, Any],
    few_prompts: list[list[int]],
    rows: list[tuple[int, list[int]]],
    max_tokens: int,
) -> None:
    branches = [Branch(few_prompts[which % len(few_prompts)], ids) for which, ids in rows]
    found = score_branches(models[family], branches, pad_token_id=PAD, max_tokens=max_tokens)
    with torch.no_grad():
        expected = slow_log_probs(models[family], branches)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_completions_alone_need_no_second_forward(family: str, models: dict[str, Any]) -> None:
    branches = [Branch([1, 2, 3], [4]), Branch([1, 2, 3], [5]), Branch([6], [7])]
    with CountedForwards(models[family]) as forwards:
        found = score_branches(models[family], branches, pad_token_id=PAD)
    assert forwards.count == 1
    with torch.no_grad():
        torch.testing.assert_close(found, slow_log_probs(models[family], branches), rtol=1e-5, atol=2e-5)


def test_a_prompt_is_encoded_once_for_all_its_completions(models: dict[str, Any]) -> None:
    branches = [Branch([1, 2, 3, 4, 5], [token, 7]) for token in range(10)]
    with CountedForwards(models["llama"]) as forwards:
        score_branches(models["llama"], branches, pad_token_id=PAD)
    # once the prompt (1 × 5 tokens), once the completions' first tokens (10 × 1)
    assert forwards.shapes == [(1, 5), (10, 1)]


def test_no_forward_is_larger_than_the_bound_unless_one_branch_is(models: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    branches = [
        Branch(
            [1] * int(torch.randint(1, 20, (), generator=generator)),
            [2] * int(torch.randint(1, 20, (), generator=generator)),
        )
        for _ in range(30)
    ]
    with CountedForwards(models["llama"]) as forwards:
        score_branches(models["llama"], branches, pad_token_id=PAD, max_tokens=64)
    assert len(forwards.shapes) > 20
    assert all(rows * columns <= 64 for rows, columns in forwards.shapes)


def test_progress_counts_branches_up_to_all(models: dict[str, Any]) -> None:
    seen: list[tuple[int, int]] = []
    branches = [Branch([n], [1, 2]) for n in range(6)]
    score_branches(
        models["llama"], branches, pad_token_id=PAD, max_tokens=6, on_progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_no_branches_give_no_scores(models: dict[str, Any]) -> None:
    assert score_branches(models["llama"], [], pad_token_id=PAD).shape == (0,)


def test_scoring_takes_no_gradient_and_leaves_the_model_in_its_mode(models: dict[str, Any]) -> None:
    model = models["llama"]
    model.train()
    try:
        scores = score_branches(model, [Branch([1], [2])], pad_token_id=PAD)
        assert not scores.requires_grad
        assert model.training
    finally:
        model.eval()


def test_dropout_is_off_while_scoring_and_on_again_after() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).train()
    with evaluating(model):
        assert not model[0].training
    assert model[0].training
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training
