"""Runs that end too early: whatever stops a run, it goes on from whole checkpoints to the same weights, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from thumbtune.errors import CheckpointError
from thumbtune.training.checkpoints import last_checkpoint, rotate_checkpoints, staged_checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

UNEVEN = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 3,
}
"""15 rows: 8 microbatches an epoch, the last of one row; 4 steps an epoch, the last of three rows; 8 steps in all."""


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.mark.parametrize("case", ["kto lora", "kto full", "dpo lora", "kto dropout"])
def test_a_run_resumed_at_any_checkpoint_ends_with_the_weights_of_an_unbroken_run(
    lab: Any, case: str
) -> None:
    method, shape = case.split()
    rows = lab.thumbs(15) if method == "kto" else lab.pairs(15)
    dropout = 0.2 if shape == "dropout" else 0.0
    settings = UNEVEN | {"disable_dropout": not dropout}

    def start(**more: Any) -> Any:
        adapter = None if shape == "full" else lab.lora(lora_dropout=dropout)
        return lab.trainer(method, rows, adapter=adapter, **settings, **more)

    unbroken = start(save_strategy="steps", save_steps=1)
    untrained = weights(unbroken)
    unbroken.train()
    wanted = weights(unbroken)
    assert unbroken.state.global_step == 8
    assert differing(wanted, untrained)
    every_step = range(1, 8) if shape != "dropout" else (3, 4, 5)
    for step in every_step:  # 4 is the end of the first epoch
        resumed = start()
        resumed.train(resume_from_checkpoint=str(lab.folder / "run" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 8
        assert not differing(weights(resumed), wanted), f"resumed at step {step}"


@pytest.mark.parametrize("shape", ["lora", "full"])
def test_a_run_that_was_killed_behind_its_last_step_takes_no_further_one(lab: Any, shape: str) -> None:
    """max_steps ends within an epoch: there transformers goes on with one step too many."""

    def start(**more: Any) -> Any:
        adapter = None if shape == "full" else lab.lora()
        return lab.trainer("kto", lab.thumbs(15), adapter=adapter, **UNEVEN, max_steps=3, **more)

    unbroken = start(save_strategy="steps", save_steps=1)
    unbroken.train()
    resumed = start()
    resumed.train(resume_from_checkpoint=str(lab.folder / "run" / "checkpoint-3"))
    assert resumed.state.global_step == 3
    assert resumed.state.log_history
    assert not differing(weights(resumed), weights(unbroken))


KILLED_IN_A_SAVE = """
import io, shutil

STEP = 5

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at_step():
    return trainer.state.global_step == STEP

def before_model_file():
    save_model = trainer.save_model
    trainer.save_model = lambda *args, **kwargs: die() if at_step() else save_model(*args, **kwargs)

def halfway_in_optimizer_file():
    save = torch.save
    def save_half(content, path, *args, **kwargs):
        if at_step() and str(path).endswith("optimizer.pt"):
            buffer = io.BytesIO()
            save(content, buffer)
            with open(path, "wb") as file:
                file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
                file.flush()
                die()
        save(content, path, *args, **kwargs)
    torch.save = save_half

def before_rename():
    replace = os.replace
    os.replace = lambda a, b: die() if str(b).endswith(f"checkpoint-{STEP}") else replace(a, b)

