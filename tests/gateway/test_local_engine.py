"""The local model answers many at once, and each as if it were alone."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from thumbtune.data.chat import tokenize_prompt
from thumbtune.engine.loading import load_model
from thumbtune.errors import ConfigError, ModelError
from thumbtune.gateway import batch_decoding, local_engine
from thumbtune.gateway.answer_text import measure_overlap
from thumbtune.gateway.batch_decoding import BatchDecoder, Row
from thumbtune.gateway.local_engine import (
    EngineFull,
    GenerationRequest,
    LocalEngine,
    Piece,
    PromptTooLong,
    UnknownVersion,
)
from thumbtune.gateway.served_adapters import ServedAdapters

QUESTIONS = ["Hi", "What is the capital of Turkey?", "x" * 150, "Şiir yaz: ığüşöç 😀", "a b c"]


@pytest.fixture(scope="module")
def adapters(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRA adapters that change every answer."""
    from peft import LoraConfig, get_peft_model

    folders = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = get_peft_model(
            load_model(tiny_model_path),
            LoraConfig(
                r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
            ),
        )
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folders[name])
    return folders


@asynccontextmanager
async def running(path: Path, tokenizer: Any, **settings: Any) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(load_model(path), tokenizer, base_version="base", **settings)
    try:
        yield engine
    finally:
        await engine.close(drain=False)


Run = Callable[..., Any]


