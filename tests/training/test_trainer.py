"""One optimizer step and what is told of it: z0, microbatches, metrics, alarms, and a loss that is not a number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from thumbtune.data.formats import read_rows
from thumbtune.engine.plan import BatchPlan, PlannedRow
from thumbtune.errors import ConfigError, DataError, TrainingError
from thumbtune.training import trainer as trainer_module
from thumbtune.training.checkpoints import last_checkpoint
from thumbtune.training.metrics import MetricWindow

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)


class Watch(TrainerCallback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.gradients.append(found)


def logs(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- the cut into microbatches


@pytest.mark.parametrize("method", ["kto", "dpo"])
@pytest.mark.parametrize("shape", ["full", "lora"])
def test_the_cut_of_a_batch_into_microbatches_changes_nothing(lab: Any, method: str, shape: str) -> None:
    """8 rows a step as 1 × 8, 2 × 4 and 8 × 1; 20 rows, so that the last batch is of 4."""
    seen = []
    for microbatch, accumulation in ((8, 1), (4, 2), (1, 8)):
        watch = Watch()
        trainer = lab.trainer(
            method,
            lab.thumbs(20) if method == "kto" else lab.pairs(20),
            adapter=lab.lora() if shape == "lora" else None,
            given={"callbacks": [watch]},
            per_device_train_batch_size=microbatch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            max_grad_norm=0.0,
            optim="sgd",  # AdamW divides by the gradient's size and would blow rounding up
            learning_rate=1.0,
        )
        trainer.train()
        assert trainer.state.global_step == 6
        seen.append((logs(trainer), watch.gradients, trainer.model.state_dict()))
    whole_logs, whole_gradients, whole_weights = seen[0]
    names = {
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "logps/chosen",
        "logps/rejected",
        "auc",
        "count/chosen",
    }
    names |= {"z0"} if method == "kto" else set()
    for cut_logs, gradients, weights in seen[1:]:
        for whole, cut in zip(whole_logs, cut_logs, strict=True):
            # logps are some −40 nats, known to 4e-6 each in float32
            assert {n: cut[n] for n in names} == pytest.approx(
                {n: whole[n] for n in names}, rel=1e-6, abs=1e-5
            )
            assert cut["loss"] == pytest.approx(whole["loss"], abs=1e-6)
        for whole, cut in zip(whole_gradients, gradients, strict=True):
            assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-6
        assert max(float((whole_weights[n] - weights[n]).abs().max()) for n in whole_weights) < 1e-5
    if method == "kto":
        assert max(entry["z0"] for entry in whole_logs) > 0.01, "a z0 of zero would prove nothing"


def slow_log_prob(model: Any, tokenizer: Any, prompt: str, completion: str) -> float:
    """Plain loop: one row, one token at a time."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = prompt_ids + tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    total = 0.0
    for position in range(len(prompt_ids), len(ids)):
        total += float(torch.log_softmax(logits[position - 1], -1)[ids[position]])
    return total


def test_the_second_step_is_what_a_plain_loop_over_its_rows_gives(lab: Any) -> None:
    rows = lab.thumbs(12)
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "lr_scheduler_type": "constant",
    }
    first = lab.trainer(rows=rows, max_steps=1, **settings)
    first.train()
    run = lab.trainer(
        rows=rows, max_steps=2, beta=0.3, desirable_weight=2.0, undesirable_weight=0.5, **settings
    )
    run.args.beta = 0.1  # step 1 as in `first`: at ratio 0 the gradient scales with beta and the weights
    run = lab.trainer(rows=rows, max_steps=2, **settings)
    run.train()
    (log,) = [entry for entry in logs(run) if entry["step"] == 2]

    def ratio(row: int, lender: int | None = None) -> float:
        text = rows[row if lender is None else lender]["completion"]
        now, before = first.model, lab.model()
        return slow_log_prob(now, lab.tokenizer, rows[row]["prompt"], text) - slow_log_prob(
            before, lab.tokenizer, rows[row]["prompt"], text
        )

    batch = run.plan.epoch(0)[1]
    assert all(rows[p.row]["prompt"] != rows[p.mismatched_row]["prompt"] for p in batch)
    z0 = max(0.0, sum(ratio(p.row, p.mismatched_row) for p in batch) / len(batch))
    ratios = {p.row: ratio(p.row) for p in batch}
    signs = {row: 1 if rows[row]["label"] else -1 for row in ratios}
    losses = [1 - 1 / (1 + math.exp(-signs[row] * 0.1 * (r - z0))) for row, r in ratios.items()]
    ups = [0.1 * r for row, r in ratios.items() if rows[row]["label"]]
    downs = [0.1 * r for row, r in ratios.items() if not rows[row]["label"]]
    assert z0 > 0.01
    expected = {
        "loss": sum(losses) / len(losses),
        "z0": z0,
        "rewards/chosen": sum(ups) / len(ups),
        "rewards/rejected": sum(downs) / len(downs),
        "rewards/margins": sum(ups) / len(ups) - sum(downs) / len(downs),
        "count/chosen": len(ups),
        "count/rejected": len(downs),
        "auc": sum((u > d) + (u == d) / 2 for u in ups for d in downs) / (len(ups) * len(downs)),
    }
    assert {name: log[name] for name in expected} == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("resumed_at", [None, 1, 3, 4])