def while_an_old_one_is_removed():
    def remove_half(path, *args, **kwargs):
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
        if any("checkpoint-" in str(file) for file in files):
            for file in files[: len(files) // 2]:
                file.unlink()
            die()
    shutil.rmtree = remove_half

trainer = KTOTrainer(model=MODEL, args=KTOConfig(**SETTINGS), train_dataset=ROWS)
globals()[POINT]()
trainer.train()
report(survived=True)
"""


@pytest.fixture
def settings_of_a_child(lab: Any) -> dict[str, Any]:
    return UNEVEN | {
        "output_dir": str(lab.folder / "run"),
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 1e-2,
        "save_steps": 1,
        "logging_steps": 1,
    }


POINTS = ["before_model_file", "halfway_in_optimizer_file", "before_rename", "while_an_old_one_is_removed"]


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_in_a_save_goes_on_from_its_last_whole_checkpoint(
    lab: Any, settings_of_a_child: dict[str, Any], point: str
) -> None:
    rows, folder = lab.thumbs(15), lab.folder / "run"
    rotates = point == "while_an_old_one_is_removed"
    settings = settings_of_a_child | ({"save_total_limit": 3} if rotates else {})
    child = lab.run_child(KILLED_IN_A_SAVE, SETTINGS=settings, ROWS=rows, POINT=point)
    unbroken = lab.trainer(rows=rows, **UNEVEN, output_dir=str(lab.folder / "unbroken"))
    unbroken.train()

    assert child.wait() == -signal.SIGKILL
    assert list(folder.glob(".saving-*")), "the kill came too late to leave anything behind"
    last = last_checkpoint(folder)
    assert last is not None
    assert last.name == "checkpoint-4"
    for whole in folder.glob("checkpoint-*"):
        kept = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
        assert kept <= set(os.listdir(whole))

    resumed = lab.trainer(rows=rows, **UNEVEN, save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    assert not list(folder.glob(".saving-*"))
    assert not differing(weights(resumed), weights(unbroken))


INTERRUPTED = """
class WaitForSignal(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:  # the third step is about to begin
            Path(READY).touch()
            until = time.monotonic() + 60
            while not trainer.interrupted and time.monotonic() < until:
                time.sleep(0.01)

trainer = KTOTrainer(
    model=MODEL, args=KTOConfig(**SETTINGS), train_dataset=ROWS, callbacks=[WaitForSignal()]
)
trainer.train()
report(interrupted=trainer.interrupted, steps=trainer.state.global_step)
"""


def test_ctrl_c_finishes_the_step_saves_and_stops_and_the_run_goes_on_from_there(
    lab: Any, settings_of_a_child: dict[str, Any]
) -> None:
    rows, ready = lab.thumbs(15), lab.folder / "ready"
    settings = settings_of_a_child | {"save_strategy": "no"}
    child = lab.run_child(INTERRUPTED, SETTINGS=settings, ROWS=rows, READY=str(ready))
    unbroken = lab.trainer(rows=rows, **UNEVEN, output_dir=str(lab.folder / "unbroken"))
    unbroken.train()
    while not ready.exists():
        assert child.process.is_alive()
        time.sleep(0.02)
    os.kill(child.process.pid, signal.SIGINT)
    assert child.wait() == 0
    assert child.answer == {"interrupted": True, "steps": 3}
    assert [path.name for path in (lab.folder / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = lab.trainer(rows=rows, **UNEVEN)
    resumed.train(resume_from_checkpoint=True)
    assert not resumed.interrupted
    assert not differing(weights(resumed), weights(unbroken))


def press_ctrl_c(at_step: int, times: int) -> Any:
    from transformers import TrainerCallback

    class Press(TrainerCallback):
        pressed = False

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == at_step and not self.pressed:
                self.pressed = True
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

    return Press()


def test_an_interrupted_trainer_can_be_told_to_go_on(lab: Any) -> None:
    trainer = lab.trainer(given={"callbacks": [press_ctrl_c(at_step=0, times=1)]}, max_steps=3)
    trainer.train()
    assert trainer.interrupted
    assert trainer.state.global_step == 1
    trainer.train(resume_from_checkpoint=True)
    assert not trainer.interrupted
    assert trainer.state.global_step == 3


def test_a_second_ctrl_c_stops_at_once_and_ctrl_c_means_what_it_meant_before(lab: Any) -> None:
    earlier = signal.getsignal(signal.SIGINT)
    trainer = lab.trainer(given={"callbacks": [press_ctrl_c(at_step=1, times=2)]}, max_steps=3)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is earlier
    assert trainer.state.global_step == 1
    assert last_checkpoint(lab.folder / "run") is None


DISK_FULL = """
import resource

class LimitFiles(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if LIMIT and state.global_step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

trainer = KTOTrainer(model=MODEL, args=KTOConfig(**SETTINGS), train_dataset=ROWS, callbacks=[LimitFiles()])
try:
    trainer.train()
    error = None
except Exception as caught:
    error = caught
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)) if not LIMIT else None
report(kind=type(error).__name__, message=str(error))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint and a half."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting needs root; the other test of a full disk does without")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this machine mounts no tmpfs; the other test of a full disk does without")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def check_that_the_first_checkpoint_is_left_whole(lab: Any, child: Any, run: Path, cause: str) -> None:
    assert child.wait() == 0
    assert child.answer["kind"] == "CheckpointError"
    message = child.answer["message"]
    assert f"checkpoint-2 could not be saved: {cause}." in message
    assert (
        f"Free some space or name another folder, then run again; the last good checkpoint is {run}"
        in message
    )
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["checkpoint-1"]
    resumed = lab.trainer(rows=lab.thumbs(15), **UNEVEN, output_dir=str(lab.folder / "elsewhere"))
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert resumed.state.global_step == 8


def test_a_full_disk_ends_the_run_and_leaves_the_earlier_checkpoint_whole(
    lab: Any, settings_of_a_child: dict[str, Any], small_disk: Path
) -> None:
    settings = settings_of_a_child | {"output_dir": str(small_disk / "run")}
    child = lab.run_child(DISK_FULL, SETTINGS=settings, ROWS=lab.thumbs(15), LIMIT=None)
    check_that_the_first_checkpoint_is_left_whole(lab, child, small_disk / "run", "No space left on device")


def test_a_limit_on_file_size_ends_the_run_and_leaves_the_earlier_checkpoint_whole(
    lab: Any, settings_of_a_child: dict[str, Any]
) -> None:
    child = lab.run_child(DISK_FULL, SETTINGS=settings_of_a_child, ROWS=lab.thumbs(15), LIMIT=200_000)
    check_that_the_first_checkpoint_is_left_whole(lab, child, lab.folder / "run", "File too large")


def test_a_run_folder_without_a_checkpoint_says_so_when_told_to_resume(lab: Any) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint to continue from: train without"):
        lab.trainer().train(resume_from_checkpoint=True)
    (lab.folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no trainer_state\.json"):
        lab.trainer().train(resume_from_checkpoint=str(lab.folder / "empty"))


def make_checkpoint(run: Path, step: int) -> None:
    with staged_checkpoint(run, f"checkpoint-{step}") as staging:
        (staging / f"checkpoint-{step}").mkdir()
        (staging / f"checkpoint-{step}" / "file").write_text(str(step))


def test_the_newest_checkpoint_is_the_one_of_the_highest_step_and_other_names_are_none(
    tmp_path: Path,
) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "checkpoint-10"


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 1)
    (tmp_path / "checkpoint-1" / "stale").touch()
    make_checkpoint(tmp_path, 1)
    assert [path.name for path in (tmp_path / "checkpoint-1").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("keep", "protected", "left"),
    [
        (2, set(), [4, 5]),
        (2, {"checkpoint-1"}, [1, 5]),
        (1, {"checkpoint-2"}, [2, 5]),
        (9, set(), [1, 2, 3, 4, 5]),
    ],
)
def test_the_oldest_checkpoints_go_first_but_never_the_newest_or_the_best(
    tmp_path: Path, keep: int, protected: set[str], left: list[int]
) -> None:
    for step in range(1, 6):
        make_checkpoint(tmp_path, step)
    rotate_checkpoints(tmp_path, keep=keep, protected=protected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]
