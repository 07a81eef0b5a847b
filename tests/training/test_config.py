"""Settings: each one moves the number that it should, by the right amount, and none is taken in vain."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch

from thumbtune import DPOConfig, KTOConfig
from thumbtune.errors import ConfigError
from thumbtune.training.config import PreferenceConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def train_log(lab: Any, method: str = "kto", steps: int = 3, **settings: Any) -> list[dict[str, float]]:
    """The logs of a few steps on 10 rows (half 👍, two of them at odds) or 8 pairs, all in one batch."""
    odds = [{"prompt": "at odds?", "completion": "both", "label": label} for label in (True, False)]
    rows = lab.thumbs(8) + odds if method == "kto" else lab.pairs(8)
    trainer = lab.trainer(method, rows, max_steps=steps, **{"per_device_train_batch_size": 10, **settings})
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


FIRST_LOSS = [
    # before step 1 every log ratio and z0 are 0: half of each weight is lost
    ("kto", {}, 0.5),
    ("kto", {"desirable_weight": 3.0}, (3.0 + 1.0) / 2 / 2),
    ("kto", {"undesirable_weight": 2.0}, (1.0 + 2.0) / 2 / 2),
    ("kto", {"loss_type": "kto_thresholds"}, 0.5),
    ("kto", {"loss_type": "kto_thresholds", "z_yes": 1.0}, (1 - sigmoid(-1.0) + 0.5) / 2),
    ("kto", {"loss_type": "kto_thresholds", "z_no": 2.0}, (0.5 + 1 - sigmoid(2.0)) / 2),
    ("kto", {"loss_type": "kto_prospect"}, 0.0),
    ("dpo", {}, math.log(2)),
    ("dpo", {"label_smoothing": 0.3}, math.log(2)),
]


@pytest.mark.parametrize(("method", "settings", "expected"), FIRST_LOSS)
def test_the_loss_of_the_first_step_can_be_worked_out_by_hand(
    lab: Any, method: str, settings: dict[str, Any], expected: float
) -> None:
    # three times the rounding of a float32 log-prob of some 40 nats (2e-6), times beta
    assert train_log(lab, method, steps=1, **settings)[0]["loss"] == pytest.approx(expected, abs=1e-6)


MOVES = [
    ("kto", {}, {"beta": 0.5}),
    ("kto", {}, {"learning_rate": 2e-2}),
    ("kto", {}, {"loss_type": "kto_prospect"}),
    ("kto", {}, {"max_length": 14}),
    ("kto", {}, {"max_prompt_length": 6}),
    ("kto", {"max_prompt_length": 10}, {"truncation": "keep_start"}),
    ("kto", {"loss_type": "kto_thresholds"}, {"beta": 0.5}),
    ("kto", {"loss_type": "kto_prospect"}, {"prospect_alpha": 0.5}),
    ("kto", {"loss_type": "kto_prospect"}, {"loss_aversion": 1.0}),
    ("kto", {"loss_type": "kto_prospect"}, {"desirable_weight": 2.0}),
    ("dpo", {}, {"beta": 0.5}),
    ("dpo", {}, {"label_smoothing": 0.3}),
]


@pytest.mark.parametrize(("method", "settings", "change"), MOVES)
def test_a_setting_that_is_changed_moves_the_loss_of_the_third_step(
    lab: Any, method: str, settings: dict[str, Any], change: dict[str, Any]
) -> None:
    before = train_log(lab, method, **settings)[2]["loss"]
    after = train_log(lab, method, **settings, **change)[2]["loss"]
    assert abs(after - before) > 1e-4


@pytest.mark.parametrize("change", [{"reference_max_tokens": 60}, {"precompute_ref_log_probs": False}])
def test_a_setting_of_memory_alone_moves_nothing(lab: Any, change: dict[str, Any]) -> None:
    before, after = train_log(lab)[2]["loss"], train_log(lab, **change)[2]["loss"]
    assert after == pytest.approx(before, abs=1e-6)


def test_the_reference_cache_is_the_folder_that_was_named_and_is_used_again(lab: Any) -> None:
    cache = lab.folder / "kept"
    before = train_log(lab, reference_cache=str(cache))
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert files
    assert train_log(lab, reference_cache=str(cache))[2]["loss"] == before[2]["loss"]
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files


def test_dropout_is_off_unless_it_is_asked_for_wherever_the_model_keeps_it(lab: Any) -> None:
    model = lab.model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5  # Llama hands this number to its attention function
    adapter = lab.lora(lora_dropout=0.5)
    quiet = lab.trainer(model=model, adapter=adapter, max_steps=1)
    assert {module.p for module in quiet.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    quiet.train()
    assert quiet.state.log_history[0]["loss"] == pytest.approx(0.5, abs=1e-6)

    noisy = lab.trainer(adapter=adapter, disable_dropout=False, max_steps=1)
    dropouts = [module for module in noisy.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert {module.p for module in dropouts} == {0.5}


@pytest.mark.parametrize(
    ("where", "engine"), [("attention", "auto"), ("adapter", "packed"), ("adapter", "padded")]
)
def test_dropout_that_is_asked_for_is_in_the_loss(lab: Any, where: str, engine: str) -> None:
    """At the second step: a fresh adapter adds nothing to the first, whatever is dropped. Packed rows drop none."""
    found = []
    for disable in (True, False):
        model = lab.model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5 * (where == "attention")
        adapter = lab.lora(lora_dropout=0.5) if where == "adapter" else None
        trainer = lab.trainer(
            model=model, adapter=adapter, engine=engine, disable_dropout=disable, max_steps=2
        )
        trainer.train()
        found.append(trainer.state.log_history[1]["loss"])
    assert trainer.path.name == {"auto": "padded"}.get(engine, engine)
    assert abs(found[0] - found[1]) > 1e-3


def test_auto_weights_come_from_the_counts_and_say_so(lab: Any) -> None:
    rows = [row for row in lab.thumbs(20) if row["label"]] + lab.thumbs(4)[::2]  # 10 👍, 2 👎
    trainer = lab.trainer(rows=rows, desirable_weight="auto")
    assert trainer.args.desirable_weight == 1.0
    assert trainer.args.undesirable_weight == pytest.approx(10 / (1.5 * 2))
    assert trainer.args.adjustments == ["class weights 'auto': 1 for 10 👍, 3.333 for 2 👎"]


REFUSED = [
    (KTOConfig, {"z_yes": 0.1}, "z_yes=0.1 is used by loss_type='kto_thresholds' only, not by 'kto'"),
    (KTOConfig, {"z_no": 0.0}, "z_no=0.0 is used by loss_type='kto_thresholds' only"),
    (KTOConfig, {"loss_type": "kto_prospect", "z_no": 0.1}, "not by 'kto_prospect'"),
    (KTOConfig, {"prospect_alpha": 0.9}, "prospect_alpha=0.9 is used by loss_type='kto_prospect' only"),
    (KTOConfig, {"loss_type": "kto_thresholds", "loss_aversion": 2.0}, "not by 'kto_thresholds'"),
    (
        KTOConfig,
        {"loss_type": "kto_prospect", "prospect_alpha": 1.2},
        "prospect_alpha=1.2: above 0 and up to 1",
    ),
    (KTOConfig, {"loss_type": "kto_prospect", "loss_aversion": 0.0}, "loss_aversion=0.0: a number above 0"),
    (KTOConfig, {"loss_type": "sigmoid"}, "loss_type='sigmoid': 'kto', 'kto_thresholds', 'kto_prospect', "),
    (KTOConfig, {"desirable_weight": 0}, "desirable_weight=0.0: a number above 0, or 'auto'"),
    (KTOConfig, {"undesirable_weight": math.nan}, "undesirable_weight=nan: a number above 0, or 'auto'"),
    (KTOConfig, {"undesirable_weight": "much"}, "undesirable_weight='much': a number above 0, or 'auto'"),
    (KTOConfig, {"beta": 0.0}, "beta=0.0: it has to be above 0, 0.1 is usual"),
    (DPOConfig, {"beta": math.nan}, "beta=nan: it has to be above 0"),
    (DPOConfig, {"loss_type": "hinge"}, "loss_type='hinge': 'sigmoid', 'ipo', "),
    (DPOConfig, {"label_smoothing": 0.5}, r"label_smoothing=0.5: a share in \[0, 0.5\)"),
    (DPOConfig, {"max_length": 0}, "max_length=0: it counts tokens, so 1 at least, or None for no limit"),
    (KTOConfig, {"max_length": 8, "max_prompt_length": 8}, "leaves no room for a completion in max_length=8"),
    (KTOConfig, {"truncation": "middle"}, "truncation='middle': 'keep_end' or 'keep_start'"),
    (KTOConfig, {"trust_remote_code": True}, "thumbtune runs no code from a model's repository"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED)
def test_a_setting_that_cannot_hold_is_refused_with_what_to_do(
    kind: type[PreferenceConfig], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(output_dir="unused", **settings)


@pytest.mark.parametrize(("kind", "name"), [(KTOConfig, "label_smoothing"), (DPOConfig, "desirable_weight")])
def test_a_setting_of_the_other_method_is_no_setting(kind: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        kind(output_dir="unused", **{name: 0.1})


@pytest.mark.parametrize("kind", [KTOConfig, DPOConfig])
def test_every_setting_of_ours_is_documented_under_itself(kind: type[PreferenceConfig]) -> None:
    theirs = {field.name for field in fields(PreferenceConfig.__mro__[1])}
    for field in fields(kind):
        if field.name not in theirs:
            assert field.metadata["help"].endswith("."), field.name


def test_bf16_without_hardware_for_it_is_float32_and_with_it_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("thumbtune.training.config.cpu_has_fast_bf16", lambda: False)
    slow = KTOConfig(output_dir="unused", bf16=True)
    assert not slow.bf16
    assert slow.adjustments == [
        "bf16=True is slower than float32 on this CPU (no AVX512-BF16 or AMX): trained in float32"
    ]
    monkeypatch.setattr("thumbtune.training.config.cpu_has_fast_bf16", lambda: True)
    fast = KTOConfig(output_dir="unused", bf16=True)
    assert fast.bf16
    assert fast.use_cpu
    assert fast.adjustments == ["bf16=True without a GPU: bf16 autocast on the CPU (use_cpu=True)"]
    half = KTOConfig(output_dir="unused", fp16=True)
    assert not half.fp16
    assert half.adjustments == ["fp16=True needs a GPU: trained in float32 on this CPU"]


def test_bf16_autocast_on_the_cpu_trains(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thumbtune.training.config.cpu_has_fast_bf16", lambda: True)
    half, whole = train_log(lab, bf16=True), train_log(lab)
    assert half[2]["loss"] != whole[2]["loss"]
    assert half[2]["loss"] == pytest.approx(
        whole[2]["loss"], abs=0.02
    )  # bf16 keeps 8 bits of 40 nats, times beta


@pytest.mark.parametrize(
    ("hidden", "optim", "taken"),
    [
        (True, "paged_adamw_8bit", "adamw_torch"),
        (False, "paged_adamw_8bit", "adamw_8bit"),
        (False, "paged_lion_8bit", "lion_8bit"),
        (False, "adamw_8bit", "adamw_8bit"),
    ],
)
def test_an_optimizer_that_is_not_to_be_had_gives_way_to_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, hidden: bool, optim: str, taken: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("thumbtune.training.config.find_spec", lambda name: None if hidden else object())
    config = KTOConfig(output_dir="unused", optim=optim)
    assert config.optim == taken
    assert len(config.adjustments) == (taken != optim)


def test_a_tracker_that_is_not_installed_is_left_out_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "thumbtune.training.config.find_spec", lambda name: None if name == "mlflow" else object()
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = KTOConfig(output_dir="unused", report_to=["mlflow", "wandb"])
    assert config.report_to == ["wandb"]
    assert config.adjustments == ["report_to='mlflow' needs the package 'mlflow': not reported there"]
    assert KTOConfig(output_dir="unused", report_to="mlflow").report_to == []
