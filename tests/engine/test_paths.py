"""Which models take packed batches, what the others say, and that a model which takes them is otherwise as it was."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.families import (
    FAMILIES,
    PAD,
    PADDED_ONLY,
    WINDOW,
    CountedForwards,
    assert_same,
    assert_same_gradients,
    build,
    gradients,
    slow_log_probs,
)
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.packed import enable_packing
from thumbtune.engine.paths import PackedPath, PaddedPath, choose_path
from thumbtune.errors import ConfigError

BRANCHES = [Branch([1, 2, 3], [4, 5]), Branch([6], [7, 8, 9]), Branch([1, 2, 3], [10])]


def choose(model: Any, wanted: Any = "auto") -> Any:
    return choose_path(model, wanted, pad_token_id=PAD)


def assert_refused(model: Any, naming: str, caplog: pytest.LogCaptureFixture) -> None:
    """It says why, is left as it was, and runs padded; asked to pack it stops with the reason."""
    kind, attention = type(model), model.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        path = choose(model)
    assert isinstance(path, PaddedPath)
    assert kind.__name__ in path.reason
    assert naming in path.reason
    assert path.reason in caplog.text
    with pytest.raises(ConfigError, match="engine='packed' cannot be had") as raised:
        choose(model, "packed")
    assert naming in str(raised.value)
    assert type(model) is kind
    assert model.config._attn_implementation == attention


# ---- who can


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_can_is_packed_and_says_so(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build(family)
    with caplog.at_level(logging.INFO):
        path = choose(model)
    assert isinstance(path, PackedPath)
    assert type(model).__name__ in path.reason
    assert path.reason in caplog.text


@pytest.mark.parametrize("family", PADDED_ONLY)
def test_a_family_that_cannot_names_what_it_has_and_runs_padded(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, untouched = build(family), build(family)
    assert_refused(model, PADDED_ONLY[family][1], caplog)
    path = choose(model)
    expected = slow_log_probs(untouched, BRANCHES)
    found = path.log_probs(model, BRANCHES)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), gradients(untouched, expected))
    for max_tokens in (1, 9, 4096):
        assert_same(path.score(model, BRANCHES, max_tokens=max_tokens), expected)


def test_who_asks_for_padding_gets_it_and_the_model_is_not_touched() -> None:
    model = build("llama")
    kind = type(model)
    path = choose(model, "padded")
    assert isinstance(path, PaddedPath)
    assert "asks for it" in path.reason
    assert type(model) is kind


@pytest.mark.parametrize("family", ["rwkv", "roberta"])
@pytest.mark.parametrize("wanted", ["auto", "padded"])
def test_where_padding_changes_a_model_s_numbers_each_row_has_a_forward_of_its_own(
    family: str, wanted: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(family)
    path = choose(model, wanted)
    assert isinstance(path, PaddedPath)
    assert path.alone
    assert not path.shares_prompts
    assert "each row has a forward of its own" in path.reason
    assert path.count_tokens(BRANCHES) == 5 + 4 + 4
    log_probs, carrier = path.carry(model, BRANCHES)
    expected = slow_log_probs(model, BRANCHES)
    assert_same(log_probs, expected)
    assert_same_gradients(gradients(model, log_probs), gradients(model, expected))
    riders = [Branch([6], [1, 2])]
    assert_same(carrier.ride(model, riders), slow_log_probs(model, riders))
    seen: list[tuple[int, int]] = []
    with CountedForwards(model) as forwards:
        scores = path.score(model, BRANCHES, max_tokens=9, on_progress=lambda *at: seen.append(at))
    assert_same(scores, expected)
    assert forwards.shapes == [(1, 4), (1, 4), (1, 5)]
    assert seen[-1] == (3, 3)


@pytest.mark.parametrize("family", ["mamba", "qwen3-next"])
def test_where_no_cache_can_be_shared_the_scoring_pass_encodes_each_prompt_with_its_completion(
    family: str,
) -> None:
    model = build(family)
    path = choose(model)
    assert isinstance(path, PaddedPath)
    assert not path.alone
    assert not path.shares_prompts
    assert "so each is encoded with its own" in path.reason
    expected = slow_log_probs(model, BRANCHES)
    with CountedForwards(model) as forwards:
        assert_same(path.score(model, BRANCHES, max_tokens=4096), expected)
        assert_same(path.log_probs(model, BRANCHES), expected)
        assert_same(path.score(model, BRANCHES, max_tokens=10), expected)
    assert forwards.shapes == [(3, 6), (3, 6), (1, 4), (2, 5)]
    parts = [path.score(model, BRANCHES, max_tokens=10, part=(rank, 2)) for rank in range(2)]
    assert_same(sum(parts), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
def test_padding_serves_the_usual_families(family: str) -> None:
    path = choose(build(family), "padded")
    assert isinstance(path, PaddedPath)
    assert (path.alone, path.shares_prompts) == (False, True)


def test_attention_dropout_runs_padded(caplog: pytest.LogCaptureFixture) -> None:
    for family in ("llama", "gpt-neox", "gpt2"):
        model = build(family)
        for module in model.modules():
            if hasattr(module, "attn_dropout"):
                module.attn_dropout.p = 0.1
            elif hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.1
        assert_refused(model, "dropout", caplog)
        assert not model.training


def test_a_layer_that_does_not_tell_its_window_runs_padded(caplog: pytest.LogCaptureFixture) -> None:
    # a window of 40 hides nothing in a trial of 14 tokens: only what the layer tells can show it
    for told in (None, 41):
        model = build("qwen2 sliding")
        model.config.sliding_window = 40
        model.model.layers[1].self_attn.sliding_window = told
        assert_refused(model, "layer 1", caplog)
    model.model.layers[1].self_attn.sliding_window = 40
    assert isinstance(choose(model), PackedPath)


def test_a_layer_that_tells_a_window_it_should_not_have_runs_padded(caplog: pytest.LogCaptureFixture) -> None:
    model = build("qwen2 sliding")
    model.config.sliding_window = model.model.layers[1].self_attn.sliding_window = 40
    model.model.layers[0].self_attn.sliding_window = 40
    assert_refused(model, "layer 0", caplog)


def test_a_layer_with_a_mask_of_its_own_runs_padded(caplog: pytest.LogCaptureFixture) -> None:
    model = build("llama")
    layer = model.model.layers[1].self_attn

    def hide_the_far_past(module: Any, args: Any, kwargs: Any) -> Any:
        n_tokens = kwargs["hidden_states"].shape[1]
        mask = torch.ones(n_tokens, n_tokens).triu(1) + torch.ones(n_tokens, n_tokens).tril(-100)
        return args, {**kwargs, "attention_mask": mask.bool().logical_not()[None, None]}

    layer.register_forward_pre_hook(hide_the_far_past, with_kwargs=True)
    assert_refused(model, "mask of its own", caplog)


def test_a_layer_that_computes_something_else_runs_padded(caplog: pytest.LogCaptureFixture) -> None:
    class Mixes(torch.nn.Module):
        """Looks at the token before, wherever it stands in the row."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])

    model = build("llama")
    model.model.layers[0].mlp = Mixes(model.model.layers[0].mlp)
    assert_refused(model, "other log-probs", caplog)


