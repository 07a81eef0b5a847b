"""Training on a GPU: the losses of a CPU, in float32, in bf16, with adapters and 4 bits. Skipped without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thumbtune.training.methods import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ["packed", "padded"])
def test_a_gpu_gives_the_losses_of_a_cpu(lab: Any, method: str, engine: str) -> None:
    losses = {
        use_cpu: losses_of(lab.trainer(method, use_cpu=use_cpu, engine=engine, max_steps=6, bf16=False))
        for use_cpu in (True, False)
    }
    assert losses[False] == pytest.approx(losses[True], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("shape", ["full", "lora"])
@pytest.mark.parametrize(
    "settings", [{}, {"activation_checkpointing": True}, {"max_tokens_per_microbatch": 40}]
)
def test_bf16_stays_near_float32(lab: Any, shape: str, settings: dict[str, Any]) -> None:
    losses = {
        bf16: losses_of(
            lab.trainer(
                adapter=lab.lora() if shape == "lora" else None,
                use_cpu=False,
                bf16=bf16,
                max_steps=6,
                learning_rate=1e-3,
                **settings,
            )
        )
        for bf16 in (False, True)
    }
    assert losses[True] == pytest.approx(losses[False], abs=0.02)
    assert losses[True] != losses[False]


def test_a_run_on_a_gpu_is_resumed_where_it_stopped(lab: Any) -> None:
    settings = {"use_cpu": False, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = lab.trainer(**settings)
    losses = losses_of(whole)
    again = lab.trainer(**settings)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    resumed = [entry["loss"] for entry in again.state.log_history if "loss" in entry]
    assert resumed == pytest.approx(losses, abs=1e-6)
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore:inner dimension")  # of a model this small
def test_four_bits_and_a_paged_optimizer_train_an_adapter(lab: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    trainer = lab.trainer(
        model=str(lab.model_path),
        adapter=lab.lora(),
        given={"quantization_config": four_bits},
        use_cpu=False,
        bf16=True,
        optim="paged_adamw_8bit",
        max_steps=12,
        learning_rate=1e-2,
    )
    assert not [text for text in trainer.args.adjustments if "optim" in text]
    losses = losses_of(trainer)
    assert sum(losses[-2:]) < sum(losses[:2])


def test_an_evaluation_on_a_gpu_gives_the_numbers_of_a_cpu(lab: Any) -> None:
    found = [
        lab.trainer(use_cpu=use_cpu, given={"eval_dataset": lab.thumbs(6)}).evaluate()
        for use_cpu in (True, False)
    ]
    assert found[1]["eval_loss"] == pytest.approx(found[0]["eval_loss"], abs=1e-5)
