"""An outside opinion: TRL 1.16 on the same rows, the same pairing and the same weights, in float32.

TRL is driven through its own trainer: its tokenization, its collator, its reference, its `compute_loss`. It lends each
row the completion of the row before it in the microbatch; ours is told to do the same. The policy is moved away from
the reference after both trainers are made, so that z0 is above zero and no gradient is trivial.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thumbtune.engine.plan import BatchPlan, PlannedRow
from thumbtune.training.methods import METHODS
from thumbtune.training.trainers import TRAINERS

pytestmark = [
    # TRL 1.16 sets by default what transformers 5.23 has renamed
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    # its CPO and ORPO are told to be experimental by whichever test imports them first
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]

THUMBS = [
    {"prompt": "İstanbul nüfusu?", "completion": " Yaklaşık 15 milyon.", "label": True},
    {"prompt": "Why?", "completion": " Bilmiyorum.", "label": False},
    {"prompt": "Ankara'nın nüfusu nedir?", "completion": " 5.6 milyon", "label": True},
    {"prompt": "1 + 1 =", "completion": " 2", "label": True},
]
PAIRS = [
    {"prompt": "İstanbul nüfusu?", "chosen": " Yaklaşık 15 milyon.", "rejected": " Bilmiyorum."},
    {"prompt": "Why?", "chosen": " Because it is so.", "rejected": " No."},
    {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " about three, I should think"},
    {"prompt": "A somewhat longer question?", "chosen": " Yes", "rejected": " y"},
]
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "beta": 0.3,
    "max_length": 256,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
WEIGHTS = {"desirable_weight": 1.25, "undesirable_weight": 3.5}


class OneBatch(BatchPlan):
    """All rows in one batch, in order, each lent the completion of the row before it, as TRL does."""

    def batches(self, epoch: int) -> Iterator[list[PlannedRow]]:
        n_rows = len(self)
        yield [PlannedRow(row, (row - 1) % n_rows if self.mismatched else None) for row in range(n_rows)]


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)


def base_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def move(ours: Any, theirs: Any) -> None:
    """Give both policies the same weights, off the reference: noise, then a few steps towards the lent completions."""
    model, rows = ours.model, ours.train_dataset.rows.branches
    texts = [
        torch.tensor([[*own.prompt_ids, *lent.completion_ids]])
        for (own, *_), (lent, *_) in zip(rows, [rows[-1], *rows[:-1]], strict=True)
    ]
    parameters = list(trained(model).values())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    for _ in range(10):
        loss = sum(model(input_ids=text, labels=text).loss for text in texts)
        steps = torch.autograd.grad(loss, parameters)
        size = torch.stack([step.norm() for step in steps]).norm()
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.sub_(0.1 * step / size)
    theirs.model.load_state_dict(model.state_dict())


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in trained(model).items()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def build_ours(
    method: str, path: Path, tokenizer: Any, folder: Path, adapter: Any, rows: Any = None, **settings: Any
) -> Any:
    trainer = TRAINERS[method](
        model=base_model(path),
        args=METHODS[method].config(output_dir=str(folder / "ours"), **{**SHARED, **settings}),
        train_dataset=rows or (PAIRS if METHODS[method].paired else THUMBS),
        processing_class=copy.deepcopy(tokenizer),
        peft_config=adapter,
    )
    plan = trainer.plan
    trainer.plan = OneBatch(plan.labels, plan.prompt_keys, plan.batch_size, plan.seed, plan.mismatched)
    trainer._score_references()
    return trainer


def build_theirs(
    method: str, path: Path, tokenizer: Any, folder: Path, adapter: Any, rows: Any = None, **settings: Any
) -> Any:
    """TRL's trainer; `method` is "kto", "dpo", "cpo" or "orpo", as there are trainers."""
    import trl
    from datasets import Dataset

    if method in ("cpo", "orpo"):
        module = importlib.import_module(f"trl.experimental.{method}")
        name, reference = method.upper(), {}
    else:
        module, name = trl, method.upper()
        reference = {"ref_model": None if adapter is not None else base_model(path)}
    return getattr(module, f"{name}Trainer")(
        model=base_model(path),
        **reference,
        args=getattr(module, f"{name}Config")(
            output_dir=str(folder / "trl"), train_sampling_strategy="sequential", **{**SHARED, **settings}
        ),
        train_dataset=Dataset.from_list(rows or (THUMBS if method == "kto" else PAIRS)),
        processing_class=copy.deepcopy(tokenizer),
        peft_config=adapter,
    )