def test_a_head_that_does_more_than_its_config_tells_runs_padded(caplog: pytest.LogCaptureFixture) -> None:
    model = build("llama")
    model.lm_head.register_forward_hook(lambda module, args, logits: 0.9 * logits)
    assert_refused(model, "other log-probs", caplog)


@pytest.mark.parametrize("wanted", ["auto", "packed", "padded"])
def test_a_model_with_an_encoder_is_refused(wanted: str) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    )
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration has an encoder"):
        choose(model, wanted)


@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning")
def test_virtual_tokens_before_the_prompt_run_padded(caplog: pytest.LogCaptureFixture) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with caplog.at_level(logging.WARNING):
        path = choose(model)
    assert isinstance(path, PaddedPath)
    assert "LlamaForCausalLM runs padded: its adapter puts tokens of its own" in caplog.text
    with torch.no_grad():
        expected = slow_log_probs(model, BRANCHES)  # their distance to the prompt is not that of a padded row
        assert_same(path.log_probs(model, BRANCHES), expected)
        assert_same(path.score(model, BRANCHES, max_tokens=4096), expected)


# ---- a model that takes packed batches is otherwise as it was


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3", "mixtral"])
def test_without_a_packed_batch_it_computes_what_it_did(family: str, attention: str) -> None:
    model = build(family)
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    ids = torch.tensor([[PAD, PAD, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13, 14]])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": ids}

    def look(model: Any) -> list[Any]:
        output = model(**inputs)
        written = model.generate(
            ids, attention_mask=inputs["attention_mask"], max_new_tokens=6, do_sample=False, pad_token_id=PAD
        )
        return [output.loss.detach(), output.logits.detach(), written]

    before = look(model)
    assert isinstance(choose(model), PackedPath)
    for found, expected in zip(look(model), before, strict=True):
        assert torch.equal(found, expected)
    choose(model, "packed").log_probs(model, BRANCHES).sum().backward()
    assert torch.equal(look(model)[1], before[1])
    with torch.no_grad():
        assert_same(choose(model).log_probs(model, BRANCHES), slow_log_probs(model, BRANCHES))


