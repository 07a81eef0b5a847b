"""Sampling: token by token what transformers' own greedy decoding gives, and log-probs that mean what they say."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from thumbtune.engine.logprobs import Branch, score_branches
from thumbtune.errors import ConfigError
from thumbtune.evaluation.generate import Sampled, pick_tokens, sample_completions, stop_token_ids

PROMPTS = ["Why?", "A somewhat longer question?", "Hm", "İstanbul nüfusu?", "1 + 1 ="]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose ten times their work to threads that wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded(tiny_model_path: Path) -> Any:
    """The tiny model with larger weights, so that its choices are not near ties, and a likely end of turn."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


@pytest.fixture
def model(loaded: Any) -> Any:
    return copy.deepcopy(loaded)


@pytest.fixture
def stopping_model(model: Any, tiny_tokenizer: Any) -> Any:
    """Ends a turn after a few tokens."""

    def lift(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., tiny_tokenizer.eos_token_id] += 5.0
        return logits

    model.lm_head.register_forward_hook(lift)
    return model


def sample(model: Any, tokenizer: Any, **changed: Any) -> list[list[Sampled]]:
    settings: dict[str, Any] = {"n": 3, "max_new_tokens": 12}
    return sample_completions(model, tokenizer, PROMPTS, **{**settings, **changed})


def flat(samples: list[list[Sampled]]) -> list[Sampled]:
    return [one for of_prompt in samples for one in of_prompt]


def token_ids(samples: list[list[Sampled]]) -> list[list[tuple[int, ...]]]:
    return [[one.scored_ids for one in of_prompt] for of_prompt in samples]


# ---- greedy


@pytest.mark.parametrize("kind", ["model", "stopping_model"])
def test_greedy_equals_transformers_greedy_token_by_token(
    kind: str, request: pytest.FixtureRequest, tiny_tokenizer: Any
) -> None:
    model = request.getfixturevalue(kind)
    ours = sample(model, tiny_tokenizer, n=1, temperature=0.0, max_new_tokens=20)
    for prompt, (one,) in zip(PROMPTS, ours, strict=True):
        inputs = tiny_tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
        theirs = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(one.scored_ids) == theirs
        assert one.finished is (theirs[-1] == tiny_tokenizer.eos_token_id)


def test_greedy_gives_the_same_for_every_seed_and_every_sample(model: Any, tiny_tokenizer: Any) -> None:
    first = sample(model, tiny_tokenizer, temperature=0.0, seed=0)
    assert token_ids(first) == token_ids(sample(model, tiny_tokenizer, temperature=0.0, seed=9))
    assert all(len(set(of_prompt)) == 1 for of_prompt in token_ids(first))


def test_a_cold_temperature_is_greedy(model: Any, tiny_tokenizer: Any) -> None:
    greedy = sample(model, tiny_tokenizer, temperature=0.0)
    assert token_ids(sample(model, tiny_tokenizer, temperature=1e-4)) == token_ids(greedy)


def test_a_tiny_nucleus_is_greedy(model: Any, tiny_tokenizer: Any) -> None:
    greedy = sample(model, tiny_tokenizer, temperature=0.0)
    assert token_ids(sample(model, tiny_tokenizer, top_p=1e-6)) == token_ids(greedy)


# ---- batches, seeds, order


@pytest.mark.parametrize("batch_size", [1, 3, 6, 7])
def test_the_batch_size_changes_no_sampled_token(
    stopping_model: Any, tiny_tokenizer: Any, batch_size: int
) -> None:
    whole = sample(stopping_model, tiny_tokenizer, batch_size=64)
    cut = sample(stopping_model, tiny_tokenizer, batch_size=batch_size)
    assert token_ids(cut) == token_ids(whole)
    for ours, theirs in zip(flat(cut), flat(whole), strict=True):
        assert ours.log_prob == pytest.approx(theirs.log_prob, rel=1e-4, abs=1e-3)


