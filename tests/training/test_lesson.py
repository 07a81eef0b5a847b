"""The lesson's own lab on a tiny model: its settings, its call, its rows; and every other way to call a trainer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from thumbtune import DPOTrainer, KTOConfig, KTOTrainer
from thumbtune.errors import ConfigError, DataError

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
    ),
]

CITIES = [
    "İstanbul",
    "Ankara",
    "İzmir",
    "Bursa",
    "Antalya",
    "Çanakkale",
    "Şanlıurfa",
    "Muğla",
    "Iğdır",
    "Düzce",
]


def lesson_rows() -> list[dict[str, Any]]:
    """40 thumbs in the lesson's manner, half of them up."""
    rows = [
        {"prompt": "İstanbul nüfusu?", "completion": "Yaklaşık 15 milyon.", "label": True},
        {"prompt": "İstanbul nüfusu?", "completion": "Bilmiyorum.", "label": False},
        {
            "prompt": "Ankara'nın nüfusu nedir?",
            "completion": "Yaklaşık 5.6 milyon (2024 verisi).",
            "label": True,
        },
        {"prompt": "Ankara'nın nüfusu nedir?", "completion": "Bilmiyorum.", "label": False},
    ]
    for number in range(18):
        prompt = f"{CITIES[number % 10]} {number + 1}. sırada mı?"
        rows.append({"prompt": prompt, "completion": f"Evet, {number + 1}. sırada.", "label": True})
        rows.append({"prompt": prompt, "completion": "Bilmiyorum.", "label": False})
    return rows


def lesson_config(folder: Path) -> KTOConfig:
    """The settings of the lesson's lab, to the letter."""
    return KTOConfig(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=5e-6,
        bf16=True,
        optim="paged_adamw_8bit",
        max_length=4096,
        max_prompt_length=2048,
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        logging_steps=5,
        report_to="wandb",
    )


@pytest.fixture
def _lesson_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a GPU, without fast bf16, and without a wandb account."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("thumbtune.training.config.cpu_has_fast_bf16", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "to be forgotten at the end")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


FLOAT32 = "bf16=True is slower than float32 on this CPU (no AVX512-BF16 or AMX): trained in float32"
OFFLINE = "report_to='wandb' without an API key: logged offline (WANDB_MODE=offline)"


@pytest.mark.usefixtures("_lesson_machine")
def test_the_lessons_call_runs_as_it_stands_and_says_each_adjustment_once(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    cfg = lesson_config(lab.folder / "run")
    rows = lesson_rows()
    model = lab.model()
    caplog.set_level(logging.WARNING, logger="thumbtune")
    try:
        trainer: Any = KTOTrainer(model=model, args=cfg, train_dataset=rows, tokenizer=lab.tokenizer)
        result = trainer.train()
    finally:
        wandb.finish()

    assert result.global_step == 6  # 40 rows in batches of 16 are 3 steps an epoch
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [5]
    paged = "optim='paged_adamw_8bit' pages between GPU and CPU memory: 'adamw_8bit' without a GPU"
    assert trainer.args.adjustments == [FLOAT32, paged, OFFLINE]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("thumbtune")]
    assert said == trainer.args.adjustments
    manifest = json.loads((lab.folder / "run" / "manifest.json").read_text())
    assert manifest["adjustments"] == trainer.args.adjustments
    assert manifest["data"]["classes"] == {"desirable": 20, "undesirable": 20}
    assert not any(manifest["data"]["counts"].values()), "nothing is cut, dropped or moved"
    assert "bitsandbytes" in type(trainer.optimizer.optimizer).__module__
    assert list(lab.folder.glob("wandb/offline-run-*"))


