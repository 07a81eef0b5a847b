"""Evaluation: which rows are measured, under which names, and what `compute_metrics` is given."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from thumbtune.engine.low_precision import FastLinear
from thumbtune.errors import ConfigError, DataError
from thumbtune.training import policy
from thumbtune.training.rows import ScoredRows

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

ENGINES = ["packed", "padded"]


def held_out(lab: Any, n: int) -> list[dict[str, Any]]:
    return [{**row, "prompt": f"another {row['prompt']}"} for row in lab.thumbs(n)]


# ---- which rows


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", ["lora", "named", "other"])
def test_new_rows_are_measured_as_if_the_trainer_had_been_made_with_them(
    lab: Any, engine: str, shape: str
) -> None:
    """After training: an adapter is switched off, a model by name is loaded anew, a given one is kept."""
    rows = held_out(lab, 6)
    given: dict[str, Any] = {"eval_dataset": rows}
    if shape == "other":
        given["ref_model"] = lab.model()
    trainer = lab.trainer(
        model=str(lab.model_path) if shape == "named" else None,
        adapter=lab.lora() if shape == "lora" else None,
        engine=engine,
        max_steps=3,
        given=given,
    )
    trainer.train()
    wanted, found = trainer.evaluate(), trainer.evaluate(rows)
    assert found == wanted
    assert abs(found["eval_rewards/chosen"]) > 1e-3
    assert trainer.evaluate(rows[:4], metric_key_prefix="test")["test_count/chosen"] == 2


def test_a_reference_that_nobody_holds_is_not_made_up(lab: Any) -> None:
    trainer = lab.trainer(max_steps=2)
    before = trainer.evaluate(held_out(lab, 4))
    assert before["eval_loss"] == pytest.approx(0.5, abs=1e-6)
    trainer.train()
    with pytest.raises(ConfigError, match=r"nothing holds it .* give these rows as eval_dataset when"):
        trainer.evaluate(held_out(lab, 4))


def test_a_reference_of_its_own_is_freed_once_it_has_scored_what_is_planned(lab: Any) -> None:
    reference = lab.model()
    watch = weakref.ref(reference)
    trainer = lab.trainer(given={"ref_model": reference, "eval_dataset": held_out(lab, 4)}, max_steps=2)
    del reference
    freed = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            freed.append(watch() is None)

    assert watch() is not None
    trainer.add_callback(Look())
    trainer.train()
    assert freed == [True, True]
    trainer.evaluate()
    with pytest.raises(ConfigError, match=r"ref_model was let go .* give these rows as eval_dataset when"):
        trainer.evaluate(held_out(lab, 4))


def test_a_reference_by_name_comes_back_and_goes_again(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watches: list[Any] = []
    load = policy.load_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        watches.append(weakref.ref(model))
        return model

    monkeypatch.setattr(policy, "load_model", watched)
    trainer = lab.trainer(given={"ref_model": str(lab.model_path)}, max_steps=2)
    trainer.train()
    assert [watch() for watch in watches] == [None]
    metrics = trainer.evaluate(held_out(lab, 4))
    gc.collect()
    assert [watch() for watch in watches] == [None, None]
    assert metrics == trainer.evaluate(held_out(lab, 4))


def test_a_reference_that_was_given_is_as_it_was_after_it_has_scored(lab: Any) -> None:
    """It scores by the faster modules, as the policy does."""
    reference = lab.model()
    kinds = [type(module) for module in reference.modules()]
    seen: list[bool] = []
    reference.lm_head.register_forward_pre_hook(lambda head, _: seen.append(isinstance(head, FastLinear)))
    trainer = lab.trainer(given={"ref_model": reference}, engine="padded", max_steps=2)
    trainer.train()
    trainer.evaluate(held_out(lab, 4))
    assert any(seen)
    assert [type(module) for module in reference.modules()] == kinds


def test_a_model_that_changed_on_disk_is_not_taken_for_the_reference(lab: Any, tmp_path: Any) -> None:
    folder = tmp_path / "model"
    lab.model().save_pretrained(folder)
    lab.tokenizer.save_pretrained(folder)
    trainer = lab.trainer(model=str(folder), max_steps=1)
    trainer.train()
    other = lab.model()
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    other.save_pretrained(folder)
    with pytest.raises(ConfigError, match="nothing holds it"):
        trainer.evaluate(held_out(lab, 4))


def test_a_name_chooses_one_of_the_sets_and_an_unknown_one_is_refused(lab: Any) -> None:
    trainer = lab.trainer(given={"eval_dataset": {"near": lab.thumbs(6), "far": held_out(lab, 10)}})
    near = trainer.evaluate("near")
    assert near["eval_count/chosen"] == 3
    assert not any(name.startswith("eval_near") for name in near)
    both = trainer.evaluate()
    assert both["eval_far_count/chosen"] == 5
    with pytest.raises(ConfigError, match=r"evaluate\('middle'\): the trainer has 'near', 'far'"):
        trainer.evaluate("middle")
    new = trainer.evaluate({"one": lab.thumbs(6), "two": held_out(lab, 4)})
    assert (new["eval_one_count/chosen"], new["eval_two_count/chosen"]) == (3, 2)


@pytest.mark.parametrize("as_dict", [True, False])
def test_a_stream_of_held_out_rows_is_read_to_its_end(lab: Any, as_dict: bool) -> None:
    from datasets import Dataset

    rows = held_out(lab, 6)
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = lab.trainer(given={"eval_dataset": {"all": stream} if as_dict else stream})
    metrics = trainer.evaluate()
    assert metrics["eval_all_count/chosen" if as_dict else "eval_count/chosen"] == 3
    assert trainer.evaluate(iter(rows))["eval_count/chosen"] == 3


def test_the_lengths_of_all_rows_are_added_up_once_and_not_for_each_batch(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = lab.trainer(per_device_eval_batch_size=2, given={"eval_dataset": held_out(lab, 12)})
    asked = []
    lengths = ScoredRows.lengths.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(ScoredRows, "lengths", property(lambda rows: asked.append(rows) or lengths(rows)))
    trainer.evaluate()
    assert len(asked) == 1


def test_predict_is_refused_with_what_to_call(lab: Any) -> None:
    with pytest.raises(ConfigError, match=r"predicts no labels\. evaluate\(rows\) measures new rows"):
        lab.trainer().predict(lab.thumbs(4))


def test_rows_with_images_are_refused_with_the_row(lab: Any) -> None:
    from datasets import Dataset

    rows = lab.thumbs(4)
    rows[2] |= {"images": ["a picture"]}
    with pytest.raises(
        DataError, match="train_dataset row 2: the row holds 'images': thumbtune trains on text"
    ):
        lab.trainer(rows=rows)
    table = Dataset.from_list([{**row, "image": "a picture"} for row in lab.thumbs(4)])
    with pytest.raises(DataError, match="eval_dataset has a column 'image': thumbtune trains on text alone"):
        lab.trainer(given={"eval_dataset": table})
    lab.trainer(rows=[{**row, "images": []} for row in lab.thumbs(4)])
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    chat = {
        "prompt": [{"role": "user", "content": parts}],
        "completion": [{"role": "assistant", "content": "a cat"}],
        "label": True,
    }
    with pytest.raises(DataError, match=r"train_dataset row 0.*a part of type 'image': only text"):
        lab.trainer(rows=[chat])


# ---- compute_metrics


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_a_metric_of_one_s_own_gets_logits_and_tokens_in_the_dataset_s_order(
    lab: Any, method: str, engine: str
) -> None:
    seen = []

    def measure(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"rows": float(len(prediction.label_ids)), "eval_named": 1.0}

    rows = held_out(lab, 7) if method == "kto" else lab.pairs(5)
    trainer = lab.trainer(
        method,
        engine=engine,
        per_device_eval_batch_size=3,
        include_for_metrics=["loss", "inputs"],
        given={"eval_dataset": rows, "compute_metrics": measure},
    )
    metrics = trainer.evaluate()
    (prediction,) = seen
    data = trainer.eval_dataset.rows
    branches = [row[k] for k in range(data.completion_lengths.shape[1]) for row in data.branches]
    assert metrics["eval_rows"] == len(branches)
    assert metrics["eval_named"] == 1.0
    assert metrics["eval_loss"] == pytest.approx(prediction.losses.mean(), abs=1e-6)
    assert prediction.predictions.shape == (*prediction.label_ids.shape, 260)
    assert (prediction.inputs == prediction.label_ids).all()
    for ids, logits, branch in zip(prediction.label_ids, prediction.predictions, branches, strict=True):
        text = [*branch.prompt_ids, *branch.completion_ids]
        assert ids[: len(text)].tolist() == text
        assert (ids[len(text) :] == -100).all()
        with torch.no_grad():
            own = lab.blueprint(torch.tensor([text])).logits[0].numpy()
        np.testing.assert_allclose(logits[: len(text)], own, atol=1e-5)
        assert (logits[len(text) :] == -100).all()


def test_metrics_batch_by_batch_are_told_which_batch_is_the_last(lab: Any) -> None:
    calls = []

    def measure(prediction: Any, compute_result: bool) -> dict[str, float]:
        calls.append((len(prediction.label_ids), compute_result))
        return {"seen": float(sum(n for n, _ in calls))}

    trainer = lab.trainer(
        batch_eval_metrics=True,
        per_device_eval_batch_size=3,
        given={"eval_dataset": held_out(lab, 7), "compute_metrics": measure},
    )
    assert trainer.evaluate()["eval_seen"] == 7
    assert calls == [(3, False), (3, False), (1, True)]


def test_a_metric_of_one_s_own_chooses_the_best_checkpoint_and_changes_no_weight(lab: Any) -> None:
    script: Iterator[float] = iter([0.1, 0.9, 0.5])

    def start(**given: Any) -> Any:
        trainer = lab.trainer(
            rows=lab.thumbs(12),
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            metric_for_best_model="taste",
            greater_is_better=True,
            given={"eval_dataset": lab.thumbs(4), **given},
            max_steps=3,
        )
        trainer.train()
        return trainer

    watched = start(compute_metrics=lambda prediction: {"taste": next(script)})
    assert watched.state.best_metric == 0.9
    assert watched.state.best_model_checkpoint.endswith("checkpoint-2")
    alone = lab.trainer(rows=lab.thumbs(12), max_steps=3)
    alone.train()
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name])


# ---- names of metrics


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_have_trl_s_names_beside_ours(lab: Any, engine: str) -> None:
    trainer = lab.trainer(
        rows=lab.thumbs(8), engine=engine, num_train_epochs=2, given={"eval_dataset": lab.thumbs(4)}
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["kl"] == entry["z0"] for entry in logs)
    assert logs[-1]["kl"] > 0
    rows = trainer.train_dataset.rows
    per_epoch = int(rows.prompt_lengths.sum() + rows.completion_lengths.sum())
    assert [entry["num_tokens"] for entry in logs if entry["epoch"] in (1, 2)] == [per_epoch, 2 * per_epoch]
    assert "eval_kl" in trainer.evaluate()


def test_the_count_of_tokens_goes_on_where_a_checkpoint_stood(lab: Any) -> None:
    def start() -> Any:
        return lab.trainer(
            rows=lab.thumbs(12), max_steps=5, logging_steps=2, save_strategy="steps", save_steps=1
        )

    unbroken = start()
    unbroken.train()
    resumed = start()
    resumed.train(resume_from_checkpoint=str(lab.folder / "run" / "checkpoint-3"))

    def told(trainer: Any) -> list[int]:
        return [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]

    assert told(resumed) == told(unbroken)


def test_the_accuracy_of_pairs_is_the_share_whose_chosen_one_has_the_higher_reward(lab: Any) -> None:
    trainer = lab.trainer("dpo", max_steps=6, given={"eval_dataset": lab.pairs(8)})
    assert "rewards/accuracies" not in trainer.state.log_history
    trainer.train()
    metrics = trainer.evaluate()
    branches = trainer.eval_dataset.rows.branches

    def reward(branch: Any) -> float:
        ids = [*branch.prompt_ids, *branch.completion_ids]
        total = 0.0
        for model, sign in ((trainer.model, 1), (lab.blueprint, -1)):
            with torch.no_grad():
                scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            total += sign * sum(float(scores[i - 1, ids[i]]) for i in range(len(branch.prompt_ids), len(ids)))
        return total

    hits = [reward(chosen) > reward(rejected) for chosen, rejected in branches]
    assert metrics["eval_rewards/accuracies"] == pytest.approx(sum(hits) / len(hits))
    assert sum(hits) > 0
