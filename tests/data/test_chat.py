"""Rendering: where the prompt ends, what is trained, and what is cut."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.data.chat import (
    Tokens,
    template_digest,
    tokenize,
    tokenize_example,
    tokenize_examples,
    tokenize_prompt,
    truncate,
)
from thumbtune.errors import ConfigError, DataError
from thumbtune.records import Example

USER = {"role": "user", "content": "hi é"}
YO = {"role": "assistant", "content": "yo 👍"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def spell(tokenizer: Any, tokens: Tokens) -> tuple[str, str]:
    return tokenizer.decode(tokens.prompt_ids), tokenizer.decode(tokens.completion_ids)


def test_the_boundary_lies_behind_the_generation_prompt_and_the_end_of_turn_is_trained(
    tiny_tokenizer: Any,
) -> None:
    tokens = tokenize(tiny_tokenizer, [USER], [YO])
    assert spell(tiny_tokenizer, tokens) == (
        "<|im_start|>user\nhi é<|im_end|>\n<|im_start|>assistant\n",
        "yo 👍<|im_end|>\n",
    )
    assert not tokens.boundary_moved
    assert tokenize_prompt(tiny_tokenizer, [USER]) == tokens.prompt_ids


def test_a_system_prompt_a_history_and_tool_messages_belong_to_the_prompt(tiny_tokenizer: Any) -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    rendered, trained = spell(tiny_tokenizer, tokenize(tiny_tokenizer, prompt, [YO], tools=tools))
    assert rendered == (
        '<|im_start|>system\nBe brief.\n\n# Tools\n{"type": "function", "function": {"name": "add"}}\n<|im_end|>\n'
        "<|im_start|>user\nhi é<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"
    )
    assert trained == "yo 👍<|im_end|>\n"


def test_a_completion_of_several_messages_is_trained_whole(tiny_tokenizer: Any) -> None:
    completion = [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        YO,
    ]
    _, trained = spell(tiny_tokenizer, tokenize(tiny_tokenizer, [USER], completion))
    assert trained.startswith("<tool_call>")
    assert trained.endswith("tool\n4<|im_end|>\n<|im_start|>assistant\nyo 👍<|im_end|>\n")


def test_template_arguments_reach_the_template(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ mood }}" + tokenizer.chat_template
    prompt, _ = spell(tokenizer, tokenize(tokenizer, [USER], [YO], chat_template_kwargs={"mood": "calm"}))
    assert prompt.startswith("calm<|im_start|>")
    assert template_digest(tokenizer) != template_digest(tiny_tokenizer)


def test_plain_text_gets_one_end_of_sequence(tiny_tokenizer: Any) -> None:
    for completion in ("4", "4<|im_end|>"):
        tokens = tokenize(tiny_tokenizer, "2+2=", completion)
        assert spell(tiny_tokenizer, tokens) == ("2+2=", "4<|im_end|>")
        assert tokens.completion_ids.count(tiny_tokenizer.eos_token_id) == 1


def test_a_tokenizer_that_adds_a_bos_adds_it_once_and_only_to_the_prompt() -> None:
    tokenizer = load_conftest().build_tiny_tokenizer(adds_bos=True)
    assert spell(tokenizer, tokenize(tokenizer, "a", "b")) == ("<|bos|>a", "b<|im_end|>")
    prompt, trained = spell(tokenizer, tokenize(tokenizer, [USER], [YO]))
    assert "<|bos|>" not in prompt + trained, "the template alone says what chat messages begin with"


def test_a_token_across_the_boundary_belongs_to_the_completion() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "<eos>": 4}
    backend = Tokenizer(BPE(vocab=vocab, merges=[("a", "b")]))
    backend.add_special_tokens(["<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokens = tokenize(tokenizer, "ca", "b")
    assert (tokens.prompt_ids, tokens.completion_ids) == ([2], [3, 4])
    assert tokens.boundary_moved


def test_messages_without_a_chat_template_are_a_wrong_setting(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template: use an instruct model"):
        tokenize(tokenizer, [USER], [YO])
    assert tokenize(tokenizer, "a", "b").prompt_ids


def test_text_beside_messages_and_a_completion_of_no_token_are_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="two kinds"):
        tokenize(tiny_tokenizer, "hi", [YO])
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "always the same"
    with pytest.raises(DataError, match="renders to no token"):
        tokenize(tokenizer, [USER], [YO])


ROW = Tokens(prompt_ids=[1, 2, 3, 4], completion_ids=[5, 6, 7])


def test_the_prompt_keeps_its_end_or_its_start() -> None:
    end = truncate(ROW, max_length=None, max_prompt_length=3, truncation="keep_end")
    start = truncate(ROW, max_length=None, max_prompt_length=3, truncation="keep_start")
    assert end == Tokens([2, 3, 4], [5, 6, 7], prompt_cut=1)
    assert start == Tokens([1, 2, 3], [5, 6, 7], prompt_cut=1)


def test_the_completion_loses_its_end_and_both_cuts_are_counted() -> None:
    assert truncate(ROW, max_length=6, max_prompt_length=None) == Tokens(
        [1, 2, 3, 4], [5, 6], completion_cut=1
    )
    assert truncate(ROW, max_length=4, max_prompt_length=2) == Tokens(
        [3, 4], [5, 6], prompt_cut=2, completion_cut=1
    )


def test_a_row_without_room_for_its_completion_is_none() -> None:
    assert truncate(ROW, max_length=4, max_prompt_length=None) is None
    assert truncate(ROW, max_length=5, max_prompt_length=None) is not None


def test_a_row_that_fits_is_left_alone() -> None:
    assert truncate(ROW, max_length=7, max_prompt_length=4) == ROW
    assert truncate(ROW, max_length=None, max_prompt_length=None) == ROW


limits = st.one_of(st.none(), st.integers(1, 12))


@given(st.integers(0, 8), st.integers(1, 8), limits, limits, st.sampled_from(["keep_end", "keep_start"]))
def test_what_stays_and_what_is_cut_add_up(
    n_prompt: int, n_completion: int, max_length: int | None, max_prompt_length: int | None, side: Any
) -> None:
    row = Tokens(list(range(n_prompt)), list(range(100, 100 + n_completion)))
    fitted = truncate(row, max_length=max_length, max_prompt_length=max_prompt_length, truncation=side)
    n_prompt_kept = n_prompt if max_prompt_length is None else min(n_prompt, max_prompt_length)
    if fitted is None:
        assert max_length is not None
        assert n_prompt_kept >= max_length
        return
    assert len(fitted.prompt_ids) == n_prompt_kept
    assert len(fitted.prompt_ids) + fitted.prompt_cut == n_prompt
    assert len(fitted.completion_ids) + fitted.completion_cut == n_completion
    assert fitted.completion_ids == row.completion_ids[: len(fitted.completion_ids)]
    if max_length is not None:
        assert len(fitted.prompt_ids) + len(fitted.completion_ids) <= max_length


def load_conftest() -> Any:
    """The fixtures' module, which pytest does not let tests import by name."""
    spec = importlib.util.spec_from_file_location("_fixtures", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chat", [True, False])
def test_a_completion_that_was_cut_gets_no_end_of_turn(tiny_tokenizer: Any, chat: bool) -> None:
    prompt: Any = [{"role": "user", "content": "Why?"}] if chat else "Why?"
    completion: Any = [{"role": "assistant", "content": "Because of"}] if chat else " Because of"
    whole = tokenize(tiny_tokenizer, prompt, completion)
    cut = tokenize(tiny_tokenizer, prompt, completion, finished=False)
    assert cut.prompt_ids == whole.prompt_ids
    assert tiny_tokenizer.eos_token_id in whole.completion_ids
    assert (
        cut.completion_ids == whole.completion_ids[: whole.completion_ids.index(tiny_tokenizer.eos_token_id)]
    )


# ---- many rows at once

TOOLS = [{"type": "function", "function": {"name": "add"}}]
SYSTEM = {"role": "system", "content": "Be brief."}
words = st.text(alphabet="ab é👍\n<|", min_size=1, max_size=6)


@st.composite
def mixed_examples(draw: st.DrawFn) -> Example:
    """Plain text or chat, finished or not, with and without tools, template arguments and an end of its own."""
    finished, label = draw(st.booleans()), draw(st.booleans())
    if draw(st.booleans()):
        ending = draw(st.sampled_from(["", "<|im_end|>", "<|bos|>"]))
        return Example(draw(words), draw(words) + ending, label, finished=finished)
    prompt = [*draw(st.sampled_from([[], [SYSTEM]])), {"role": "user", "content": draw(words)}]
    completion = [{"role": "assistant", "content": "x" + draw(words).strip()}]
    return Example(
        prompt,
        completion,
        label,
        tools=draw(st.sampled_from([None, TOOLS])),
        chat_template_kwargs=draw(
            st.sampled_from([None, {"mood": "calm"}, {"sanitize_control_tokens": True}])
        ),
        finished=finished,
    )


def build_merging_tokenizer() -> Any:
    """Bytes of which `ab` and `b<` are one token, so that boundaries move."""
    from tokenizers import Tokenizer

    tokenizer = load_conftest().build_tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {"ab": 300, "b<": 301}
    state["model"]["merges"] = [["a", "b"], ["b", "<"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


@pytest.fixture(scope="module", params=["plain", "adds bos", "merges", "slow", "own template"])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    build = load_conftest().build_tiny_tokenizer
    tokenizer = {"adds bos": lambda: build(adds_bos=True), "merges": build_merging_tokenizer}.get(
        request.param, build
    )()
    tokenizer.chat_template = "{{ mood }}" + tokenizer.chat_template
    kind = type(tokenizer)
    if request.param == "slow":
        tokenizer.__class__ = type("Slow", (kind,), {"is_fast": False})
    if request.param == "own template":

        def shout(self: Any, messages: Any, **arguments: Any) -> Any:
            ids = kind.apply_chat_template(self, messages, **arguments)
            return {"input_ids": [1, *ids["input_ids"]]} if arguments["tokenize"] else ids

        tokenizer.__class__ = type("Shouting", (kind,), {"apply_chat_template": shout})
    return tokenizer


@settings(deadline=None, max_examples=60)
@given(examples=st.lists(mixed_examples(), max_size=8))
def test_many_rows_at_once_have_the_tokens_of_row_by_row(any_tokenizer: Any, examples: list[Example]) -> None:
    one_by_one = [tokenize_example(any_tokenizer, example) for example in examples]
    assert tokenize_examples(any_tokenizer, examples) == one_by_one
    assert tokenize_examples(any_tokenizer, examples * 2) == one_by_one * 2


def test_the_batch_meets_a_moved_boundary_and_a_bos_as_the_row_does() -> None:
    merging = build_merging_tokenizer()
    (tokens,) = tokenize_examples(merging, [Example("ca", "b", True)])
    assert tokens.boundary_moved
    assert merging.decode(tokens.prompt_ids) == "c"
    adding = load_conftest().build_tiny_tokenizer(adds_bos=True)
    plain, chat = tokenize_examples(adding, [Example("a", "b", True), Example([USER], [YO], True)])
    assert plain.prompt_ids[0] == adding.bos_token_id
    assert adding.bos_token_id not in chat.prompt_ids


def test_a_fast_tokenizer_is_asked_once_for_all_chats_and_once_for_all_texts(tiny_tokenizer: Any) -> None:
    asked: list[Any] = []

    class Watched(type(tiny_tokenizer)):  # type: ignore[misc]
        def __call__(self, text: Any, **arguments: Any) -> Any:
            asked.append(text)
            return super().__call__(text, **arguments)

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.__class__ = Watched
    examples = [Example(f"{n % 3}", f"{n}", True) for n in range(9)] + [Example([USER], [YO], True)] * 5
    tokenize_examples(tokenizer, examples)
    assert sorted(len(texts) for texts in asked) == [2, 12], "3 prompts and 9 rows; a text asked for once"


def test_a_row_that_cannot_be_tokenized_is_refused_in_a_batch_too(tiny_tokenizer: Any) -> None:
    good = Example("a", "b", True)
    with pytest.raises(DataError, match="two kinds"):
        tokenize_examples(tiny_tokenizer, [good, Example("a", [YO], True)])
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "always the same"
    with pytest.raises(DataError, match="renders to no token"):
        tokenize_examples(tokenizer, [good, Example([USER], [YO], True)])
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize_examples(tokenizer, [good, Example([USER], [YO], True)])


def test_a_row_cannot_move_its_own_boundary_by_a_template_argument(tiny_tokenizer: Any) -> None:
    example = Example([USER], [YO], True, chat_template_kwargs={"add_generation_prompt": False})
    for run in (
        lambda: tokenize_examples(tiny_tokenizer, [example]),
        lambda: tokenize_example(tiny_tokenizer, example),
    ):
        with pytest.raises(TypeError, match="add_generation_prompt"):
            run()
