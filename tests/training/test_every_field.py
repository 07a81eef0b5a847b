"""Every field of every config is felt, refused, answered by an adjustment, or listed with the reason why it moves no
number. A field that nobody thought of, ours or one of a new transformers, stands nowhere and turns the first test red.

Felt is what moves a loss of the first three steps or a weight after them. `test_methods.py` asks each loss type by
itself; here each field goes the whole way, through the trainer, with every method that has it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

from thumbtune.errors import ConfigError
from thumbtune.training.methods import METHODS

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)


class Change(NamedTuple):
    """What a field is changed to, and what has to be there for it to matter."""

    value: Any
    beside: dict[str, Any] = {}  # noqa: RUF012 - read by both runs and written by none
    on: str = ""
    """What the run is made of where the usual rows and model have no use for the field: see `make_trainer`."""


FELT: dict[str, Change] = {
    # ---- the losses
    "beta": Change(0.37),
    "desirable_weight": Change(1.7),
    "undesirable_weight": Change(1.7),
    "desirable_flip_rate": Change(0.2),
    "undesirable_flip_rate": Change(0.2),
    "z_yes": Change(0.4, {"loss_type": "kto_thresholds"}),
    "z_no": Change(0.4, {"loss_type": "kto_thresholds"}),
    "prospect_alpha": Change(0.5, {"loss_type": "kto_prospect"}),
    "loss_aversion": Change(3.0, {"loss_type": "kto_prospect"}, "thumbs at odds"),
    "reference_point_decay": Change(0.5),
    "reward_shift_decay": Change(0.2),
    "loss_weights": Change([0.5]),
    "label_smoothing": Change(0.2),
    "length_normalized": Change(False),
    "rpo_alpha": Change(0.3),
    "cpo_alpha": Change(0.3),
    "simpo_gamma": Change(0.3),
    # ---- the reference
    "sync_ref_model": Change(True, {"ref_model_sync_steps": 1}, "a moving reference"),
    "ref_model_sync_steps": Change(1, {"sync_ref_model": True}),
    "ref_model_mixup_alpha": Change(1.0, {"sync_ref_model": True, "ref_model_sync_steps": 1}),
    # ---- rows and batches
    "max_length": Change(14),
    "max_prompt_length": Change(6),
    "truncation": Change("keep_start", {"max_prompt_length": 10}),
    "one_per_prompt": Change(True),
    "max_pairs_per_prompt": Change(1, on="pairs of one prompt"),
    "siblings_together": Change(True, {"per_device_train_batch_size": 2}, "pairs of one prompt"),
    "stream_window_rows": Change(4, on="a stream"),
    "per_device_train_batch_size": Change(2),
    "gradient_accumulation_steps": Change(2, {"per_device_train_batch_size": 2}),
    "dataloader_drop_last": Change(True, {"per_device_train_batch_size": 5}),
    "seed": Change(7),
    "data_seed": Change(7),
    # ---- the model
    "disable_dropout": Change(False, on="an adapter with dropout"),
    "model_init_kwargs": Change({"dtype": "bfloat16"}, on="a model by name"),
    "neftune_noise_alpha": Change(5.0),
    # ---- the optimizer
    "num_train_epochs": Change(1.0, {"max_steps": -1}),
    "max_steps": Change(2),
    "learning_rate": Change(2e-2),
    "lr_scheduler_type": Change("cosine"),
    "lr_scheduler_kwargs": Change({"num_cycles": 0.9}, {"lr_scheduler_type": "cosine"}),
    "warmup_steps": Change(2),
    "optim": Change("sgd"),
    "optim_args": Change("momentum=0.9", {"optim": "sgd"}),
    "weight_decay": Change(0.1),
    "adam_beta1": Change(0.5),
    "adam_beta2": Change(0.9),
    "adam_epsilon": Change(1e-3),
    "max_grad_norm": Change(0.01),
}
LOSS_TYPES = {"kto": "kto_logsigmoid", "dpo": "ipo"}
"""`loss_type` is felt too, and means another thing in each method that has it."""

REFUSED: dict[str, Any] = {
    "trust_remote_code": True,
    "label_smoothing_factor": 0.1,
    "router_aux_loss_coef": 0.1,  # by a model without experts; with them `test_against_trl.py` has its number
}
ANSWERED: dict[str, Any] = {
    "activation_offloading": True,  # without a GPU
    "auto_find_batch_size": True,
    "dataset_num_proc": 2,
    "pad_to_multiple_of": 8,  # on the packed path
    "precompute_ref_batch_size": 4,
    "precompute_ref_log_probs": False,
    "train_sampling_strategy": "sequential",
}

MOVES_NO_NUMBER: dict[str, set[str]] = {
    "how log-probs are computed, and in how much memory: the same numbers, as test_methods.py and the tests of the "
    "engine hold": {
        "engine",
        "max_tokens_per_microbatch",
        "reference_max_tokens",
        "keep_freed_memory",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "torch_empty_cache_steps",
        "use_cache",
    },
    "where reference log-probs are kept: by content, so that what is found there is what would be computed": {
        "reference_cache",
    },
    "the machine and its kernels: the same numbers up to their rounding": {
        "use_cpu",
        "bf16",
        "fp16",
        "bf16_full_eval",
        "fp16_full_eval",
        "tf32",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "use_liger_kernel",
        "liger_kernel_config",
        "full_determinism",
    },
    "several processes: how they share the work; test_ranks.py holds that their number changes nothing": {
        "accelerator_config",
        "average_tokens_across_devices",
        "parallelism_config",
        "ddp_backend",
        "ddp_broadcast_buffers",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
        "ddp_timeout",
        "deepspeed",
        "fsdp",
        "fsdp_config",
        "local_rank",
    },
    "how batches are fetched: the plan says which rows they hold": {
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
    },
    "columns of a data set for transformers' own collators: rows here have columns of known names": {
        "label_names",
        "length_column_name",
        "remove_unused_columns",
    },
    "of optimizers that transformers itself refuses without it (GaLore, APOLLO), and no other reads": {
        "optim_target_modules",
    },
    "saving, resuming and where to": {
        "output_dir",
        "enable_jit_checkpoint",
        "greater_is_better",
        "ignore_data_skip",
        "load_best_model_at_end",
        "metric_for_best_model",
        "restore_callback_states_from_checkpoint",
        "resume_from_checkpoint",
        "save_on_each_node",
        "save_only_model",
        "save_steps",
        "save_strategy",
        "save_total_limit",
    },
    "the hub": {
        "hub_always_push",
        "hub_model_id",
        "hub_private_repo",
        "hub_revision",
        "hub_strategy",
        "hub_token",
        "push_to_hub",
    },
    "what is told, how often and where": {
        "debug",
        "disable_tqdm",
        "include_num_input_tokens_seen",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_first_step",
        "logging_nan_inf_filter",
        "logging_steps",
        "logging_strategy",
        "project",
        "report_to",
        "run_name",
        "skip_memory_metrics",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
    },
    "when and how held-out rows are measured: training does not see them": {
        "batch_eval_metrics",
        "eval_accumulation_steps",
        "eval_delay",
        "eval_do_concat_batches",
        "eval_on_start",
        "eval_steps",
        "eval_strategy",
        "eval_use_gather_object",
        "include_for_metrics",
        "per_device_eval_batch_size",
        "prediction_loss_only",
    },
    "notes of a script to itself, which no trainer reads": {"do_eval", "do_predict", "do_train"},
}


def fields_of(method: str) -> list[str]:
    return [field.name for field in dataclasses.fields(METHODS[method].config) if field.init]


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_method_stands_in_one_list(method: str) -> None:
    lists = [{*FELT, "loss_type"}, set(REFUSED), set(ANSWERED), *MOVES_NO_NUMBER.values()]
    times = {name: sum(name in names for names in lists) for name in fields_of(method)}
    unheard_of = [name for name, n in times.items() if n == 0]
    assert unheard_of == [], "fields that nobody thought of: what becomes of a run where they are set?"
    assert [name for name, n in times.items() if n > 1] == []


def test_every_name_in_the_lists_is_a_field_of_some_method() -> None:
    listed = {*FELT, *REFUSED, *ANSWERED, *set().union(*MOVES_NO_NUMBER.values())}
    assert listed <= {name for method in METHODS for name in fields_of(method)}


# ---- felt


def make_trainer(lab: Any, method: str, on: str, **settings: Any) -> Any:
    """A trainer of three steps on what `on` names, else on twelve thumbs or pairs and a model of full weights."""
    rows = lab.pairs(12) if METHODS[method].paired else lab.thumbs(12)
    if on == "pairs of one prompt":
        rows = [{**row, "prompt": f"question {i // 4}?"} for i, row in enumerate(rows)]
    if on == "thumbs at odds":  # so that some of them lose, whatever is learned
        rows += [{"prompt": "at odds?", "completion": "both", "label": label} for label in (True, False)]
    if on == "a stream":
        from datasets import Dataset

        rows = Dataset.from_list(rows).to_iterable_dataset()
    if on == "a moving reference" and not settings.get("sync_ref_model"):
        settings = {name: value for name, value in settings.items() if name != "ref_model_sync_steps"}
    return lab.trainer(
        method,
        rows,
        model=str(lab.model_path) if on == "a model by name" else None,
        adapter=lab.lora(lora_dropout=0.5) if on == "an adapter with dropout" else None,
        **{"max_steps": 3, **settings},
    )


def run(lab: Any, method: str, on: str, **settings: Any) -> tuple[list[float], torch.Tensor]:
    """The losses of a run's steps, and the weights that it ends with."""
    trainer = make_trainer(lab, method, on, **settings)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = torch.cat([weight.detach().float().flatten() for weight in trainer.model.parameters()])
    return losses, weights


