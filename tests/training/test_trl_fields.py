"""Every field of the installed TRL is in the table, and the table tells the truth."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from thumbtune import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from thumbtune.errors import ConfigError
from thumbtune.training.settings import build_config
from thumbtune.training.trl_fields import DPO_FIELDS

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "trl-fields.md"
CONFIGS = {"kto": KTOConfig, "dpo": DPOConfig}
TRAINERS = {"kto": KTOTrainer, "dpo": DPOTrainer}


def read_table() -> dict[str, str]:
    """What the table says of each name."""
    rows = re.findall(
        r"^\| `(\w+)` \| (honoured|renamed|refused|no effect)\b.*\|$", TABLE.read_text(), re.MULTILINE
    )
    names = [name for name, _ in rows]
    assert len(names) == len(set(names)), "a name stands in the table once"
    return dict(rows)


def list_their_fields(method: str) -> dict[str, Any]:
    """Fields of TRL's config that `TrainingArguments` lacks, with their defaults."""
    import trl

    config = {"kto": trl.KTOConfig, "dpo": trl.DPOConfig}[method]
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        for field in dataclasses.fields(config)
        if field.init and field.name not in known
    }


def list_their_arguments(method: str) -> list[str]:
    import trl

    trainer = {"kto": trl.KTOTrainer, "dpo": trl.DPOTrainer}[method]
    return list(inspect.signature(trainer.__init__).parameters)[1:]


FIELDS = [(method, name) for method in CONFIGS for name in list_their_fields(method)]
ASKS_FOR_SOMETHING: dict[str, Any] = {
    "dataset_num_proc": 2,
    "precompute_ref_log_probs": False,
    "trust_remote_code": True,
    "truncation_mode": "keep_end",
    "padding_free": True,
    "ld_alpha": 0.5,
    "f_divergence_type": "js_divergence",
    "f_alpha_divergence_coef": 0.7,
    "use_weighting": True,
    "discopop_tau": 0.1,
    "pad_token": "<pad>",
}
"""For each field that is refused, or has no effect, a value that is no default of ours."""


def test_the_table_holds_every_field_and_argument_of_trl_and_nothing_else() -> None:
    theirs = {name for _, name in FIELDS} | {name for m in CONFIGS for name in list_their_arguments(m)}
    assert set(read_table()) == theirs
    assert len(theirs) > 30


@pytest.mark.parametrize(("method", "name"), FIELDS)
def test_a_field_does_what_the_table_says(method: str, name: str) -> None:
    default = list_their_fields(method)[name]
    ours = {field.name for field in dataclasses.fields(CONFIGS[method])}
    CONFIGS[method](output_dir="unused", **{name: default})  # a script that spells out a default runs
    build_config(method, {"output_dir": "unused", name: default})
    if read_table()[name] in ("honoured", "renamed"):
        assert name in ours
        return
    value = ASKS_FOR_SOMETHING[name]
    if read_table()[name] == "no effect":
        (told,) = build_config(method, {"output_dir": "unused", name: value}).adjustments
        assert told.startswith(f"{name}={value}: ")
        return
    assert value != default
    with pytest.raises(ConfigError, match=f"{name}=.{{30,}}"):
        CONFIGS[method](output_dir="unused", **{name: value})
    with pytest.raises(ConfigError, match=f"{name}=.{{30,}}"):
        build_config(method, {"output_dir": "unused", name: value})


@pytest.mark.parametrize("method", CONFIGS)
def test_arguments_stand_in_trl_s_order_so_that_positions_mean_the_same(method: str) -> None:
    ours = list(inspect.signature(TRAINERS[method].__init__).parameters)[1:]
    theirs = list_their_arguments(method)
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("method", CONFIGS)
def test_a_refused_argument_is_refused_with_the_reason(method: str, lab: Any) -> None:
    refused = [name for name in list_their_arguments(method) if read_table()[name] == "refused"]
    assert refused == ["data_collator"]
    with pytest.raises(ConfigError, match="data_collator is refused: batches are planned as token ids"):
        lab.trainer(method, given={"data_collator": lambda rows: rows})


def test_fields_of_others_are_no_fields_of_ours_too() -> None:
    assert not set(DPO_FIELDS) & {field.name for field in dataclasses.fields(DPOConfig)}


def test_a_loss_of_trl_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match="loss_type='discopop': 'sigmoid', 'ipo', 'apo_zero', 'bco_pair' or"
    ):
        DPOConfig(output_dir="unused", loss_type="discopop")
    assert DPOConfig(output_dir="unused", loss_type=["sigmoid", "sft"]).terms == {"sigmoid": 1.0, "sft": 1.0}


def test_a_batch_size_of_the_reference_pass_becomes_its_tokens() -> None:
    config = KTOConfig(output_dir="unused", precompute_ref_batch_size=8, max_length=100)
    assert config.reference_max_tokens == 800
    assert config.adjustments == ["precompute_ref_batch_size=8: reference_max_tokens=800"]


@pytest.mark.parametrize("text", ["{dtype: float32}", "float32", "[1]", '{"dtype": '])
def test_model_arguments_that_are_no_json_table_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"model_init_kwargs='.*write it as"):
        KTOConfig(output_dir="unused", model_init_kwargs=text)


def test_batches_that_find_their_own_size_are_answered_by_what_bounds_memory_here() -> None:
    config = KTOConfig(output_dir="unused", auto_find_batch_size=True)
    assert not config.auto_find_batch_size
    assert "max_tokens_per_microbatch bounds memory" in config.adjustments[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_last_batch_that_is_not_full_is_dropped_where_that_is_asked_for(lab: Any) -> None:
    """10 rows by 4: batches of 4, 4 and 2."""
    for drop_last, steps, n_rows in ((False, 6, 20), (True, 4, 16)):
        trainer = lab.trainer(rows=lab.thumbs(10), num_train_epochs=2, dataloader_drop_last=drop_last)
        assert trainer.planned_steps == steps
        trainer.train()
        assert trainer.state.global_step == steps
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert sum(entry["count/chosen"] + entry["count/rejected"] for entry in logs) == n_rows
        assert trainer.state.epoch == 2
    with pytest.raises(ConfigError, match="drops the only batch: 2 rows are fewer than the 4 of a batch"):
        lab.trainer(rows=lab.thumbs(2), dataloader_drop_last=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_padding_to_a_multiple_widens_padded_rows_and_changes_no_number(lab: Any) -> None:
    losses = []
    for multiple in (None, 64):
        trainer = lab.trainer(engine="padded", pad_to_multiple_of=multiple, max_steps=3)
        trainer.train()
        branches = [row[0] for row in trainer.train_dataset.rows.branches[:3]]
        width = trainer.path.pad(branches)["input_ids"].shape[1]
        assert (width == 64) == (multiple == 64)
        assert trainer.path.count_tokens(branches) == 3 * width
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    packed = lab.trainer(engine="packed", pad_to_multiple_of=8)
    assert packed.args.adjustments == [
        "pad_to_multiple_of has no effect on the packed path: it has no padding"
    ]
    with pytest.raises(ConfigError, match="pad_to_multiple_of='eight': a number of tokens"):
        lab.config(pad_to_multiple_of="eight")
