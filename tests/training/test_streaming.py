"""A stream of rows: trained window by window, no row left out, in bounded memory, and resumed exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from thumbtune.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

ENGINES = ["packed", "padded"]
SHAPES = ["full", "lora"]


class Look(TrainerCallback):
    """The rows of each step, by their place in the stream."""

    def __init__(self) -> None:
        self.met: list[list[str]] = []
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        where = self.trainer.train_dataset.rows.where
        self.met.append([where[row] for row in self.trainer._rows_of_batch])


def stream(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows).to_iterable_dataset()


def start(lab: Any, rows: Any, shape: str = "full", method: str = "kto", **settings: Any) -> tuple[Any, Look]:
    look = Look()
    trainer = lab.trainer(
        method,
        rows,
        adapter=lab.lora() if shape == "lora" else None,
        given={"callbacks": [look], **settings.pop("given", {})},
        **{
            "stream_window_rows": 8,
            "per_device_train_batch_size": 4,
            "lr_scheduler_type": "constant",
            **settings,
        },
    )
    look.trainer = trainer
    return trainer, look


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_one_window_is_trained_as_a_dataset_is(lab: Any, method: str, shape: str, engine: str) -> None:
    rows = lab.thumbs(12) if method == "kto" else lab.pairs(12)
    whole, _ = start(lab, rows, shape, method, max_steps=3, engine=engine)
    whole.train()
    streamed, _ = start(lab, stream(rows), shape, method, max_steps=3, engine=engine, stream_window_rows=12)
    streamed.train()
    assert losses(streamed) == losses(whole)
    assert all(torch.equal(whole.model.state_dict()[n], t) for n, t in streamed.model.state_dict().items())


def test_every_row_of_a_pass_is_trained_once_and_then_the_stream_starts_anew(lab: Any) -> None:
    """20 rows in windows of 8, 8 and 4: five batches a pass, each of rows of one window, shuffled anew."""
    trainer, look = start(lab, stream(lab.thumbs(20)), max_steps=10)
    trainer.train()
    numbers = [[int(place.split()[-1]) for place in batch] for batch in look.met]
    for first in (0, 5):
        assert sorted(number for batch in numbers[first : first + 5] for number in batch) == list(range(20))
    assert [sorted({number // 8 for number in batch}) for batch in numbers] == [[0], [0], [1], [1], [2]] * 2
    assert numbers[:5] != numbers[5:]
    assert numbers[0] + numbers[1] != list(range(8))


class Counted:
    """Rows without end, that tell how many were asked for."""

    def __init__(self, lab: Any) -> None:
        self.rows = lab.thumbs(64)
        self.n_read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            row = self.rows[self.n_read % 64]
            self.n_read += 1
            yield row


def test_an_endless_stream_is_read_as_far_as_it_is_trained_and_a_window_at_a_time(lab: Any) -> None:
    rows = Counted(lab)
    trainer, _ = start(lab, rows, max_steps=5)
    assert rows.n_read == 8, "the first window, so that a bad row is refused before anything is loaded"
    held = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            held.append((len(trainer.train_dataset.rows), rows.n_read))

    trainer.add_callback(Watch())
    trainer.train()
    assert [n_rows for n_rows, _ in held] == [8] * 5
    assert held[-1][1] <= 3 * 8


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", ["full", "lora", "moving"])
def test_a_run_on_a_stream_resumes_bit_for_bit(lab: Any, shape: str, engine: str) -> None:
    """20 rows in windows of 8: resumed within a window, at its end, and in the second pass."""
    settings: dict[str, Any] = {"max_steps": 8, "engine": engine}
    if shape == "moving":
        settings |= {"sync_ref_model": True, "ref_model_sync_steps": 2}
    adapter = "lora" if shape == "lora" else "full"
    rows = lab.thumbs(20)
    unbroken, look = start(lab, stream(rows), adapter, save_strategy="steps", save_steps=1, **settings)
    unbroken.train()
    wanted = unbroken.model.state_dict()
    for step in (1, 4, 6):
        resumed, again = start(lab, stream(rows), adapter, **settings)
        scored = []
        score = resumed._score_window
        resumed._score_window = lambda *window, score=score, scored=scored: (scored.append(1), score(*window))
        resumed.train(resume_from_checkpoint=str(lab.folder / "run" / f"checkpoint-{step}"))
        assert again.met == look.met[step:]
        assert losses(resumed) == losses(unbroken)
        assert all(torch.equal(wanted[n], t) for n, t in resumed.model.state_dict().items()), step
        assert resumed.state.epoch == unbroken.state.epoch
        n_windows_left = {1: 5, 4: 3, 6: 2}[step]
        assert len(scored) == n_windows_left, "what is skipped is not scored"


def test_the_reference_of_a_later_window_is_the_start_and_not_the_policy_of_the_moment(lab: Any) -> None:
    """Two windows of the same rows: the log-probs that they are held against are the same."""
    rows = lab.thumbs(8)
    trainer, _ = start(lab, stream(rows + rows), max_steps=4)
    seen = []
    score = trainer._score_window

    def keep(window: Any, plan: Any, number: int) -> None:
        score(window, plan, number)
        seen.append(window.log_probs.clone())

    trainer._score_window = keep
    trainer.train()
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-4)
    assert losses(trainer)[2] != pytest.approx(0.5, abs=1e-3), "the policy has moved by then"
    assert trainer.evaluate(rows[:4])["eval_count/chosen"] == 2


def test_a_generator_trains_as_far_as_it_goes(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer, look = start(lab, (row for row in lab.thumbs(12)), max_steps=10)
    trainer.train()
    assert trainer.state.global_step == 3
    assert len(look.met) == 3
    assert "train_dataset has ended: a generator gives its rows once" in caplog.text


def test_smaller_batches_at_the_end_of_windows_are_dropped_where_that_is_asked_for(lab: Any) -> None:
    settings = {"max_steps": 4, "stream_window_rows": 6}
    for drop_last, sizes in ((False, [4, 2, 4, 2]), (True, [4, 4, 4, 4])):
        trainer, look = start(lab, stream(lab.thumbs(18)), dataloader_drop_last=drop_last, **settings)
        trainer.train()
        assert [len(batch) for batch in look.met] == sizes


def test_a_last_window_that_nobody_lends_to_is_left_out_and_the_run_goes_on(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, look = start(lab, stream(lab.thumbs(17)), max_steps=6)
    trainer.train()
    assert [int(batch[0].split()[-1]) // 8 for batch in look.met] == [0, 0, 1, 1, 0, 0]
    assert "a window of 1 rows of one prompt is left out" in caplog.text
    pairs, look = start(lab, stream(lab.pairs(17)), "full", "dpo", max_steps=5)
    pairs.train()
    assert look.met[4] == ["train_dataset row 16"]


@pytest.mark.parametrize("kind", ["iterable dataset", "generator"])
def test_a_stream_without_a_last_step_is_refused(lab: Any, kind: str) -> None:
    rows = lab.thumbs(8)
    given = stream(rows) if kind == "generator" else iter(rows)
    with pytest.raises(
        ConfigError, match="train_dataset is a stream, whose length nobody knows: set max_steps"
    ):
        lab.trainer(rows=given)


def test_a_stream_says_of_which_rows_its_numbers_are(lab: Any) -> None:
    rows = [row for row in lab.thumbs(40) if row["label"]][:6] + lab.thumbs(4)
    trainer, _ = start(lab, stream(rows), max_steps=2, desirable_weight="auto")
    assert "8 👍, " not in trainer.args.adjustments[0]
    assert "of the first window" in trainer.args.adjustments[0]
    assert trainer.class_counts == {"desirable": 7, "undesirable": 1}
    trainer.train()
    assert trainer.manifest["data"]["rows"] == 8
    with pytest.raises(
        ConfigError, match="dataloader_num_workers=2: a stream is read in the process that trains"
    ):
        start(lab, stream(rows), max_steps=2, dataloader_num_workers=2)[0].train()
    with pytest.raises(DataError, match="train_dataset row 1: the row holds 'image'"):
        start(lab, iter([rows[0], {**rows[1], "image": "a picture"}]), max_steps=2)