@pytest.fixture
def run(tiny_model_path: Path, tiny_tokenizer: Any) -> Run:
    """Runs a coroutine function with an engine of its own."""

    def go(work: Callable[[LocalEngine], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
        async def main() -> Any:
            async with asyncio.timeout(60), running(tiny_model_path, tiny_tokenizer, **settings) as engine:
                return await work(engine)

        return asyncio.run(main())

    return go


def request(text: str, **settings: Any) -> GenerationRequest:
    return GenerationRequest(
        [{"role": "user", "content": text}], **{"temperature": 0.0, "max_tokens": 20, **settings}
    )


async def gather_pieces(engine: LocalEngine, wanted: GenerationRequest, version: str = "base") -> list[Piece]:
    return [piece async for piece in engine.generate(wanted, version)]


async def answer(engine: LocalEngine, wanted: GenerationRequest, version: str = "base") -> list[str]:
    """The text of each choice."""
    texts = [""] * wanted.n
    for piece in await gather_pieces(engine, wanted, version):
        texts[piece.index] += piece.text
    return texts


def greedy(path: Path, tokenizer: Any, text: str, max_tokens: int = 20) -> str:
    """What transformers' own `generate` says."""
    model = load_model(path)
    ids = torch.tensor([tokenize_prompt(tokenizer, [{"role": "user", "content": text}])])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens)
    found: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return found


def test_each_answer_in_company_is_what_generate_says_alone(
    run: Run, tiny_model_path: Path, tiny_tokenizer: Any
) -> None:
    async def work(engine: LocalEngine) -> list[list[str]]:
        return await asyncio.gather(*(answer(engine, request(text)) for text in QUESTIONS * 3))

    answers = run(work)
    expected = [greedy(tiny_model_path, tiny_tokenizer, text) for text in QUESTIONS]
    assert [text for (text,) in answers] == expected * 3
    assert len(set(expected)) > 3


def test_rows_that_join_and_leave_at_any_step_change_nobody(run: Run) -> None:
    """Long and short ones, started one after another, more of them than rows."""
    wanted = [request(QUESTIONS[i % 5], max_tokens=5 + 7 * (i % 6)) for i in range(14)]

    async def alone(engine: LocalEngine) -> list[list[str]]:
        return [await answer(engine, each) for each in wanted]

    async def together(engine: LocalEngine) -> list[list[str]]:
        tasks = []
        for each in wanted:
            tasks.append(asyncio.create_task(answer(engine, each)))
            await asyncio.sleep(0.004)
        return await asyncio.gather(*tasks)

    assert run(together, max_rows=4) == run(alone)


def test_a_seed_gives_the_same_answer_in_any_company_and_n_choices_differ(run: Run) -> None:
    sampled = request("Tell me", temperature=1.0, top_p=0.9, seed=7, n=3)

    async def alone(engine: LocalEngine) -> list[str]:
        return await answer(engine, sampled)

    async def together(engine: LocalEngine) -> list[str]:
        others = [asyncio.create_task(answer(engine, request(text, temperature=1.3))) for text in QUESTIONS]
        found = await answer(engine, sampled)
        await asyncio.gather(*others)
        return found

    first = run(alone)
    assert run(together) == first
    assert len(set(first)) == 3
    free = request("Tell me", temperature=1.0)

    async def twice(engine: LocalEngine) -> list[list[str]]:
        return [await answer(engine, free), await answer(engine, free)]

    one, other = run(twice)
    assert one != other, "without a seed each answer is drawn anew"


def test_two_adapters_and_the_base_share_a_batch(run: Run, adapters: dict[str, Path]) -> None:
    versions = ("base", "one", "two")

    async def work(engine: LocalEngine) -> list[Any]:
        for name, folder in adapters.items():
            await engine.load_adapter(name, folder)
        assert engine.versions == ["one", "two", "base"]
        alone = [await answer(engine, request("Hello"), version) for version in versions]
        together = await asyncio.gather(
            *(answer(engine, request("Hello"), version) for version in versions * 3)
        )
        return [alone, together]

    alone, together = run(work)
    assert together == alone * 3
    assert len({text for (text,) in alone}) == 3, "each version has a voice of its own"


def test_an_adapter_comes_and_goes_while_others_are_answered(run: Run, adapters: dict[str, Path]) -> None:
    async def work(engine: LocalEngine) -> list[Any]:
        alone = await answer(engine, request("Hello", max_tokens=400))
        long = asyncio.create_task(answer(engine, request("Hello", max_tokens=400)))
        await asyncio.sleep(0.02)
        await engine.load_adapter("one", adapters["one"])
        reading = asyncio.create_task(answer(engine, request("Hello", max_tokens=60), "one"))
        while engine.load()["rows"] < 2:
            await asyncio.sleep(0.001)
        leaving = asyncio.create_task(engine.unload_adapter("one"))
        await asyncio.sleep(0)
        with pytest.raises(UnknownVersion, match="'one' is not loaded"):
            await answer(engine, request("Hello"), "one")
        assert (await reading)[0], "the answer under way ends in peace"
        await leaving
        await engine.load_adapter("one", adapters["one"])
        return [alone, await long]

    alone, in_company = run(work)
    assert in_company == alone


def test_an_adapter_that_does_not_fit_is_refused_and_the_rest_goes_on(run: Run, tmp_path: Path) -> None:
    async def work(engine: LocalEngine) -> None:
        with pytest.raises(ModelError, match="holds no PEFT adapter"):
            await engine.load_adapter("bad", tmp_path)
        assert engine.versions == ["base"]
        assert await answer(engine, request("Hello"))

    run(work)


def _break(folder: Path, how: str) -> None:
    """An adapter's folder that looks like one."""
    weights = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    last = max(weights)
    if how == "a shape":
        weights[last] = torch.zeros(7, 7)
    elif how == "names of another model":
        weights = {name.replace("layers", "blocks"): weight for name, weight in weights.items()}
    elif how == "a weight missing":
        del weights[last]
    elif how == "a layer that LoRA cannot take":
        config["target_modules"] = ["q_proj", "post_attention_layernorm"]
    elif how == "DoRA":
        config["use_dora"] = True
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "how", ["a shape", "names of another model", "a weight missing", "a layer that LoRA cannot take", "DoRA"]
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_refused_adapter_leaves_all_others_as_they_were(
    run: Run, adapters: dict[str, Path], tmp_path: Path, how: str, is_first: bool
) -> None:
    shutil.copytree(adapters["two"], tmp_path / "broken")
    _break(tmp_path / "broken", how)

    async def work(engine: LocalEngine, *, with_broken: bool) -> list[Any]:
        if with_broken and is_first:
            await refuse(engine)
        await engine.load_adapter("one", adapters["one"])
        if with_broken:
            await refuse(engine)
        assert engine.versions == ["one", "base"]
        return await asyncio.gather(*(answer(engine, request("Hello"), name) for name in ("base", "one")))

    async def refuse(engine: LocalEngine) -> None:
        for _ in range(2):
            with pytest.raises(ModelError):
                await engine.load_adapter("broken", tmp_path / "broken")

    assert run(lambda engine: work(engine, with_broken=True)) == run(
        lambda engine: work(engine, with_broken=False)
    )


def test_an_adapters_own_folder_as_the_model_answers_with_the_adapter(
    run: Run, adapters: dict[str, Path], tiny_tokenizer: Any
) -> None:
    async def as_model() -> list[str]:
        async with running(adapters["one"], tiny_tokenizer) as engine:
            return await answer(engine, request("Hello"))

    async def as_adapter(engine: LocalEngine) -> list[str]:
        await engine.load_adapter("one", adapters["one"])
        return await answer(engine, request("Hello"), "one")

    assert asyncio.run(as_model()) == run(as_adapter)


def test_prompts_are_read_in_pieces_and_padding_counts(
    run: Run, tiny_model_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt among short ones: no forward is larger than one step may be, and the answers stay."""
    monkeypatch.setattr(local_engine, "PREFILL_TOKENS", 64)
    texts = ["y" * 700, *(f"q{i}" for i in range(6))]
    sizes: list[int] = []

    async def work(engine: LocalEngine) -> list[list[str]]:
        engine._adapters.model.register_forward_pre_hook(
            lambda module, args, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
        )
        return await asyncio.gather(*(answer(engine, request(text)) for text in texts))

    expected = [[greedy(tiny_model_path, tiny_tokenizer, text)] for text in texts]
    assert run(work) == expected
    assert max(sizes) == 64


def test_a_burst_is_let_in_where_rows_are_free_whatever_may_wait(run: Run) -> None:
    async def work(engine: LocalEngine) -> None:
        await asyncio.gather(*(answer(engine, request("Hello")) for _ in range(8)))
        with pytest.raises(EngineFull):
            await asyncio.gather(*(answer(engine, request("Hello")) for _ in range(9)))

    run(work, max_rows=8, max_waiting=0)


@pytest.mark.parametrize("leave_early", [False, True])
def test_a_reader_who_leaves_frees_the_rows(run: Run, leave_early: bool) -> None:
    async def work(engine: LocalEngine) -> None:
        pieces = engine.generate(request("Hello", max_tokens=1_500, n=4), "base")
        if leave_early:
            task = asyncio.ensure_future(anext(pieces))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            async with aclosing(pieces):
                await anext(pieces)
                assert engine.load()["rows"] == 4
        while engine.load()["rows"]:
            await asyncio.sleep(0.005)

    run(work)


def test_more_than_may_wait_is_refused(run: Run) -> None:
    async def work(engine: LocalEngine) -> None:
        def start() -> asyncio.Task[list[str]]:
            return asyncio.create_task(answer(engine, request("Hello", max_tokens=1_000)))

        tasks = [start()]
        while not engine.load()["rows"]:
            await asyncio.sleep(0.001)
        tasks += [start(), start()]
        while engine.load()["waiting"] < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(EngineFull, match="2 chats wait"):
            await answer(engine, request("Hello"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work, max_rows=1, max_waiting=2)


def test_a_prompt_without_room_and_too_many_choices_are_refused_with_numbers(run: Run) -> None:
    async def work(engine: LocalEngine) -> None:
        with pytest.raises(PromptTooLong, match=r"has \d+ tokens and the model's context 64"):
            await answer(engine, request("x" * 100))
        with pytest.raises(ConfigError, match="n is 9"):
            await answer(engine, request("Hi", n=9))
        (last,) = [
            piece
            for piece in await gather_pieces(engine, request("Hi", max_tokens=999))
            if piece.finish_reason
        ]
        assert (last.finish_reason, last.n_prompt_tokens + last.n_completion_tokens) == ("length", 64)

    run(work, max_rows=8, max_context=64)


def test_the_limit_ends_an_answer_with_length_and_an_end_of_turn_with_stop(
    run: Run, tiny_model_path: Path, tiny_tokenizer: Any
) -> None:
    async def work(engine: LocalEngine) -> list[Piece]:
        return [(await gather_pieces(engine, request("Hi", max_tokens=4)))[-1]]

    (last,) = run(work)
    assert (last.finish_reason, last.n_completion_tokens) == ("length", 4)

    async def stop(engine: LocalEngine) -> list[Piece]:
        pieces = []
        for seed in range(12):
            pieces += await gather_pieces(engine, request("Hi", temperature=1.5, seed=seed, max_tokens=300))
        return pieces

    ended = [piece for piece in run(stop) if piece.finish_reason == "stop"]
    assert ended, "some of a dozen long random answers end their turn"


def test_a_stop_string_is_never_sent_not_even_in_part(
    run: Run, tiny_model_path: Path, tiny_tokenizer: Any
) -> None:
    whole = greedy(tiny_model_path, tiny_tokenizer, "Hi", 60)
    assert len(whole) > 20
    stop = whole[9:13]

    async def work(engine: LocalEngine) -> list[list[Piece]]:
        wanted = [("never there",), (stop,), (stop[0] + "\x01", stop), (whole[5:7], stop)]
        return [await gather_pieces(engine, request("Hi", max_tokens=60, stop=each)) for each in wanted]

    answers = run(work)
    texts = ["".join(piece.text for piece in pieces) for pieces in answers]
    assert texts[0] == whole
    assert texts[1] == texts[2] == whole[: whole.index(stop)]
    assert texts[3] == whole[: whole.index(whole[5:7])]
    assert answers[1][-1].finish_reason == "stop"
    assert answers[1][-1].n_completion_tokens < 60


def test_what_could_become_a_stop_string_is_held_back() -> None:
    assert [measure_overlap(text, "STOP") for text in ("", "go", "go S", "go STO", "STOP", "SS")] == [
        0,
        0,
        1,
        3,
        0,
        1,
    ]


@pytest.mark.parametrize("text", ["ığüşöçİ", "a😀b👩‍👩‍👧", "日本語", "é"])
def test_characters_of_several_tokens_arrive_whole(
    text: str, run: Run, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    """The tiny tokenizer has a token a byte: a script stands in for the model's choice."""
    script = tiny_tokenizer(text, add_special_tokens=False)["input_ids"] + [tiny_tokenizer.eos_token_id]

    def pick(decoder: BatchDecoder) -> list[int]:
        return [script[len(row.token_ids)] for row in decoder.rows]

    monkeypatch.setattr(BatchDecoder, "pick", pick)

    async def work(engine: LocalEngine) -> list[Piece]:
        return await gather_pieces(engine, request("Hi", max_tokens=100))

    pieces = run(work)
    assert "".join(piece.text for piece in pieces) == text
    assert "\ufffd" not in "".join(piece.text for piece in pieces[:-1])


def test_a_failure_while_decoding_reaches_every_reader_and_the_engine_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: LocalEngine) -> None:
        good = await answer(engine, request("Hello"))
        original = BatchDecoder.advance
        failures = iter([True])

        def fail_once(decoder: BatchDecoder, leaving: Any = ()) -> None:
            if len(decoder.rows) == 3 and next(failures, False):
                raise RuntimeError("out of memory")
            original(decoder, leaving)

        monkeypatch.setattr(BatchDecoder, "advance", fail_once)
        results = await asyncio.gather(
            *(answer(engine, request("Hello", max_tokens=50)) for _ in range(3)), return_exceptions=True
        )
        assert any(isinstance(result, ModelError) for result in results), results
        assert all(isinstance(result, ModelError | list) for result in results)
        assert await answer(engine, request("Hello")) == good

    run(work)


def test_closing_lets_answers_end_or_breaks_them_off(run: Run) -> None:
    async def drain(engine: LocalEngine) -> list[str]:
        task = asyncio.create_task(answer(engine, request("Hello", max_tokens=100)))
        await asyncio.sleep(0.05)
        await engine.close(drain=True)
        with pytest.raises(EngineFull, match="shut down"):
            await answer(engine, request("Hello"))
        return await task

    async def alone(engine: LocalEngine) -> list[str]:
        return await answer(engine, request("Hello", max_tokens=100))

    assert run(drain) == run(alone)

    async def stop(engine: LocalEngine) -> None:
        task = asyncio.create_task(answer(engine, request("Hello", max_tokens=1_800)))
        await asyncio.sleep(0.05)
        await engine.close(drain=False)
        with pytest.raises(EngineFull, match="was shut down"):
            await task

    run(stop)


def test_buffers_are_shifted_back_when_a_long_line_of_rows_has_passed(
    tiny_model_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows overlap without end, so there is always somebody there: the buffers stay as long as the rows are."""
    monkeypatch.setattr(batch_decoding, "BLOCK", 8)
    model = load_model(tiny_model_path)
    prompt = tokenize_prompt(tiny_tokenizer, [{"role": "user", "content": "Hi"}])

    def make_row() -> Row:
        return Row(prompt, "base", 0.0, 1.0, torch.Generator())

    def decode(decoder: BatchDecoder, steps: int, leaving: list[Row]) -> None:
        for step in range(steps):
            for row, token in zip(decoder.rows, decoder.pick(), strict=True):
                row.token_ids.append(token)
            decoder.advance(leaving if step == steps - 1 else ())

    alone = make_row()
    decoder = BatchDecoder(ServedAdapters(model, "base"), pad_token_id=0)
    decoder.join([alone])
    decode(decoder, 36, [alone])
    crowd = BatchDecoder(ServedAdapters(model, "base"), pad_token_id=0)
    rows = [make_row() for _ in range(30)]
    crowd.join([rows[0]])
    for before, row in pairwise(rows):
        decode(crowd, 12, [])
        crowd.join([row])
        decode(crowd, 12, [before])
    assert all(row.token_ids == alone.token_ids for row in rows[1:-1])
    assert crowd._length < len(prompt) + 36 + 2 * 8 + 1
    assert crowd._cache.layers[0].keys.shape[2] < len(prompt) + 36 + 4 * 8


def test_the_logits_of_each_row_are_those_of_a_forward_over_the_whole_row(
    tiny_model_path: Path, tiny_tokenizer: Any
) -> None:
    """Rows of several lengths that join and leave at several steps, against one plain forward each."""
    model = load_model(tiny_model_path)
    decoder = BatchDecoder(ServedAdapters(model, "base"), pad_token_id=0)

    def make_row(text: str) -> Row:
        ids = tokenize_prompt(tiny_tokenizer, [{"role": "user", "content": text}])
        return Row(ids, "base", 0.0, 1.0, torch.Generator())

    def check() -> None:
        assert decoder._logits is not None
        for row, logits in zip(decoder.rows, decoder._logits, strict=True):
            with torch.no_grad():
                whole = model(torch.tensor([[*row.prompt_ids, *row.token_ids]])).logits[0, -1]
            assert (logits - whole).abs().max() < 1e-5

    for text in QUESTIONS:
        decoder.join([make_row(text), make_row(text)])
        check()
        for _ in range(3):
            for row, token in zip(decoder.rows, decoder.pick(), strict=True):
                row.token_ids.append(token)
            decoder.advance(decoder.rows[:1] if len(decoder.rows) > 2 else ())
            check()


def test_a_sliding_window_cuts_by_distance_whatever_the_column() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=260, num_key_value_heads=2, sliding_window=16, **sizes)
    model = MistralForCausalLM(config).eval()
    decoder = BatchDecoder(ServedAdapters(model, "base"), pad_token_id=0)
    rows = [Row(list(range(1, n)), "base", 0.0, 1.0, torch.Generator()) for n in (5, 30, 12)]
    for row in rows:
        decoder.join([row])
        for _ in range(10):
            for each, token in zip(decoder.rows, decoder.pick(), strict=True):
                each.token_ids.append(token)
            decoder.advance()
    assert decoder._logits is not None
    for row, logits in zip(decoder.rows, decoder._logits, strict=True):
        with torch.no_grad():
            whole = model(torch.tensor([[*row.prompt_ids, *row.token_ids]])).logits[0, -1]
        assert (logits - whole).abs().max() < 1e-5


def test_a_model_that_remembers_more_than_keys_and_values_is_refused() -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Lfm2Config(
        vocab_size=260, num_key_value_heads=2, layer_types=["conv", "full_attention"], **sizes
    )
    with pytest.raises(ModelError, match="keys and values alone"):
        BatchDecoder(ServedAdapters(Lfm2ForCausalLM(config), "base"), pad_token_id=0)


def test_a_slow_tokenizer_is_refused(tiny_model_path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="slow tokenizer"):
        LocalEngine(load_model(tiny_model_path), Slow(), base_version="base")
