"""Settings that trade time for memory: they change no gradient, and save what they promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from thumbtune import KTOConfig
from thumbtune.training import offloading

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
    ),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

ENGINES = ["packed", "padded"]
SHAPES = ["full", "lora"]


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class SavedBytes:
    """Counts what autograd keeps from forward to backward."""

    def __init__(self) -> None:
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        self.total += tensor.numel() * tensor.element_size()
        return tensor


def step(lab: Any, method: str, shape: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """Gradients of the second step, bytes that a forward saved, and the loss."""
    watch, saved = Watch(), SavedBytes()
    trainer = lab.trainer(
        method,
        adapter=lab.lora() if shape == "lora" else None,
        given={"callbacks": [watch]},
        max_steps=2,
        **{"lr_scheduler_type": "constant", **settings},
    )
    compute_loss = trainer.compute_loss

    def counted(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            return compute_loss(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", counted)
    trainer.train()
    return watch.gradients, saved.total, trainer.state.log_history[1]["loss"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["kto", "dpo"])
@pytest.mark.parametrize("microbatch", [8, 2])
def test_checkpointed_activations_give_the_same_gradients_from_less_memory(
    lab: Any, method: str, shape: str, engine: str, microbatch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"engine": engine, "per_device_train_batch_size": microbatch, "gradient_accumulation_steps": 2}
    plain, n_plain, loss = step(lab, method, shape, monkeypatch, **settings)
    checkpointed, n_checkpointed, same = step(
        lab, method, shape, monkeypatch, gradient_checkpointing=True, **settings
    )
    assert same == pytest.approx(loss, abs=1e-6)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)
    assert n_checkpointed < 0.6 * n_plain


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mixture_of_experts_balances_its_routers_under_checkpointing_too(
    lab: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for checkpointing in (False, True):
        monkeypatch.setattr(type(lab), "model", lambda self: tiny_moe())
        settings = {"engine": engine, "router_aux_loss_coef": 0.5, "gradient_checkpointing": checkpointing}
        gradients, _, loss = step(lab, "kto", "full", monkeypatch, **settings)
        found.append((gradients, loss))
    (plain, loss), (checkpointed, same) = found
    assert same == pytest.approx(loss, abs=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


def tiny_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3MoeForCausalLM(config)


# ---- offloading


def test_offloading_without_a_gpu_is_said_to_have_no_effect() -> None:
    config = KTOConfig(output_dir="unused", activation_offloading=True, use_cpu=True)
    assert not config.activation_offloading
    assert config.adjustments == ["activation_offloading=True has no effect without a GPU: off"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES)
def test_offloaded_activations_come_back_as_they_went_and_weights_stay(
    lab: Any, shape: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that is made to look like a device: what is put away is copied, and no weight is among it."""
    plain, _, loss = step(lab, "kto", shape, monkeypatch, engine=engine)
    put_away: list[int] = []

    def copy(tensor: Tensor) -> Tensor:
        put_away.append(tensor.untyped_storage().data_ptr())
        return tensor.clone()

    monkeypatch.setattr(offloading, "is_on_the_device", lambda tensor: True)
    monkeypatch.setattr(offloading, "copy_to_cpu", copy)
    trainer = lab.trainer(
        adapter=lab.lora() if shape == "lora" else None,
        engine=engine,
        max_steps=2,
        lr_scheduler_type="constant",
        given={"callbacks": [watch := Watch()]},
    )
    trainer.args.activation_offloading = True
    weights = {weight.untyped_storage().data_ptr() for weight in trainer.model.parameters()}
    trainer.train()
    assert trainer.state.log_history[1]["loss"] == loss
    assert all(torch.equal(watch.gradients[name], gradient) for name, gradient in plain.items())
    assert len(put_away) > 20
    assert not weights & set(put_away)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 448)[:, :441],  # a mask's rows begin where a kernel likes them to
        torch.randn(1, 40, 1).expand(2, 40, 70),
        torch.randn(40, 60).t(),
        torch.randn(6, 40, 30).transpose(1, 2)[:, 1:],
    ],
    ids=["cut", "repeated", "turned", "turned and cut"],
)
def test_what_comes_back_lies_as_it_lay(tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(tensor)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            seen.extend(ctx.saved_tensors)
            return grad

    monkeypatch.setattr(offloading, "is_on_the_device", lambda tensor: True)
    monkeypatch.setattr(offloading, "copy_to_cpu", torch.clone)
    x = torch.ones(1, requires_grad=True)
    with offloading.offload_activations(torch.nn.Linear(1, 1)):
        result = Keeps.apply(x)
    result.backward()
    assert seen[0].untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    assert seen[0].stride() == tensor.stride()
    assert torch.equal(seen[0], tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("engine", ENGINES)
def test_offloading_takes_less_of_a_gpu_s_memory(lab: Any, engine: str) -> None:
    peaks, losses = [], []
    for offload in (False, True):
        trainer = lab.trainer(
            engine=engine, activation_offloading=offload, use_cpu=False, max_steps=2, rows=lab.thumbs(64),
            per_device_train_batch_size=64,
        )  # fmt: skip
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        peaks.append(torch.cuda.max_memory_allocated())
        losses.append(trainer.state.log_history[1]["loss"])
    assert peaks[1] < peaks[0]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
