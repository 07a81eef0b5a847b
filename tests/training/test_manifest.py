"""What a run was made of: equal digests mean equal weights, byte for byte, and nothing that matters is left out."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from thumbtune.data.formats import read_rows
from thumbtune.training.manifest import write_json

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

TWIN = """
import torch
torch.set_num_threads(1)
from peft import LoraConfig
from thumbtune import KTOConfig, KTOTrainer

rows = [
    {"prompt": f"question {i // 2}?", "completion": f"yes {i}" if i % 2 else f"no {i}", "label": bool(i % 2)}
    for i in range(14)
]
config = KTOConfig(
    output_dir=FOLDER, report_to="none", disable_tqdm=True, use_cpu=True, learning_rate=1e-2, seed=11,
    per_device_train_batch_size=3, gradient_accumulation_steps=2, num_train_epochs=2, reference_cache=FOLDER + "/cache",
    disable_dropout=False,
)
adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
trainer = KTOTrainer(model=MODEL, args=config, train_dataset=rows, peft_config=adapter)
trainer.train()
trainer.save_model(FOLDER)
"""


@pytest.fixture(scope="module", autouse=True)
def twin(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """A process that runs the program from scratch, with a hash seed of its own; started while others test."""
    folder = tmp_path_factory.mktemp("twin")
    (folder / "twin.py").write_text(
        f"MODEL, FOLDER = {str(tiny_model_path)!r}, {str(folder / 'run')!r}\n{TWIN}"
    )
    process = subprocess.Popen(
        [sys.executable, str(folder / "twin.py")],
        env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )

    def wait() -> Path:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error.decode()[-2000:]
        return folder / "run"

    yield wait
    if process.poll() is None:
        process.kill()
        process.communicate()


def describe(lab: Any, **changes: Any) -> dict[str, Any]:
    """The manifest of a small run that is not started."""
    return lab.trainer(**{"adapter": lab.lora(), **changes}).build_manifest()


def test_the_manifest_stands_in_the_folder_before_step_1(lab: Any) -> None:
    found = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.append((state.global_step, json.loads((lab.folder / "run" / "manifest.json").read_text())))

    trainer = lab.trainer(given={"callbacks": [Look()]}, max_steps=1)
    trainer.train()
    ((step, manifest),) = found
    assert step == 0
    assert manifest == trainer.manifest
    assert manifest["seed"] == 42
    assert manifest["data"]["rows"] == 8
    assert manifest["data"]["classes"] == {"desirable": 4, "undesirable": 4}
    assert manifest["plan"]["steps"] == 1
    assert manifest["versions"]["torch"]
    assert manifest["hardware"]["threads"] == 1


def change_text(lab: Any) -> dict[str, Any]:
    rows = lab.thumbs(8)
    rows[5]["completion"] += "!"
    return {"rows": rows}


def flip_label(lab: Any) -> dict[str, Any]:
    rows = lab.thumbs(8)
    rows[5]["label"] = not rows[5]["label"]
    return {"rows": rows}


def change_template(lab: Any) -> dict[str, Any]:
    tokenizer = copy.deepcopy(lab.tokenizer)
    tokenizer.chat_template += " "
    return {"given": {"processing_class": tokenizer}}


def change_tokenizer(lab: Any) -> dict[str, Any]:
    tokenizer = copy.deepcopy(lab.tokenizer)
    tokenizer.eos_token = tokenizer.bos_token
    return {"given": {"processing_class": tokenizer}}


def change_weight(lab: Any) -> dict[str, Any]:
    model = lab.model()
    model.lm_head.weight.data[0, 0] += 1e-3
    return {"model": model}


def change_architecture(lab: Any) -> dict[str, Any]:
    model = lab.model()
    model.config.rms_norm_eps = 1e-3
    return {"model": model}


MATTERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "seed": lambda lab: {"seed": 1},
    "order of the data": lambda lab: {"data_seed": 1},
    "learning rate": lambda lab: {"learning_rate": 2e-2},
    "beta": lambda lab: {"beta": 0.2},
    "text": change_text,
    "label": flip_label,
    "template": change_template,
    "tokenizer": change_tokenizer,
    "weights": change_weight,
    "architecture": change_architecture,
    "reference": lambda lab: {"given": {"ref_model": change_weight(lab)["model"]}},
    "held-out rows": lambda lab: {"given": {"eval_dataset": lab.thumbs(4)}},
    "scale of the adapter": lambda lab: {"adapter": lab.lora(lora_alpha=9)},
    "rank of the adapter": lambda lab: {"adapter": lab.lora(r=5)},
}


@pytest.mark.parametrize("what", MATTERS)
def test_what_matters_changes_the_digest_and_the_identity(lab: Any, what: str) -> None:
    before, after = describe(lab), describe(lab, **MATTERS[what](lab))
    assert after["digest"] != before["digest"]
    assert after["identity"] != before["identity"]


def test_names_folders_and_trackers_change_neither(lab: Any, tiny_model_path: Path) -> None:
    before = describe(lab)
    moved = lab.folder / "moved"
    moved.mkdir()
    for file in tiny_model_path.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    settings = {
        "output_dir": str(lab.folder / "else"),
        "run_name": "else",
        "reference_cache": str(lab.folder / "kept"),
    }
    after = describe(lab, model=str(moved), **settings)
    assert (after["digest"], after["identity"]) == (before["digest"], before["identity"])
    assert after["run"]["model_name"] == str(moved)


def test_a_resumed_run_has_the_manifest_of_the_unbroken_one(lab: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    unbroken, resumed = lab.trainer(**settings), lab.trainer(**settings)
    unbroken.train()
    resumed.train(resume_from_checkpoint=str(lab.folder / "run" / "checkpoint-1"))
    assert resumed.manifest["digest"] == unbroken.manifest["digest"]


SECRET = "my salary is 4711"


def test_refused_dropped_and_cut_rows_are_counted_and_no_user_text_is_told(lab: Any) -> None:
    rows = [
        {"prompt": "question 1?", "completion": "fits", "label": True},  # 11 + 4 + 1 tokens
        {"prompt": "question 2?", "completion": "is too long to fit", "label": False},  # cut: 11 + 18 + 1
        {"prompt": SECRET + SECRET, "completion": "no room", "label": True},  # dropped: a prompt of 34
        {"prompt": SECRET, "completion": "yes", "label": SECRET},  # refused
        {"prompt": SECRET, "label": True},  # refused
        {"prompt": SECRET, "completion": "yes", "label": "meh"},  # refused
    ]
    path = lab.folder / "a private place.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = describe(lab, rows=read_rows(path, skip_refused=True), max_length=24)
    counts = {name: n for name, n in manifest["data"]["counts"].items() if n}
    assert counts == {
        "refused: wrong_label": 2,
        "refused: missing_key": 1,
        "dropped: prompt fills max_length": 1,
        "cut: completion": 1,
    }
    assert manifest["data"]["rows"] == 2
    told = json.dumps(manifest)
    for private in (SECRET, "question", "meh", "private place", str(lab.folder / "a")):
        assert private not in told


def test_left_over_thumbs_and_cut_prompts_are_counted(lab: Any) -> None:
    rows = lab.thumbs(7)  # the seventh has no counterpart
    manifest = lab.trainer("dpo", rows, max_prompt_length=10).build_manifest()
    counts = {name: n for name, n in manifest["data"]["counts"].items() if n}
    assert counts == {"not paired: no_counterpart": 1, "cut: prompt": 6}
    assert manifest["data"]["classes"] == {"pairs": 3}


def test_adjustments_are_recorded(lab: Any) -> None:
    manifest = describe(lab, fp16=True, desirable_weight="auto")
    assert manifest["adjustments"] == [
        "fp16=True needs a GPU: trained in float32 on this CPU",
        "class weights 'auto': 1 for 4 👍, 1 for 4 👎",
    ]
    assert manifest["config"]["fp16"] is False
    assert manifest["config"]["desirable_weight"] == 1.0


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "content.json"
    write_json({"a": 1}, path)
    circular: dict[str, Any] = {}
    circular["itself"] = circular
    with pytest.raises(ValueError, match="Circular"):
        write_json(circular, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_two_processes_with_one_digest_write_the_same_adapter_byte_for_byte(
    lab: Any, twin: Callable[[], Path]
) -> None:
    other = lab.folder / "other"
    assert lab.run_child(TWIN, FOLDER=str(other)).wait() == 0
    one = twin()
    digests = [json.loads((folder / "manifest.json").read_text())["digest"] for folder in (one, other)]
    assert digests[0] == digests[1]
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in (one, other)]
    assert hashlib.sha256(files[0]).hexdigest() == hashlib.sha256(files[1]).hexdigest()
    caches = [sorted(path.name for path in (folder / "cache").iterdir()) for folder in (one, other)]
    assert caches[0] == caches[1] != []
