"""A reference that moves (TR-DPO): what it is mixed of, that every batch is held against it, and that it resumes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from thumbtune import KTOConfig
from thumbtune.errors import CheckpointError, ConfigError
from thumbtune.training.reference_model import REFERENCE_FILE

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

ENGINES = ["packed", "padded"]
SHAPES = ["full", "lora"]


class Keep(TrainerCallback):
    """The trained weights before step 1 and after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def _keep(self, model: Any) -> None:
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._keep(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._keep(model)


def train(lab: Any, shape: str, method: str = "kto", **settings: Any) -> tuple[Any, Keep]:
    keep = Keep()
    given = {"callbacks": [keep], **settings.pop("given", {})}
    rows = settings.pop("rows", None)
    adapter = lab.lora() if shape == "lora" else None
    moving = {"sync_ref_model": True, "lr_scheduler_type": "constant", **settings}
    trainer = lab.trainer(method, rows, adapter=adapter, given=given, **moving)
    trainer.train()
    return trainer, keep


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("method", "stays_at"), [("kto", 0.5), ("dpo", math.log(2))])
def test_a_reference_that_follows_at_once_keeps_every_loss_at_its_start(
    lab: Any, engine: str, shape: str, method: str, stays_at: float
) -> None:
    """alpha = 1 after every step: the reference is the policy of the step's beginning, so all log ratios are 0."""
    moving, keep = train(
        lab, shape, method, engine=engine, max_steps=4, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0
    )
    assert losses(moving) == pytest.approx([stays_at] * 4, abs=1e-6)
    fixed, _ = train(lab, shape, method, engine=engine, max_steps=4, sync_ref_model=False)
    assert abs(losses(fixed)[3] - stays_at) > 1e-3
    assert all(not torch.equal(keep.weights[0][n], keep.weights[-1][n]) for n in keep.weights[0])