def test_each_step_trains_the_rows_that_the_plan_has_for_it(lab: Any, resumed_at: int | None) -> None:
    """3 steps an epoch; a resumed run meets the rows of its own epoch too, not the first one's."""
    met = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            met.append(list(trainer._rows_of_batch))

    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    if resumed_at is not None:
        lab.trainer(rows=lab.thumbs(10), save_strategy="steps", save_steps=1, **settings).train()
    trainer = lab.trainer(rows=lab.thumbs(10), given={"callbacks": [Look()]}, **settings)
    trainer.train(resume_from_checkpoint=resumed_at and str(lab.folder / "run" / f"checkpoint-{resumed_at}"))
    planned = [[p.row for p in batch] for epoch in (0, 1) for batch in trainer.plan.epoch(epoch)]
    assert planned[:3] != planned[3:]
    assert met == planned[resumed_at or 0 :]


def test_a_run_that_ends_within_an_epoch_scores_the_rows_that_it_meets_and_no_others(lab: Any) -> None:
    trainer = lab.trainer(rows=lab.thumbs(24), max_steps=2, per_device_train_batch_size=2)
    trainer.train()
    met = {p.row for batch in trainer.plan.epoch(0)[:2] for p in batch}
    (scored,) = trainer.train_dataset.mismatched_log_probs.isfinite().tolist()
    assert {row for row, is_scored in enumerate(scored) if is_scored} == met


def prompts_of(batch: list[PlannedRow], rows: list[dict[str, Any]]) -> set[str]:
    return {rows[planned.row]["prompt"] for planned in batch}


def test_siblings_that_are_kept_together_change_the_batches_and_nothing_else(lab: Any) -> None:
    rows = lab.thumbs(16)
    apart, together = (
        lab.trainer(rows=rows, siblings_together=wanted, max_steps=4) for wanted in (False, True)
    )
    for trainer in (apart, together):
        trainer.train()
    assert all(len(prompts_of(batch, rows)) == 2 for batch in together.plan.epoch(0))
    assert any(len(prompts_of(batch, rows)) > 2 for batch in apart.plan.epoch(0))
    assert sorted(p.row for batch in together.plan.epoch(0) for p in batch) == list(range(16))
    own, other = together.train_dataset.log_probs, apart.train_dataset.log_probs
    assert own.numpy() == pytest.approx(other.numpy(), abs=1e-5)
    settings, others = together.manifest["config"], apart.manifest["config"]
    assert {name for name in settings if settings[name] != others[name]} == {"siblings_together"}
    assert together.manifest["plan"]["digest"] != apart.manifest["plan"]["digest"]


def test_siblings_that_are_kept_together_train_a_whole_batch_as_it_is_trained_apart(lab: Any) -> None:
    """One batch an epoch, no row lends another anything: only the order within the batch is another."""
    weights = []
    for together in (False, True):
        trainer = lab.trainer(
            siblings_together=together,
            per_device_train_batch_size=8,
            num_train_epochs=3,
            loss_type="kto_thresholds",
            optim="sgd",
            learning_rate=1.0,
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    start = lab.model().state_dict()
    assert max(float((weights[0][name] - start[name]).abs().max()) for name in start) > 1e-3
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in start) < 1e-5


def test_the_plan_is_read_no_further_than_the_last_step(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = lab.trainer(rows=lab.thumbs(24), max_steps=2, per_device_train_batch_size=2)
    read = []
    batches = BatchPlan.batches

    def counted(plan: Any, epoch: int) -> Any:
        for batch in batches(plan, epoch):
            read.append(epoch)
            yield batch

    monkeypatch.setattr(BatchPlan, "batches", counted)
    found = [[planned.row for planned in epoch] for epoch in trainer._planned_epochs()]
    assert read == [0, 0]
    assert found == [[planned.row for batch in trainer.plan.epoch(0)[:2] for planned in batch]]
    trainer.args.max_steps = 14
    assert [len(list(epoch)) for epoch in trainer._planned_epochs()] == [24, 4]


# ---- what the caller brings along


def test_an_optimizer_and_a_schedule_of_one_s_own_make_the_steps(lab: Any) -> None:
    model, watch = lab.model(), Watch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = lab.trainer(
        model=model,
        given={"optimizers": (optimizer, schedule), "callbacks": [watch]},
        max_steps=3,
        max_grad_norm=0.0,
        learning_rate=1e-2,  # of AdamW, which is not asked
    )
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert len(watch.gradients) == 3
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name] - 0.5 * watch.gradients[0][name])