def step_ours(trainer: Any) -> tuple[float, dict[str, Tensor], float | None]:
    """Loss of the whole batch, gradients, z0: through the same calls that transformers' training loop makes."""
    (batch,), n_rows = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    loss = trainer.training_step(trainer.model, batch, n_rows)
    return float(loss), gradients(trainer.model), trainer._windows["train"].summarize().get("z0")


def step_theirs(trainer: Any) -> tuple[float, dict[str, Tensor], float | None]:
    trainer.model.train()
    (batch,) = list(trainer.get_train_dataloader())
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    kl = getattr(trainer, "_metrics", {"train": {}})["train"].get("kl")
    return float(loss.detach()), gradients(trainer.model), kl[-1] if kl else None


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, gradient in theirs.items():
        scale = float(gradient.abs().max())
        assert scale > 1e-6, f"{name} is not taught at all"
        torch.testing.assert_close(
            ours[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


CASES = [
    pytest.param("kto", False, WEIGHTS, id="kto, all weights"),
    pytest.param("kto", True, WEIGHTS, id="kto, adapter"),
    pytest.param("dpo", False, {}, id="dpo, all weights"),
    pytest.param("dpo", True, {}, id="dpo, adapter"),
]


@pytest.mark.parametrize(("method", "with_adapter", "settings"), CASES)
def test_loss_and_every_gradient_equal_trl_s(
    method: str,
    with_adapter: bool,
    settings: dict[str, Any],
    tiny_model_path: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    made = {}
    for name, build in (("ours", build_ours), ("theirs", build_theirs)):
        adapter = lora_config() if with_adapter else None
        made[name] = build(method, tiny_model_path, tiny_tokenizer, tmp_path, adapter, **settings)
    move(made["ours"], made["theirs"])
    our_loss, our_gradients, z0 = step_ours(made["ours"])
    their_loss, their_gradients, their_z0 = step_theirs(made["theirs"])
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert_same_gradients(our_gradients, their_gradients)
    if method == "kto":
        assert their_z0 is not None
        assert their_z0 > 0.5
        assert z0 == pytest.approx(their_z0, rel=1e-5)


def without_bos(tokenizer: Any) -> Any:
    """TRL's older trainers put one before every prompt, ours and its newer ones put what the tokenizer puts."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = None
    return tokenizer


THEIRS = [
    # our method and settings, TRL's trainer and settings
    pytest.param(
        "kto", {"loss_type": "apo_zero_unpaired"}, "kto", {"loss_type": "apo_zero_unpaired"}, id="apo_u"
    ),
    pytest.param("ipo", {}, "dpo", {"loss_type": ["ipo"]}, id="ipo"),
    pytest.param("apo_zero", {}, "dpo", {"loss_type": ["apo_zero"]}, id="apo_zero"),
    pytest.param("dpo", {"loss_type": "bco_pair"}, "dpo", {"loss_type": ["bco_pair"]}, id="bco_pair"),
    pytest.param(
        "rpo",
        {"rpo_alpha": 0.7},
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
        id="rpo",
    ),
    pytest.param(
        "dpo",
        {"loss_type": ["ipo", "bco_pair", "sft"], "loss_weights": [0.5, 2.0, 0.25]},
        "dpo",
        {"loss_type": ["ipo", "bco_pair", "sft"], "loss_weights": [0.5, 2.0, 0.25]},
        id="three at once",
    ),
    pytest.param("cpo", {"cpo_alpha": 0.7}, "cpo", {"cpo_alpha": 0.7}, id="cpo"),
    pytest.param(
        "simpo",
        {"simpo_gamma": 0.4, "label_smoothing": 0.1},
        "cpo",
        {"loss_type": "simpo", "simpo_gamma": 0.4, "cpo_alpha": 0.0, "label_smoothing": 0.1},
        id="simpo",
    ),
]


@pytest.mark.parametrize("with_adapter", [False, True], ids=["all weights", "adapter"])
@pytest.mark.parametrize(("method", "settings", "their_trainer", "their_settings"), THEIRS)
def test_the_family_s_losses_and_gradients_equal_trl_s(
    method: str,
    settings: dict[str, Any],
    their_trainer: str,
    their_settings: dict[str, Any],
    with_adapter: bool,
    tiny_model_path: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    def make(build: Any, name: str, given: dict[str, Any]) -> Any:
        adapter = lora_config() if with_adapter else None
        return build(name, tiny_model_path, without_bos(tiny_tokenizer), tmp_path, adapter, **given)

    ours, theirs = make(build_ours, method, settings), make(build_theirs, their_trainer, their_settings)
    move(ours, theirs)
    our_loss, our_gradients, _ = step_ours(ours)
    their_loss, their_gradients, _ = step_theirs(theirs)
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert_same_gradients(our_gradients, their_gradients)


SHORT = [{**row, "prompt": letter} for row, letter in zip(PAIRS, "abcd", strict=True)]


def count_completions_alone(trainer: Any) -> None:
    """Let TRL's ORPO take the likelihood of chosen completions, without their prompts; all else is as it was."""
    forward = trainer.concatenated_forward

    def forward_and_count(model: nn.Module, batch: Any) -> tuple[Any, ...]:
        chosen, rejected, chosen_logits, rejected_logits, _ = forward(model, batch)
        labels = trainer.concatenated_inputs(batch, padding_value=trainer.padding_value)[
            "concatenated_labels"
        ]
        labels = labels[: len(chosen), 1:]  # those of prompts are -100
        likelihood = nn.functional.cross_entropy(chosen_logits.flatten(0, 1), labels.flatten())
        return chosen, rejected, chosen_logits, rejected_logits, likelihood

    trainer.concatenated_forward = forward_and_count


@pytest.mark.parametrize("with_adapter", [False, True], ids=["all weights", "adapter"])
@pytest.mark.parametrize("rows", [SHORT, PAIRS], ids=["prompts of one token", "longer prompts"])
def test_orpo_equals_trl_s_but_for_the_likelihood_of_prompts(
    rows: list[dict[str, str]],
    with_adapter: bool,
    tiny_model_path: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    # TRL takes the likelihood of prompt and completion; ours, as the paper, of the completion. A prompt of one token
    # has none, since nothing stands before it: there TRL's trainer is left as it is.
    tokenizer = without_bos(tiny_tokenizer)
    ours, theirs = (
        build(
            "orpo", tiny_model_path, tokenizer, tmp_path, lora_config() if with_adapter else None, rows=rows
        )
        for build in (build_ours, build_theirs)
    )
    move(ours, theirs)
    our_loss, our_gradients, _ = step_ours(ours)
    n_prompt_tokens = [len(row[0].prompt_ids) for row in ours.train_dataset.rows.branches]
    if rows is PAIRS:
        assert min(n_prompt_tokens) > 1
        with torch.no_grad():
            (batch,) = list(theirs.get_train_dataloader())
            whole = float(theirs.compute_loss(theirs.model, batch))
        assert our_loss != pytest.approx(whole, rel=1e-4)  # the likelihood of prompts tells them apart
        count_completions_alone(theirs)
    else:
        assert set(n_prompt_tokens) == {1}
    their_loss, their_gradients, _ = step_theirs(theirs)
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert_same_gradients(our_gradients, their_gradients)


@pytest.mark.parametrize(("size", "steps"), [(1, 4), (3, 2)])
def test_a_batch_cut_into_microbatches_has_the_loss_and_gradients_of_trl_s_whole_batch(
    size: int, steps: int, tiny_model_path: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    # TRL takes z0 from each microbatch and refuses one row; ours cut into 1 + 1 + 1 + 1 and 3 + 1 is exact.
    cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    ours = build_ours("kto", tiny_model_path, tiny_tokenizer, tmp_path, None, **WEIGHTS, **cut)
    theirs = build_theirs("kto", tiny_model_path, tiny_tokenizer, tmp_path, None, **WEIGHTS)
    move(ours, theirs)
    our_loss, our_gradients, z0 = step_ours(ours)
    their_loss, their_gradients, their_z0 = step_theirs(theirs)
    assert z0 == pytest.approx(their_z0, rel=1e-5)
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert_same_gradients(our_gradients, their_gradients)


def test_before_the_first_step_both_stand_at_half_the_weights(
    tiny_model_path: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    # policy = reference: (3 × 1.25 + 3.5) / 2 / 4 = 0.90625
    ours = build_ours("kto", tiny_model_path, tiny_tokenizer, tmp_path, None, **WEIGHTS)
    theirs = build_theirs("kto", tiny_model_path, tiny_tokenizer, tmp_path, None, **WEIGHTS)
    assert step_ours(ours)[0] == pytest.approx(0.90625, rel=1e-5)
    assert step_theirs(theirs)[0] == pytest.approx(0.90625, rel=1e-5)


def test_trl_and_ours_cut_the_same_text_into_the_same_tokens(
    tiny_model_path: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    ours = build_ours("kto", tiny_model_path, tiny_tokenizer, tmp_path, None)
    theirs = build_theirs("kto", tiny_model_path, tiny_tokenizer, tmp_path, None)
    for (branch,), row in zip(ours.train_dataset.rows.branches, theirs.train_dataset, strict=True):
        assert list(branch.prompt_ids) == row["prompt_ids"]
        assert list(branch.completion_ids) == row["completion_ids"]


@pytest.fixture(scope="module")
def mixtral_path(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a seeded MixtralForCausalLM of two layers with four experts each, two to a token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("mixtral")
    config = MixtralConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        router_aux_loss_coef=0.02,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MixtralForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("engine", ["packed", "padded"])
@pytest.mark.parametrize("coefficient", [None, 0.5, 0.0])
@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_with_a_mixture_of_experts_the_balancing_loss_is_trl_s_too(
    method: str,
    coefficient: float | None,
    engine: str,
    mixtral_path: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    """DPO's two completions share a prompt, which a packed row holds once: it has to count twice."""
    settings = {"router_aux_loss_coef": coefficient}
    ours = build_ours(method, mixtral_path, tiny_tokenizer, tmp_path, None, engine=engine, **settings)
    assert ours.path.name == engine
    theirs = build_theirs(method, mixtral_path, tiny_tokenizer, tmp_path, None, **settings)
    move(ours, theirs)
    our_loss, our_gradients, _ = step_ours(ours)
    their_loss, their_gradients, _ = step_theirs(theirs)
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    for name, gradient in their_gradients.items():
        scale = max(float(gradient.abs().max()), 1e-4)  # an expert that no token chose is not taught
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=2e-5 * scale)
    told = ours._windows["train"].summarize()
    if coefficient == 0.0:
        assert "aux_loss" not in told
    else:
        assert told["aux_loss"] == pytest.approx(theirs._metrics["train"]["aux_loss"][0], rel=1e-5)
        router = "model.layers.0.mlp.gate.weight"
        assert float(our_gradients[router].abs().max()) > 1e-5