def test_eager_attention_still_gives_its_weights() -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    ids = torch.tensor([[1, 2, 3, 4]])
    before = model(input_ids=ids, output_attentions=True).attentions
    enable_packing(model)
    after = model(input_ids=ids, output_attentions=True).attentions
    assert len(after) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_it_is_saved_as_its_family_and_loads_again(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = build(family)
    model.save_pretrained(tmp_path / "before")
    enable_packing(model)
    model.save_pretrained(tmp_path / "after")
    for file in sorted(path.name for path in (tmp_path / "before").iterdir()):
        assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes(), file
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert type(loaded) is type(build(family))
    with torch.no_grad():
        assert_same(slow_log_probs(loaded, BRANCHES), slow_log_probs(model, BRANCHES))


def test_a_copy_and_its_original_are_two_models() -> None:
    model = build("llama")
    path = choose(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = path.log_probs(model, BRANCHES)
        assert torch.equal(path.log_probs(other, BRANCHES), before)
        for parameter in other.parameters():
            parameter.mul_(1.1)
        changed = path.log_probs(other, BRANCHES)
        assert torch.equal(path.log_probs(model, BRANCHES), before)
        assert not torch.equal(changed, before)
        assert_same(changed, slow_log_probs(other, BRANCHES))
        for parameter in model.parameters():
            parameter.mul_(0.9)
        assert torch.equal(path.log_probs(other, BRANCHES), changed)
        assert_same(path.log_probs(model, BRANCHES), slow_log_probs(model, BRANCHES))


def test_two_models_of_one_config_object_can_both_be_packed() -> None:
    from transformers import LlamaForCausalLM

    first = build("llama")
    second = LlamaForCausalLM(first.config).eval()
    with torch.no_grad():
        expected = slow_log_probs(second, BRANCHES)
        path = choose(first)
        assert torch.equal(slow_log_probs(second, BRANCHES), expected)  # not packed, though its attention is
        assert isinstance(choose(second), PackedPath)
        assert_same(path.log_probs(second, BRANCHES), expected)


def test_it_keeps_its_name_its_kind_and_its_signature() -> None:
    import inspect

    model = build("llama")
    kind, parameters = type(model), inspect.signature(model.forward).parameters
    enable_packing(model)
    assert isinstance(model, kind)
    assert (type(model).__name__, type(model).__module__) == (kind.__name__, kind.__module__)
    assert list(inspect.signature(model.forward).parameters) == list(parameters)  # transformers reads it


def test_choosing_a_path_twice_changes_nothing_more() -> None:
    model = build("llama")
    choose(model)
    kind, attention = type(model), model.config._attn_implementation
    choose(model, "packed")
    assert (type(model), model.config._attn_implementation) == (kind, attention)
    assert attention == "thumbtune_sdpa"


@pytest.mark.parametrize("training", [True, False])
def test_the_trial_draws_no_chance_takes_no_gradient_and_leaves_the_mode(training: bool) -> None:
    model = build("llama").train(training)
    state = torch.get_rng_state()
    choose(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_padded_path_carries_riders_and_counts_its_rectangle() -> None:
    model = build("llama")
    path = PaddedPath(PAD, "asked for", pad_to_multiple_of=4)
    log_probs, carrier = path.carry(model, BRANCHES)
    riding = carrier.ride(model, [Branch([6], [1, 2])])
    assert log_probs.requires_grad
    assert not riding.requires_grad
    with torch.no_grad():
        assert_same(log_probs.detach(), slow_log_probs(model, BRANCHES))
        assert_same(riding, slow_log_probs(model, [Branch([6], [1, 2])]))
    assert path.count_tokens(BRANCHES) == 3 * 8  # 3 + 3 tokens, made a multiple of 4
    assert path.pad(BRANCHES)["input_ids"].shape == (3, 8)


def test_windows_of_these_models_are_shorter_than_the_trial() -> None:
    # so that the trial itself sees them; those of real models it cannot see, and what layers tell is compared
    assert WINDOW < 7