@pytest.mark.parametrize("keeps", [True, False])
def test_freed_memory_is_kept_from_the_start_of_training_where_it_is_asked_for(
    lab: Any, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(trainer_module, "keep_freed_memory", lambda: calls.append(True))
    trainer = lab.trainer(keep_freed_memory=keeps, max_steps=1)
    assert not calls
    trainer.train()
    assert calls == [True] * keeps


# ---- metrics


def test_metrics_of_uneven_microbatches_are_those_of_all_rows_together() -> None:
    window = MetricWindow()
    up, down = True, False
    window.add_completions(
        losses=torch.tensor([0.1, 0.2, 0.6]),
        rewards=torch.tensor([1.0, 2.0, -1.0]),
        gains=torch.tensor([0.5, 5.0, -1.5]),
        log_probs=torch.tensor([-10.0, -20.0, -30.0]),
        desirable=torch.tensor([up, up, down]),
    )
    window.add_completions(
        losses=torch.tensor([0.9]),
        rewards=torch.tensor([6.0]),
        gains=torch.tensor([-4.5]),
        log_probs=torch.tensor([-60.0]),
        desirable=torch.tensor([up]),
    )
    window.add_value("z0", 0.5)
    window.add_value("z0", 1.5)
    assert window.mean_loss() == pytest.approx((0.1 + 0.2 + 0.6 + 0.9) / 4)
    assert window.summarize() == pytest.approx(
        {
            "z0": 1.0,
            "rewards/chosen": (1 + 2 + 6) / 3,
            "rewards/rejected": -1.0,
            "rewards/margins": 3 + 1,
            "logps/chosen": (-10 - 20 - 60) / 3,
            "logps/rejected": -30.0,
            "count/chosen": 3,
            "count/rejected": 1,
            "auc": 1.0,
            "saturated_share": 2 / 4,
        }
    )
    assert MetricWindow().summarize() == {}


def test_a_window_of_one_class_tells_of_that_class_alone() -> None:
    window = MetricWindow()
    one = torch.tensor([1.0])
    window.add_completions(
        losses=one, rewards=one, gains=one, log_probs=-one, desirable=torch.tensor([False])
    )
    assert set(window.summarize()) == {
        "rewards/rejected",
        "logps/rejected",
        "count/rejected",
        "saturated_share",
    }


def test_counts_of_a_log_are_the_rows_of_its_window(lab: Any) -> None:
    rows = lab.thumbs(15)[2:]  # 13 rows: 7 👎, 6 👍
    trainer = lab.trainer(
        rows=rows,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=4,
    )
    trainer.train()
    told = [(entry["count/chosen"], entry["count/rejected"]) for entry in logs(trainer)]
    assert told == [(6, 7), (6, 7)]


def test_both_rewards_falling_raise_an_alarm_under_a_huge_learning_rate_only(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shared = {"max_steps": 12, "logging_steps": 2, "per_device_train_batch_size": 16}
    sane = lab.trainer(rows=lab.thumbs(64), learning_rate=1e-2, **shared)
    sane.train()
    assert sane.alarms == []
    assert "keep falling" not in caplog.text
    huge = lab.trainer(rows=lab.thumbs(64), learning_rate=1.0, **shared)
    huge.train()
    assert huge.alarms
    assert (
        "the rewards of 👍 and of 👎 both keep falling: the learning rate is probably too high"
        in huge.alarms[0]
    )
    assert caplog.text.count("keep falling") == 1, "said once, kept each time"


# ---- evaluation


@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_held_out_rows_are_measured_while_training_and_change_nothing_of_it(lab: Any, method: str) -> None:
    make = lab.thumbs if method == "kto" else lab.pairs
    rows, held_out = make(12), [{**row, "prompt": f"another {row['prompt']}"} for row in make(7)]
    alone = lab.trainer(method, rows, num_train_epochs=2)
    alone.train()
    watched = lab.trainer(
        method,
        rows,
        num_train_epochs=2,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=3,
        given={"eval_dataset": held_out},
    )
    before = watched.evaluate()
    watched.train()
    measured = [entry for entry in watched.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in measured] == [2, 4, 6]
    assert before["eval_loss"] == pytest.approx(0.5 if method == "kto" else math.log(2), abs=1e-6)
    assert before["eval_rewards/chosen"] == pytest.approx(0, abs=1e-5)
    n_chosen, n_rejected = (3, 4) if method == "kto" else (7, 7)
    for entry in measured:
        assert (entry["eval_count/chosen"], entry["eval_count/rejected"]) == (n_chosen, n_rejected)
        assert ("eval_z0" in entry) == (method == "kto")
    assert measured[-1]["eval_auc"] == 1.0
    after = watched.evaluate()
    assert {name: after[name] for name in before} == {name: measured[-1][name] for name in before}
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name])