def test_no_more_rows_than_the_batch_size_are_decoded_together(model: Any, tiny_tokenizer: Any) -> None:
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sample(model, tiny_tokenizer, batch_size=6)
    assert max(rows) == 6


def test_rows_that_have_ended_their_turn_are_not_carried_on(stopping_model: Any, tiny_tokenizer: Any) -> None:
    rows: list[int] = []
    stopping_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    samples = flat(sample(stopping_model, tiny_tokenizer, n=4, max_new_tokens=30))
    prompts = max(len(tiny_tokenizer(prompt)["input_ids"]) for prompt in PROMPTS) * len(PROMPTS)
    # each token after a row's first took one forward position, and nothing else did
    positions = sum(len(one.scored_ids) - 1 for one in samples)
    assert sum(rows) == prompts + positions


def test_a_seed_gives_the_same_again_and_another_seed_something_else(model: Any, tiny_tokenizer: Any) -> None:
    first = token_ids(sample(model, tiny_tokenizer, seed=1))
    assert token_ids(sample(model, tiny_tokenizer, seed=1)) == first
    assert token_ids(sample(model, tiny_tokenizer, seed=2)) != first


def test_sampling_leaves_the_global_random_numbers_alone(model: Any, tiny_tokenizer: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample(model, tiny_tokenizer)
    assert torch.equal(torch.rand(3), expected)


def test_the_samples_of_one_prompt_differ(model: Any, tiny_tokenizer: Any) -> None:
    assert all(
        len(set(of_prompt)) > 1 for of_prompt in token_ids(sample(model, tiny_tokenizer, temperature=2.0))
    )


def test_results_come_in_the_order_of_the_prompts(model: Any, tiny_tokenizer: Any) -> None:
    together = sample(model, tiny_tokenizer, temperature=0.0, n=1)
    for prompt, (one,) in zip(PROMPTS, together, strict=True):
        ((alone,),) = sample_completions(
            model, tiny_tokenizer, [prompt], n=1, max_new_tokens=12, temperature=0.0
        )
        assert one.token_ids == alone.token_ids


def test_progress_counts_completions_up_to_all(model: Any, tiny_tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    sample(model, tiny_tokenizer, batch_size=6, on_progress=lambda *at: seen.append(at))
    done = [at for at, _ in seen]
    assert done == sorted(done)
    assert {6, 12, 15} <= set(done)  # the ends of the three batches
    assert {total for _, total in seen} == {15}


# ---- what a sample says about itself


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}])
def test_the_log_prob_is_the_score_of_the_same_tokens(
    stopping_model: Any, tiny_tokenizer: Any, settings: dict[str, Any]
) -> None:
    samples = sample(stopping_model, tiny_tokenizer, **settings)
    branches = [
        Branch(tiny_tokenizer(prompt)["input_ids"], one.scored_ids)
        for prompt, of_prompt in zip(PROMPTS, samples, strict=True)
        for one in of_prompt
    ]
    scores = score_branches(stopping_model, branches, pad_token_id=tiny_tokenizer.pad_token_id)
    told = torch.tensor([one.log_prob for of_prompt in samples for one in of_prompt])
    torch.testing.assert_close(told, scores, rtol=1e-4, atol=1e-3)


def test_a_finished_sample_ends_with_a_stop_and_an_unfinished_one_fills_the_limit(
    stopping_model: Any, tiny_tokenizer: Any
) -> None:
    samples = flat(sample(stopping_model, tiny_tokenizer, n=8, max_new_tokens=4))
    assert {one.finished for one in samples} == {True, False}
    for one in samples:
        assert tiny_tokenizer.eos_token_id not in one.token_ids
        assert len(one.scored_ids) <= 4
        if one.finished:
            assert one.scored_ids[-1] == one.end_id == tiny_tokenizer.eos_token_id
        else:
            assert len(one.token_ids) == 4
            assert one.end_id is None


def test_the_text_is_that_of_the_tokens_without_special_ones(model: Any, tiny_tokenizer: Any) -> None:
    for one in flat(sample(model, tiny_tokenizer)):
        assert one.text == tiny_tokenizer.decode(one.token_ids, skip_special_tokens=True).strip()


