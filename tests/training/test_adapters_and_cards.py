"""Adapters of other kinds, quantized weights, and the card that goes with what was trained."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from thumbtune.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
    ),
]

ENGINES = ["packed", "padded"]


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ---- adapters


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
    ],
    ids=["dora", "rslora", "a whole head", "an adapted head"],
)
def test_every_kind_of_lora_trains_and_saves_what_it_trained(
    lab: Any, settings: dict[str, Any], engine: str, tmp_path: Path
) -> None:
    trainer = lab.trainer(
        adapter=lab.lora(**settings), engine="auto" if engine == "packed" else engine, max_steps=3
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    told = losses(trainer)
    assert told[0] == pytest.approx(0.5, abs=1e-5)
    assert told[2] < 0.495
    moved = [
        name for name, p in trainer.model.named_parameters() if name in before and not p.equal(before[name])
    ]
    assert sorted(moved) == sorted(before), "each trained tensor has moved"
    trainer.save_model(str(tmp_path / "adapter"))
    from peft import PeftModel

    again = PeftModel.from_pretrained(lab.model(), tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, trainer.model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_that_is_no_lora_trains(lab: Any, engine: str) -> None:
    from peft import IA3Config

    adapter = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )
    trainer = lab.trainer(adapter=adapter, engine=engine, max_steps=4, learning_rate=0.1)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.5, abs=1e-5)
    assert losses(trainer)[3] < 0.499


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_prompt_learning_is_refused_with_what_to_use(lab: Any, kind: str) -> None:
    import peft

    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(
        ConfigError, match=f"{kind} is prompt learning, which is not supported: use LoraConfig"
    ):
        lab.trainer(adapter=config)


# ---- quantized weights


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A Llama of width 128: bitsandbytes quantizes in blocks of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=tiny_tokenizer.pad_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def four_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["argument", "model_init_kwargs"])
def test_qlora_trains_an_adapter_on_four_bits(
    lab: Any, engine: str, way: str, wide_path: Path, tmp_path: Path
) -> None:
    given = {"quantization_config": four_bits()} if way == "argument" else {}
    settings = {"model_init_kwargs": {"quantization_config": four_bits()}} if way != "argument" else {}
    trainer = lab.trainer(
        model=str(wide_path), adapter=lab.lora(), engine=engine, max_steps=3, given=given, **settings
    )
    layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
    assert type(layer.base_layer).__name__ == "Linear4bit"
    assert layer.base_layer.weight.dtype == torch.uint8
    frozen = layer.base_layer.weight.detach().clone()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.5, abs=1e-5)
    assert losses(trainer)[2] < 0.495
    first = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight
    assert float(first.detach().abs().max()) > 0, "the gradient has come down through the 4-bit layers"
    assert torch.equal(layer.base_layer.weight, frozen)
    assert trainer.evaluate(lab.thumbs(6))["eval_rewards/margins"] > 0
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_reference_by_name_is_quantized_as_the_policy_is(lab: Any, wide_path: Path) -> None:
    trainer = lab.trainer(
        model=str(wide_path),
        adapter=lab.lora(),
        max_steps=2,
        given={"quantization_config": four_bits(), "ref_model": str(wide_path)},
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.5, abs=1e-5)
    assert trainer.evaluate(lab.thumbs(6))["eval_rewards/margins"] > 0


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_quantization_that_cannot_be_is_refused(lab: Any) -> None:
    with pytest.raises(ConfigError, match="quantized weights cannot be trained, only an adapter on them"):
        lab.trainer(model=str(lab.model_path), given={"quantization_config": four_bits()})
    with pytest.raises(ConfigError, match="quantization_config goes with a model given by name"):
        lab.trainer(adapter=lab.lora(), given={"quantization_config": four_bits()})
    with pytest.raises(ConfigError, match="quantization_config is given twice"):
        lab.trainer(
            model=str(lab.model_path),
            adapter=lab.lora(),
            given={"quantization_config": four_bits()},
            model_init_kwargs={"quantization_config": four_bits()},
        )


# ---- tools and template arguments


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_a_column_for_the_template_changes_what_is_trained(lab: Any, column: str, engine: str) -> None:
    tool = {
        "type": "function",
        "function": {"name": "weather", "description": "Tells the weather", "parameters": {}},
    }
    lab.tokenizer.chat_template = "{% if mood %}{{ mood }}{% endif %}" + lab.tokenizer.chat_template
    value: Any = [tool] if column == "tools" else {"mood": "cheerful"}
    found = []
    for extra in ({}, {column: value}):
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
                "label": row["label"],
                **extra,
            }
            for row in lab.thumbs(8)
        ]
        trainer = lab.trainer(rows=rows, engine=engine, max_steps=3)
        trainer.train()
        text = lab.tokenizer.decode(trainer.train_dataset.rows.branches[0][0].prompt_ids)
        found.append((text, losses(trainer)[2]))
    (plain, loss), (with_column, moved) = found
    word = "weather" if column == "tools" else "cheerful"
    assert word not in plain
    assert word in with_column
    assert abs(loss - moved) > 1e-5


# ---- the card


@pytest.mark.parametrize("method", ["kto", "dpo"])
@pytest.mark.parametrize("adapted", [True, False])
def test_the_card_tells_the_method_the_tags_the_rows_and_the_base(
    lab: Any, method: str, adapted: bool
) -> None:
    from huggingface_hub import ModelCard

    trainer = lab.trainer(
        method, model=str(lab.model_path), adapter=lab.lora() if adapted else None, max_steps=1, beta=0.25
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="gentle", tags="mine", dataset="some/thumbs")
    trainer.create_model_card(model_name="gentle", tags=["mine"], dataset="some/thumbs")
    card = ModelCard.load(lab.folder / "run" / "README.md")
    assert {"thumbtune", method, "mine"} <= set(card.data.tags)
    assert len(card.data.tags) == len(set(card.data.tags))
    assert card.text.count("## How it was trained") == 1
    assert method.upper() in card.text
    assert "beta 0.25" in card.text
    assert ("A LoRA adapter" if adapted else "All weights") in card.text
    assert trainer.manifest["digest"] in card.text
    assert "some/thumbs" in card.text
    assert {"kto": "2402.01306", "dpo": "2305.18290"}[method] in card.text


def test_a_pushed_model_brings_its_card_and_tags(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    class Hub:
        def upload_folder(self, **arguments: Any) -> None:
            pushed.update(arguments)

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer = lab.trainer(max_steps=1)
    trainer.hub_model_id = "someone/gentle"
    trainer.train()
    trainer.push_to_hub()
    assert pushed["repo_id"] == "someone/gentle"
    text = (Path(pushed["folder_path"]) / "README.md").read_text()
    assert "- thumbtune" in text
    assert "- kto" in text
    assert set(trainer.model.model_tags) == {"thumbtune", "kto"}


def test_four_bits_that_were_packed_for_inference_are_refused() -> None:
    """bitsandbytes packs them on some CPUs in a first forward in eval mode; they have no gradient then."""
    from thumbtune.training.policy import keep_four_bits_trainable

    class State:
        packing_format_for_cpu = False

    layer = torch.nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True  # type: ignore[assignment]
    layer.weight.quant_state = State()  # type: ignore[attr-defined]
    model = torch.nn.Sequential(layer)
    keep_four_bits_trainable(model)
    assert not layer.support_avx512bf16_for_cpu
    State.packing_format_for_cpu = True
    with pytest.raises(ConfigError, match="the 4-bit weights of 0 were packed for inference on this CPU"):
        keep_four_bits_trainable(model)


def test_an_adapter_on_the_head_is_never_left_untrained_by_packing(lab: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be had: .* an adapter sits on its head"):
        lab.trainer(adapter=lab.lora(target_modules=["lm_head"]), engine="packed")