def list_felt() -> list[tuple[str, str]]:
    return [
        (method, name) for method in METHODS for name in fields_of(method) if name in {*FELT, "loss_type"}
    ]


_before: dict[str, tuple[list[float], torch.Tensor]] = {}
"""Runs without the change, which many fields share."""


@pytest.mark.parametrize(("method", "name"), list_felt())
def test_changing_a_field_moves_a_loss_or_a_weight(module_lab: Any, method: str, name: str) -> None:
    change = Change(LOSS_TYPES[method]) if name == "loss_type" else FELT[name]
    unchanged = f"{method} {change.beside} {change.on}"
    if unchanged not in _before:
        _before[unchanged] = run(module_lab, method, change.on, **change.beside)
        again = run(module_lab, method, change.on, **change.beside)
        assert again[0] == _before[unchanged][0]  # or any difference could be chance
    losses, weights = _before[unchanged]
    new_losses, new_weights = run(module_lab, method, change.on, **change.beside, **{name: change.value})
    differs = new_losses != pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert differs or float((new_weights - weights).abs().max()) > 1e-4


# ---- refused or answered


@pytest.mark.parametrize(
    ("method", "name"), [(m, name) for m in METHODS for name in fields_of(m) if name in REFUSED]
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(lab: Any, method: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.{{30,}}"):
        lab.trainer(method, **{name: REFUSED[name]})


@pytest.mark.parametrize(
    ("method", "name"), [(m, name) for m in METHODS for name in fields_of(m) if name in ANSWERED]
)
def test_a_field_without_effect_says_so(lab: Any, method: str, name: str) -> None:
    assert not any(name in told for told in lab.trainer(method).args.adjustments)
    told = lab.trainer(method, **{name: ANSWERED[name]}).args.adjustments
    assert len([line for line in told if line.startswith(name)]) == 1, told


def test_smoothing_by_transformers_name_is_sent_to_the_field_that_smooths() -> None:
    for method, advice in (
        ("dpo", "set label_smoothing"),
        ("cpo", "set label_smoothing"),
        ("kto", "set desirable_flip_rate and undesirable_flip_rate"),
        ("orpo", "leave it out"),
    ):
        with pytest.raises(ConfigError, match=f"label_smoothing_factor=0.1 .*{advice}"):
            METHODS[method].config(output_dir="unused", label_smoothing_factor=0.1)


def test_a_reference_that_moves_is_scored_batch_by_batch_as_was_asked_for() -> None:
    config = METHODS["kto"].config(output_dir="u", precompute_ref_log_probs=False, sync_ref_model=True)
    assert config.adjustments == []
