"""Models that come in bf16: what is trained becomes float32, said aloud, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

STEADY = {"learning_rate": 1e-6, "lr_scheduler_type": "constant", "max_steps": 4}
"""AdamW moves each weight by about 1e-6 a step; bf16's steps at 0.02, where these weights stand, are 1.2e-4."""


def load(lab: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(lab.model_path, dtype=dtype)


def told(trainer: Any, what: str) -> list[str]:
    return [adjustment for adjustment in trainer.args.adjustments if what in adjustment]


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def precisions(model: Any) -> set[tuple[bool, torch.dtype]]:
    return {(weight.requires_grad, weight.dtype) for weight in model.parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_move_weights_that_came_in_low_precision_as_they_move_float32_ones(
    lab: Any, dtype: torch.dtype
) -> None:
    start = {name: weight.float() for name, weight in load(lab, dtype).state_dict().items()}
    low, full = (
        lab.trainer(model=load(lab, dtype), **STEADY),
        lab.trainer(model=load(lab, dtype).float(), **STEADY),
    )
    for trainer in (low, full):
        trainer.train()
    assert losses(low) == losses(full)
    found, wanted = low.model.state_dict(), full.model.state_dict()
    assert all(found[name].equal(wanted[name]) for name in wanted)
    moves = torch.cat([(found[name] - start[name]).abs().flatten() for name in start])
    assert float((moves > 1e-7).float().mean()) > 0.5
    assert float(moves.max()) < 1e-5
    lost = [found[name].to(dtype).float().equal(start[name]) for name in start]
    assert any(lost), "steps that low precision holds would prove nothing"


def test_it_is_told_with_what_to_do_and_float32_is_passed_over_in_silence(lab: Any) -> None:
    (message,) = told(lab.trainer(model=load(lab, torch.bfloat16)), "bfloat16")
    assert message.startswith("weights to be trained were bfloat16, where small steps are rounded away")
    assert "dtype=torch.float32" in message
    trainer = lab.trainer(model=load(lab, torch.bfloat16), max_steps=1)
    trainer.train()
    assert told(trainer, "bfloat16")[0] in trainer.manifest["adjustments"]
    assert not told(lab.trainer(), "float32")


def test_what_was_raised_is_saved_as_it_was_trained(lab: Any, tmp_path: Path) -> None:
    from thumbtune.engine.loading import load_model

    trainer = lab.trainer(model=load(lab, torch.bfloat16), save_strategy="steps", save_steps=2, **STEADY)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_model(tmp_path / "saved", dtype="auto")
    assert precisions(saved) == {(True, torch.float32)}
    assert all(saved.state_dict()[name].equal(weight) for name, weight in trainer.model.state_dict().items())
    resumed = lab.trainer(model=load(lab, torch.bfloat16), **STEADY)
    resumed.train(resume_from_checkpoint=str(lab.folder / "run" / "checkpoint-2"))
    assert all(
        resumed.model.state_dict()[name].equal(weight) for name, weight in trainer.model.state_dict().items()
    )


def test_weights_that_are_frozen_beside_trained_ones_become_float32_too(lab: Any) -> None:
    model = load(lab, torch.bfloat16)
    for weight in model.model.layers[0].parameters():
        weight.requires_grad_(False)
    trainer = lab.trainer(model=model, max_steps=1)
    assert precisions(trainer.model) == {(True, torch.float32), (False, torch.float32)}
    trainer.train()


def test_an_optimizer_that_was_made_before_moves_the_weights_that_were_raised(lab: Any) -> None:
    model = load(lab, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    trainer = lab.trainer(model=model, given={"optimizers": (optimizer, schedule)}, max_steps=2)
    before = model.lm_head.weight.detach().clone()
    trainer.train()
    assert 1e-7 < float((model.lm_head.weight.detach() - before).abs().max()) < 1e-5


# ---- adapters


@pytest.mark.parametrize("engine", ["packed", "padded"])
def test_the_base_under_an_adapter_stays_in_bf16_and_the_adapter_is_float32(lab: Any, engine: str) -> None:
    trainer = lab.trainer(model=load(lab, torch.bfloat16), adapter=lab.lora(), engine=engine, **STEADY)
    assert precisions(trainer.model) == {(True, torch.float32), (False, torch.bfloat16)}
    assert not told(trainer, "bfloat16"), "PEFT makes its adapters float32 by itself"
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.5, abs=1e-6)


def test_an_adapter_that_came_in_bf16_becomes_float32_alone(lab: Any, tmp_path: Path) -> None:
    from peft import PeftModel, get_peft_model

    lora = lab.lora(init_lora_weights=False)
    model = get_peft_model(load(lab, torch.bfloat16), lora, autocast_adapter_dtype=False)
    assert precisions(model) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    trainer = lab.trainer(model=model, **STEADY)
    assert precisions(model) == {(True, torch.float32), (False, torch.bfloat16)}
    (message,) = told(trainer, "bfloat16")
    assert message.startswith("the adapter's weights were bfloat16")
    before = {name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad}
    trainer.train()
    assert not any(weight.equal(before[n]) for n, weight in model.named_parameters() if n in before)
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(load(lab, torch.bfloat16), tmp_path / "adapter")
    held = dict(again.named_parameters())
    assert all(held[name].equal(weight) for name, weight in model.named_parameters() if name in before)


def test_a_whole_head_beside_an_adapter_takes_the_model_along(lab: Any) -> None:
    """A head is no layer of an adapter: it would be given bf16 and multiply in float32."""
    lora = lab.lora(modules_to_save=["lm_head"], target_modules=["q_proj", "v_proj"])
    trainer = lab.trainer(model=load(lab, torch.bfloat16), adapter=lora, max_steps=1)
    assert {dtype for _, dtype in precisions(trainer.model)} == {torch.float32}
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.5, abs=1e-6)


# ---- the reference beside it


def starts_even(trainer: Any) -> bool:
    """Whether policy and reference give the same log-probs, up to float32's rounding of sums."""
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    found = (log["loss"], log["z0"], log["rewards/chosen"], log["rewards/rejected"])
    return bool(found == pytest.approx((0.5, 0, 0, 0), abs=2e-6))


def test_a_reference_in_bf16_scores_as_the_policy_does_and_stays_as_it_was(lab: Any) -> None:
    reference = load(lab, torch.bfloat16)
    trainer = lab.trainer(model=load(lab, torch.bfloat16), given={"ref_model": reference}, max_steps=1)
    assert starts_even(trainer)
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (log["loss"], log["rewards/chosen"], log["rewards/rejected"]) == pytest.approx(
        (0.5, 0, 0), abs=1e-6
    )
    assert precisions(reference) == {(True, torch.bfloat16)}
    same = load(lab, torch.bfloat16).state_dict()
    assert all(weight.equal(same[name]) for name, weight in reference.state_dict().items())


@pytest.mark.parametrize("shape", ["full", "lora"])
@pytest.mark.parametrize("given_as", ["name", "object"])
def test_a_reference_by_name_is_loaded_as_the_policy_was(lab: Any, shape: str, given_as: str) -> None:
    by_name = {"model": str(lab.model_path), "model_init_kwargs": {"dtype": "bfloat16"}}
    by_object = {"model": load(lab, torch.bfloat16 if shape == "lora" else torch.float32)}
    policy, adapter = by_name if given_as == "name" else by_object, lab.lora() if shape == "lora" else None
    given = {"ref_model": str(lab.model_path)}
    assert starts_even(lab.trainer(**policy, adapter=adapter, given=given, max_steps=1))
    if given_as == "name":
        other = {"ref_model": load(lab, torch.float32)}
        assert not starts_even(lab.trainer(**by_name, adapter=adapter, given=other, max_steps=1))


def test_a_reference_by_name_that_moves_starts_as_the_policy_was_loaded(lab: Any) -> None:
    by_name = {"model": str(lab.model_path), "model_init_kwargs": {"dtype": "bfloat16"}}
    given = {"ref_model": str(lab.model_path)}
    assert starts_even(lab.trainer(**by_name, given=given, sync_ref_model=True, max_steps=1))


def test_a_reference_in_bf16_moves_in_float32(lab: Any) -> None:
    moving = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    trainer = lab.trainer(
        model=load(lab, torch.bfloat16), given={"ref_model": load(lab, torch.bfloat16)}, **STEADY, **moving
    )
    trainer.train()
    assert losses(trainer) == pytest.approx([0.5] * 4, abs=1e-6)


def test_a_policy_loaded_in_bf16_by_name_is_loaded_anew_as_it_was(lab: Any) -> None:
    trainer = lab.trainer(model=str(lab.model_path), model_init_kwargs={"dtype": "bfloat16"}, **STEADY)
    assert precisions(trainer.model) == {(True, torch.float32)}
    trainer.train()
    assert 0 < trainer.evaluate(lab.thumbs(4))["eval_loss"] < 0.5