def test_several_held_out_sets_are_measured_under_their_names(lab: Any) -> None:
    held_out = {"near": lab.thumbs(6), "far": lab.thumbs(10)[6:], "none": None}
    trainer = lab.trainer(max_steps=2, eval_strategy="epoch", given={"eval_dataset": held_out})
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_near_count/chosen"] == 3
    assert metrics["eval_far_count/chosen"] == 2
    assert {name.split("_")[1] for name in metrics if name.startswith("eval_")} == {"near", "far"}


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("save_every", [2, 1])
def test_the_best_checkpoint_is_loaded_at_the_end_and_named_where_it_stands(
    lab: Any, adapted: bool, save_every: int
) -> None:
    class Worsen(TrainerCallback):
        """Held-out loss as scripted: the best is step 2 of 4, and step 3, where it is not saved, better still."""

        script = iter([0.5, 0.3, 0.2 if save_every == 2 else 0.4, 0.6])

    trainer = lab.trainer(
        rows=lab.thumbs(16),
        adapter=lab.lora() if adapted else None,
        num_train_epochs=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        given={"eval_dataset": lab.thumbs(6)},
    )
    measure = trainer._evaluate_rows
    trainer._evaluate_rows = lambda dataset: {**measure(dataset), "loss": next(Worsen.script)}
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kept[state.global_step] = {n: t.clone() for n, t in trainer.model.state_dict().items()}

    trainer.add_callback(Keep())
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert Path(best).is_dir()
    if save_every == 1:
        assert Path(best).name == "checkpoint-2"
        assert all(torch.equal(kept[2][n], t) for n, t in trainer.model.state_dict().items())
        written = json.loads((lab.folder / "run" / "checkpoint-4" / "trainer_state.json").read_text())
        assert written["best_model_checkpoint"] == best
        assert sorted(path.name for path in (lab.folder / "run").glob("checkpoint-*")) == [
            "checkpoint-2",
            "checkpoint-4",
        ]


# ---- a number that is none


@pytest.fixture
def thumbs_file(lab: Any) -> Path:
    """Ten rows; only line 4 holds a `#`."""
    rows = lab.thumbs(10)
    rows[3]["completion"] = "yes #"
    path = lab.folder / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def break_symbol(model: Any, tokenizer: Any, symbol: str) -> None:
    """Make the model's input for one symbol NaN."""
    (number,) = tokenizer(symbol)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[number] = math.nan