@pytest.mark.usefixtures("_lesson_machine")
def test_without_bitsandbytes_and_wandb_the_lesson_goes_on_with_plain_adamw(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thumbtune.training import config

    found = config.find_spec
    hidden = {"bitsandbytes", "wandb"}
    monkeypatch.setattr(config, "find_spec", lambda name: None if name in hidden else found(name))
    trainer: Any = KTOTrainer(
        model=lab.model(),
        args=lesson_config(lab.folder / "run"),
        train_dataset=lesson_rows(),
        tokenizer=lab.tokenizer,
    )
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    assert trainer.args.adjustments == [
        FLOAT32,
        "optim='paged_adamw_8bit' needs bitsandbytes, which is not installed: plain AdamW",
        "report_to='wandb' needs the package 'wandb': not reported there",
    ]


def test_turkish_text_is_trained_whole(lab: Any) -> None:
    trainer = lab.trainer(rows=lesson_rows())
    branch = trainer.train_dataset.rows.branches[0][0]
    assert lab.tokenizer.decode(branch.prompt_ids) == "İstanbul nüfusu?"
    assert lab.tokenizer.decode(branch.completion_ids) == "Yaklaşık 15 milyon.<|im_end|>"


# ---- models


def chosen_rewards(trainer: Any) -> tuple[float, float]:
    metrics = trainer.evaluate()
    return metrics["eval_rewards/chosen"], metrics["eval_rewards/rejected"]


def test_a_model_by_name_brings_its_tokenizer_and_takes_its_arguments(lab: Any) -> None:
    by_name = KTOTrainer(
        model=str(lab.model_path),
        args=lab.config(max_steps=2, model_init_kwargs={"dtype": "float32", "attn_implementation": "eager"}),
        train_dataset=lab.thumbs(8),
    )
    assert by_name.model.config._attn_implementation.endswith("eager")
    by_name.train()
    by_object = lab.trainer(max_steps=2)
    by_object.train()
    names = ("loss", "rewards/chosen", "rewards/rejected")
    for ours, theirs in zip(by_name.state.log_history[:2], by_object.state.log_history[:2], strict=True):
        assert [ours[n] for n in names] == pytest.approx([theirs[n] for n in names], abs=1e-5)


def test_model_arguments_may_be_json(lab: Any) -> None:
    config = lab.config(model_init_kwargs='{"attn_implementation": "eager"}')
    trainer = KTOTrainer(model=lab.model_path, args=config, train_dataset=lab.thumbs(4))
    assert trainer.model.config._attn_implementation.endswith("eager")


@pytest.fixture
def trained_adapter(lab: Any) -> Path:
    """A folder with an adapter that has moved away from its base."""
    first = lab.trainer(model=str(lab.model_path), adapter=lab.lora(), max_steps=4)
    first.train()
    first.save_model(str(lab.folder / "adapter"))
    return lab.folder / "adapter"


@pytest.mark.parametrize("given_as", ["folder", "frozen", "trainable"])
def test_a_trained_adapter_is_its_own_reference_and_is_trained_on(
    lab: Any, trained_adapter: Path, given_as: str
) -> None:
    from peft import PeftModel

    model: Any = str(trained_adapter)
    if given_as != "folder":
        model = PeftModel.from_pretrained(lab.model(), trained_adapter, is_trainable=given_as == "trainable")
    trainer = lab.trainer(model=model, given={"eval_dataset": lab.thumbs(8)}, max_steps=2)
    assert chosen_rewards(trainer) == pytest.approx((0, 0), abs=1e-5)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_a_fresh_adapter_has_the_base_for_its_reference_and_leaves_it_alone(lab: Any) -> None:
    model = lab.model()
    trainer = lab.trainer(model=model, adapter=lab.lora(), given={"eval_dataset": lab.thumbs(8)}, max_steps=2)
    assert chosen_rewards(trainer) == pytest.approx((0, 0), abs=1e-5)
    trainer.train()
    with trainer.model.disable_adapter():
        base = {
            name: p for name, p in trainer.model.get_base_model().named_parameters() if "lora_" not in name
        }
        for name, parameter in lab.model().named_parameters():
            ours = base[name if name in base else name.replace(".weight", ".base_layer.weight")]
            assert torch.equal(ours, parameter), name


def test_an_adapter_that_starts_away_from_zero_is_no_copy_of_the_base_but_its_own_reference(lab: Any) -> None:
    adapter = lab.lora(init_lora_weights=False)
    trainer = lab.trainer(adapter=adapter, given={"eval_dataset": lab.thumbs(8)})
    assert chosen_rewards(trainer) == pytest.approx((0, 0), abs=1e-5)


@pytest.mark.parametrize("given_as", ["object", "name", "path"])
def test_an_explicit_reference_is_measured_against(lab: Any, given_as: str) -> None:
    """The policy is the reference with a shifted head, so the rewards are what its shift makes of them."""
    policy = lab.model()
    with torch.no_grad():
        policy.lm_head.weight[lab.tokenizer.eos_token_id] += 0.5
    reference = {"object": lab.model(), "name": str(lab.model_path), "path": lab.model_path}[given_as]
    trainer = lab.trainer(model=policy, given={"ref_model": reference, "eval_dataset": lab.thumbs(8)})
    up, down = chosen_rewards(trainer)
    assert abs(up) > 1e-3

    def log_prob(model: Any, branch: Any) -> float:
        ids = [*branch.prompt_ids, *branch.completion_ids]
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        return sum(float(scores[i - 1, ids[i]]) for i in range(len(branch.prompt_ids), len(ids)))

    rows = trainer.eval_dataset.rows
    rewards = [0.1 * (log_prob(policy, row[0]) - log_prob(lab.model(), row[0])) for row in rows.branches]
    ups = [reward for reward, label in zip(rewards, rows.labels, strict=True) if label]
    downs = [reward for reward, label in zip(rewards, rows.labels, strict=True) if not label]
    assert (up, down) == pytest.approx((sum(ups) / len(ups), sum(downs) / len(downs)), abs=1e-5)


def test_prompt_learning_and_a_second_adapter_are_refused(lab: Any) -> None:
    from peft import PromptTuningConfig, get_peft_model

    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(
        ConfigError, match="PromptTuningConfig is prompt learning, which is not supported: use Lora"
    ):
        lab.trainer(adapter=prompts)
    with pytest.raises(ConfigError, match="prompt-learning adapters are not supported"):
        lab.trainer(model=get_peft_model(lab.model(), prompts))
    with pytest.raises(ConfigError, match="carries an adapter already: leave peft_config out, or merge"):
        lab.trainer(model=get_peft_model(lab.model(), lab.lora()), adapter=lab.lora())


# ---- rows


def test_pairs_teach_kto_as_two_thumbs_each(lab: Any) -> None:
    trainer = lab.trainer(rows=lab.pairs(6), max_steps=2)
    trainer.train()
    assert trainer.class_counts == {"desirable": 6, "undesirable": 6}
    assert trainer.train_dataset.rows.where[:2] == [
        "train_dataset row 0 chosen",
        "train_dataset row 0 rejected",
    ]


def test_thumbs_teach_dpo_where_one_prompt_has_both_and_the_others_are_counted(lab: Any) -> None:
    rows = [*lab.thumbs(8), {"prompt": "only this?", "completion": "yes", "label": True}]
    trainer = lab.trainer("dpo", rows, max_steps=2)
    trainer.train()
    assert trainer.class_counts == {"pairs": 4}
    assert trainer.train_dataset.rows.counts["not paired: no_counterpart"] == 1
    assert "train_dataset row 1 + train_dataset row 0" in trainer.train_dataset.rows.where


@pytest.mark.parametrize("method", ["kto", "dpo"])
@pytest.mark.parametrize("adapted", [True, False])
def test_a_hugging_face_dataset_trains_like_the_list_of_its_rows(
    lab: Any, method: str, adapted: bool
) -> None:
    from datasets import Dataset

    rows = lab.thumbs(8) if method == "kto" else lab.pairs(8)
    losses = []
    for data in (rows, Dataset.from_list(rows)):
        trainer = lab.trainer(method, data, adapter=lab.lora() if adapted else None, max_steps=2)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("label", [True, False])
def test_thumbs_of_one_class_are_a_warning_for_kto_and_no_pair_for_dpo(
    lab: Any, label: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for row in lab.thumbs(12) if row["label"] is label]
    trainer = lab.trainer(rows=rows, desirable_weight="auto", max_steps=2)
    assert "all labels are of one class: the loss can only push one way" in caplog.text
    trainer.train()
    assert trainer.args.desirable_weight == trainer.args.undesirable_weight == 1.0
    assert "auc" not in trainer.state.log_history[0]
    with pytest.raises(DataError, match=r"no prompt has both a 👍 and a 👎, .* use --method kto"):
        lab.trainer("dpo", rows)


def test_both_trainers_make_their_own_config_where_none_is_given(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.folder)
    for kind, rows in ((KTOTrainer, lab.thumbs(4)), (DPOTrainer, lab.pairs(4))):
        trainer = kind(model=lab.model(), train_dataset=rows, processing_class=lab.tokenizer)
        assert isinstance(trainer.args, kind.config_class)
        assert trainer.args.output_dir == f"thumbtune-{kind.config_class.method}"