def slow_log_prob(model: Any, branch: Any) -> float:
    ids = [*branch.prompt_ids, *branch.completion_ids]
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(scores[i - 1, ids[i]]) for i in range(len(branch.prompt_ids), len(ids)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_loss_is_that_of_a_plain_loop_against_weights_mixed_by_hand(
    lab: Any, engine: str, shape: str
) -> None:
    """Synced after steps 2 and 4 with alpha 0.6, tensor by tensor; steps 3 and 5 meet the mixes."""
    trainer, keep = train(
        lab,
        shape,
        engine=engine,
        max_steps=5,
        ref_model_sync_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    reference = dict(keep.weights[0])
    references = [reference]  # that of step 1, of step 2, …
    for step in range(1, 5):
        if step % 2 == 0:
            policy = keep.weights[step]
            reference = {n: 0.6 * policy[n] + 0.4 * reference[n] for n in reference}
        references.append(reference)
    blank = lab.trainer(adapter=lab.lora() if shape == "lora" else None, engine="padded").model.eval()

    def log_prob(weights: dict[str, torch.Tensor], branch: Any) -> float:
        blank.load_state_dict(weights, strict=False)
        return slow_log_prob(blank, branch)

    rows = trainer.train_dataset.rows
    batches = [batch for epoch in range(3) for batch in trainer.plan.epoch(epoch)]
    for step in (3, 5):
        policy, held = keep.weights[step - 1], references[step - 1]

        def ratio(branch: Any, policy: Any = policy, held: Any = held) -> float:
            return log_prob(policy, branch) - log_prob(held, branch)

        batch = batches[step - 1]
        z0 = max(0.0, sum(ratio(rows.mismatched_branch(p)) for p in batch) / len(batch))
        total = 0.0
        for planned in batch:
            sign = 1 if rows.labels[planned.row] else -1
            total += 1 - 1 / (1 + math.exp(-sign * 0.1 * (ratio(rows.branches[planned.row][0]) - z0)))
        assert losses(trainer)[step - 1] == pytest.approx(total / len(batch), abs=2e-5)


@pytest.mark.parametrize("change", [{"ref_model_mixup_alpha": 0.3}, {"ref_model_sync_steps": 1}])
@pytest.mark.parametrize("engine", ENGINES)
def test_both_settings_of_the_sync_move_the_loss(lab: Any, engine: str, change: dict[str, Any]) -> None:
    settings = {"engine": engine, "max_steps": 4, "ref_model_sync_steps": 2}
    before, after = (
        losses(train(lab, "full", **settings)[0]),
        losses(train(lab, "full", **settings | change)[0]),
    )
    assert abs(before[3] - after[3]) > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_moving_reference_resumes_bit_for_bit(lab: Any, engine: str, shape: str) -> None:
    settings = {
        "engine": engine,
        "rows": lab.thumbs(14),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "ref_model_sync_steps": 3,
    }
    unbroken, _ = train(lab, shape, save_strategy="steps", save_steps=1, **copy.copy(settings))
    wanted = unbroken.model.state_dict()
    assert unbroken.state.global_step == 8
    for step in (2, 3, 5):
        checkpoint = lab.folder / "run" / f"checkpoint-{step}"
        assert (checkpoint / REFERENCE_FILE).is_file()
        resumed = lab.trainer(
            "kto",
            settings["rows"],
            adapter=lab.lora() if shape == "lora" else None,
            sync_ref_model=True,
            lr_scheduler_type="constant",
            **{name: value for name, value in settings.items() if name != "rows"},
        )
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert all(torch.equal(wanted[n], t) for n, t in resumed.model.state_dict().items()), step
        assert losses(resumed) == losses(unbroken)


def test_a_checkpoint_without_a_reference_cannot_be_continued_with_one_that_moves(lab: Any) -> None:
    train(lab, "full", sync_ref_model=False, max_steps=2, save_strategy="steps", save_steps=1)
    checkpoint = lab.folder / "run" / "checkpoint-1"
    assert not (checkpoint / REFERENCE_FILE).exists()
    with pytest.raises(
        CheckpointError, match=r"holds no reference\.safetensors: it was saved without sync_ref"
    ):
        lab.trainer(sync_ref_model=True, max_steps=2).train(resume_from_checkpoint=str(checkpoint))


def test_an_adapter_s_reference_holds_the_adapter_alone(lab: Any) -> None:
    trainer, _ = train(lab, "lora", max_steps=1, save_strategy="steps", save_steps=1)
    from safetensors.torch import load_file

    held = load_file(lab.folder / "run" / "checkpoint-1" / REFERENCE_FILE)
    assert held.keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in held)


def test_the_policy_has_its_own_weights_again_even_after_a_pass_that_failed(lab: Any) -> None:
    trainer = lab.trainer(sync_ref_model=True)
    before = {name: id(weight) for name, weight in trainer.model.named_parameters()}

    def fail() -> None:
        with trainer.reference.at_hand() as model:
            assert all(id(weight) != before[name] for name, weight in model.named_parameters())
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert {name: id(weight) for name, weight in trainer.model.named_parameters()} == before


def test_tied_weights_are_held_once_and_put_in_both_places(lab: Any) -> None:
    model = lab.model()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    trainer = lab.trainer(model=model, sync_ref_model=True, ref_model_sync_steps=1, max_steps=2)
    trainer.train()
    with trainer.reference.at_hand() as reference:
        assert reference.lm_head.weight is reference.model.embed_tokens.weight
    assert trainer.model.lm_head.weight is trainer.model.model.embed_tokens.weight


@pytest.mark.parametrize("engine", ENGINES)
def test_held_out_rows_are_measured_against_the_reference_as_it_is_now(lab: Any, engine: str) -> None:
    """alpha = 1 after step 3, the last one: policy and reference are one again."""
    trainer, _ = train(
        lab,
        "lora",
        engine=engine,
        max_steps=3,
        ref_model_sync_steps=3,
        ref_model_mixup_alpha=1.0,
        given={"eval_dataset": lab.thumbs(6)},
    )
    assert abs(losses(trainer)[2] - 0.5) > 1e-3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(0.5, abs=1e-6)
    assert trainer.evaluate(lab.thumbs(4))["eval_loss"] == pytest.approx(0.5, abs=1e-6)


def test_an_explicit_reference_is_where_the_moving_one_starts(lab: Any) -> None:
    other = lab.model()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    fixed = lab.trainer(given={"ref_model": copy.deepcopy(other)}, max_steps=1)
    fixed.train()
    moving = lab.trainer(given={"ref_model": other}, max_steps=2, sync_ref_model=True, ref_model_sync_steps=1)
    moving.train()
    assert losses(moving)[0] == pytest.approx(losses(fixed)[0], abs=1e-6)
    assert abs(losses(fixed)[0] - 0.5) > 1e-3


def test_a_reference_that_cannot_pack_is_scored_padded_beside_a_policy_that_packs(lab: Any) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=260, hidden_size=16, state_size=4, num_hidden_layers=1)
    trainer = lab.trainer(given={"ref_model": MambaForCausalLM(config).eval()}, max_steps=1)
    trainer.train()
    assert trainer.path.name == "packed"
    assert abs(losses(trainer)[0] - 0.5) > 1e-3  # it is no copy of the policy


def test_a_finished_run_whose_reference_moved_is_not_taken_up_again(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"its reference moved along with it\. Give its held-out rows when"):
        lab.trainer(sync_ref_model=True).load_trained(tmp_path)


def test_what_cannot_be_mixed_is_refused(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="moves a copy of the adapter: leave ref_model out"):
        lab.trainer(adapter=lab.lora(), given={"ref_model": lab.model()}, sync_ref_model=True)
    small = lab.model()
    small.lm_head = torch.nn.Linear(32, 100, bias=False)
    with pytest.raises(
        ConfigError, match=r"mixes ref_model and policy weight by weight, and lm_head\.weight"
    ):
        lab.trainer(given={"ref_model": small}, sync_ref_model=True)
    policy = lab.model()
    with pytest.raises(ConfigError, match="ref_model is the model that is trained"):
        lab.trainer(model=policy, given={"ref_model": policy})
    for settings in (
        {"ref_model_mixup_alpha": 0.0},
        {"ref_model_mixup_alpha": 1.5},
        {"ref_model_sync_steps": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            KTOConfig(output_dir=str(tmp_path), sync_ref_model=True, **settings)