class Break(TrainerCallback):
    """Breaks the model behind step 2: before or after step 3's batch has got its reference point."""

    def __init__(self, breaking: Any, moment: str) -> None:
        self.breaking = breaking
        self.moment = moment

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.moment == "before z0" and state.global_step == 2:
            self.breaking(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.moment == "after z0" and state.global_step == 2:
            self.breaking(model)


def test_a_model_that_cannot_score_a_row_is_stopped_before_step_1_with_the_row(
    lab: Any, thumbs_file: Path
) -> None:
    model = lab.model()
    break_symbol(model, lab.tokenizer, "#")
    trainer = lab.trainer(rows=read_rows(thumbs_file), model=model)
    message = (
        r"reference model's log-prob is not a number, on 1 rows: row 3 \(thumbs\.jsonl line 4\)\. Look at"
    )
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert last_checkpoint(lab.folder / "run") is None


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_file_and_line(
    lab: Any, thumbs_file: Path
) -> None:
    breaking = Break(lambda model: break_symbol(model, lab.tokenizer, "#"), "after z0")
    settings = {"per_device_train_batch_size": 10, "num_train_epochs": 4}
    trainer = lab.trainer(
        rows=read_rows(thumbs_file),
        given={"callbacks": [breaking]},
        save_strategy="steps",
        save_steps=1,
        **settings,
    )
    message = r"the loss is not a number at step 3, on 1 rows: row 3 \(thumbs\.jsonl line 4\)\..* lower learning_rate"
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    good = last_checkpoint(lab.folder / "run")
    assert good is not None
    assert good.name == "checkpoint-2"
    resumed = lab.trainer(rows=read_rows(thumbs_file), **settings)
    resumed.train(resume_from_checkpoint=str(good))
    assert resumed.state.global_step == 4


def test_a_reference_point_that_is_not_a_number_names_the_row_that_borrows(
    lab: Any, thumbs_file: Path
) -> None:
    breaking = Break(lambda model: break_symbol(model, lab.tokenizer, "#"), "before z0")
    trainer = lab.trainer(
        rows=read_rows(thumbs_file),
        given={"callbacks": [breaking]},
        per_device_train_batch_size=5,
        gradient_accumulation_steps=2,
        num_train_epochs=4,
    )
    borrower = next(p.row for p in trainer.plan.epoch(2)[0] if p.mismatched_row == 3)
    message = (
        rf"mismatched log ratio .* at step 3, on 1 rows: row {borrower} \(thumbs\.jsonl line {borrower + 1}\)"
    )
    with pytest.raises(TrainingError, match=message):
        trainer.train()


def test_weights_that_are_not_numbers_are_never_saved(lab: Any) -> None:
    def break_a_weight(model: Any) -> None:
        with torch.no_grad():
            model.lm_head.weight[7, 7] = math.nan

    trainer = lab.trainer(
        given={"callbacks": [Break(break_a_weight, "before z0")]},
        save_strategy="steps",
        save_steps=1,
        num_train_epochs=2,
    )
    with pytest.raises(
        TrainingError, match=r"weights of lm_head\.weight are not numbers after step 2: nothing was"
    ):
        trainer.train()
    assert [path.name for path in (lab.folder / "run").glob("*checkpoint*")] == ["checkpoint-1"]
    assert not list((lab.folder / "run").glob(".saving-*"))
    with pytest.raises(TrainingError, match="not numbers"):
        trainer.save_model(str(lab.folder / "final"))


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_not_a_number_stops_the_run_before_it_reaches_the_weights(
    lab: Any, thumbs_file: Path, max_grad_norm: float
) -> None:
    trainer = lab.trainer(
        rows=read_rows(thumbs_file), max_grad_norm=max_grad_norm, per_device_train_batch_size=2
    )
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(
        TrainingError, match=r"the gradient is not a number at step 1, on 2 rows: .*jsonl line"
    ):
        trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_a_held_out_row_without_a_number_is_named_from_its_own_set(lab: Any, thumbs_file: Path) -> None:
    trainer = lab.trainer(
        given={"eval_dataset": {"fine": lab.thumbs(4), "file": read_rows(thumbs_file)}},
        loss_type="kto_thresholds",
        max_steps=1,
    )
    trainer.train()
    break_symbol(trainer.model, lab.tokenizer, "#")
    with pytest.raises(TrainingError, match=r"row 3 \(thumbs\.jsonl line 4\)"):
        trainer.evaluate()


# ---- what comes in


def test_rows_that_share_one_prompt_have_no_reference_point_but_can_have_thresholds(lab: Any) -> None:
    rows = [{**row, "prompt": "the one"} for row in lab.thumbs(6)]
    with pytest.raises(DataError, match="loss_type='kto_thresholds'"):
        lab.trainer(rows=rows).train()
    lab.trainer(rows=rows, loss_type="kto_thresholds", max_steps=1).train()


def test_a_template_that_refuses_a_row_names_the_row(lab: Any) -> None:
    lab.tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    chats = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
            "label": row["label"],
        }
        for row in lab.thumbs(4)
    ]
    with pytest.raises(
        DataError, match=r"train_dataset row 0: the chat template refuses these messages: no system"
    ):
        lab.trainer(rows=chats)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ({"train_dataset": None}, {}, "train_dataset is missing"),
        ({"tokenizer": object()}, {}, "two names of one argument"),
        ({}, {"model_init_kwargs": {"dtype": "float32"}}, "goes with a model given by name"),
    ],
)
def test_a_call_that_cannot_hold_is_refused(
    lab: Any, given: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    from thumbtune import DPOConfig, KTOTrainer

    arguments = {"train_dataset": lab.thumbs(4), "processing_class": lab.tokenizer, **given}
    with pytest.raises(ConfigError, match=message):
        KTOTrainer(model=lab.model(), args=lab.config(**settings), **arguments)
    with pytest.raises(ConfigError, match="args is a DPOConfig: KTOTrainer takes KTOConfig"):
        KTOTrainer(model=lab.model(), args=DPOConfig(output_dir="unused"), train_dataset=lab.thumbs(4))