def test_every_configured_stop_ends_a_turn(model: Any, tiny_tokenizer: Any) -> None:
    plain = sample(model, tiny_tokenizer, n=1, temperature=0.0, max_new_tokens=20)[0][0]
    assert len(plain.token_ids) > 3
    extra = plain.token_ids[3]
    model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, extra]
    assert stop_token_ids(model, tiny_tokenizer) == {tiny_tokenizer.eos_token_id, extra}
    stopped = sample(model, tiny_tokenizer, n=1, temperature=0.0, max_new_tokens=20)[0][0]
    assert stopped.end_id == extra
    assert stopped.token_ids == plain.token_ids[: plain.token_ids.index(extra)]


def test_the_tokenizer_s_end_of_turn_stops_even_where_the_model_names_none(
    model: Any, tiny_tokenizer: Any
) -> None:
    model.generation_config.eos_token_id = None
    assert stop_token_ids(model, tiny_tokenizer) == {tiny_tokenizer.eos_token_id}


def test_chat_messages_are_rendered_with_the_template(model: Any, tiny_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    rendered = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ((chat,),) = sample_completions(model, tiny_tokenizer, [messages], n=1, max_new_tokens=8)
    ((text,),) = sample_completions(model, tiny_tokenizer, [rendered], n=1, max_new_tokens=8)
    assert chat.token_ids == text.token_ids


# ---- drawing one token


def picked(logits: list[float], uniform: float, temperature: float = 1.0, top_p: float = 1.0) -> int:
    cut = None if top_p == 1 else torch.tensor([top_p])
    return int(pick_tokens(torch.tensor([logits]), torch.tensor([uniform]), torch.tensor([temperature]), cut))


def test_a_token_is_drawn_by_inverting_the_cumulative_distribution() -> None:
    # probabilities 0.2, 0.5, 0.3: [0, 0.2) is token 0, [0.2, 0.7) token 1, [0.7, 1) token 2
    logits = torch.tensor([0.2, 0.5, 0.3]).log().tolist()
    assert [picked(logits, u) for u in (0.0, 0.19, 0.21, 0.69, 0.71, 0.999999)] == [0, 0, 1, 1, 2, 2]


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    # sorted 0.5, 0.3, 0.2: top_p 0.6 keeps 0.5 and 0.3, renormalised to 0.625 and 0.375
    logits = torch.tensor([0.2, 0.5, 0.3]).log().tolist()
    assert [picked(logits, u, top_p=0.6) for u in (0.0, 0.62, 0.63, 0.999999)] == [1, 1, 2, 2]
    assert [picked(logits, u, top_p=0.45) for u in (0.0, 0.999999)] == [1, 1]


def test_temperature_divides_the_logits() -> None:
    # probabilities 1/4, 3/4 at temperature 0.5: squared and renormalised 1/10, 9/10
    logits = torch.tensor([0.25, 0.75]).log().tolist()
    assert [picked(logits, u, temperature=0.5) for u in (0.09, 0.11)] == [0, 1]
    assert [picked(logits, u, temperature=1.0) for u in (0.24, 0.26)] == [0, 1]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_tokens_of_no_probability_are_never_drawn(top_p: float) -> None:
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]]).expand(1000, 5)
    uniforms = torch.linspace(0, 1 - 2**-24, 1000)
    assert set(
        pick_tokens(logits, uniforms, torch.ones(len(logits)), torch.full((len(logits),), top_p)).tolist()
    ) == {1, 3}


def test_drawn_tokens_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    drawn = pick_tokens(probabilities.log().expand(40_000, 4), uniforms, torch.ones(40_000))
    shares = torch.bincount(drawn, minlength=4) / 40_000
    # standard error of a share at most 0.5 / √40000 = 0.0025; four of them
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_settings_that_cannot_be_are_refused(model: Any, tiny_tokenizer: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="sampling needs"):
        sample(model, tiny_tokenizer, **wrong)
