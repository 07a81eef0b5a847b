"""What the children of `training/test_ranks.py` play, alone and together: scripts, rows and settings.

The processes talk over gloo, on this machine's processor. Each child plays several runs, since starting one costs
seconds; a child that has not answered after two minutes is killed, and its test fails.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 120

PLAY = r'''
os.environ.update(ENVIRONMENT)
import thumbtune.training.config
thumbtune.training.config.cpu_has_fast_bf16 = lambda: True  # slow will do
from safetensors.torch import load_file
from thumbtune.training.run import run_training


def shard_without_gpus():
    """accelerate shards on GPUs alone; what it does there runs on processors too, once it is told to."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    make = AcceleratorState.__init__
    def init(self, *args, fsdp_plugin=None, **kwargs):
        make(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
    AcceleratorState.__init__ = init


def start(method, rows, adapter=None, evaluated=None, reference=None, stream=False, **settings):
    from datasets import Dataset
    from peft import LoraConfig

    cache = Path(FOLDER) / "cache"
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    # AdamW divides by the gradient's size and would blow rounding up
    plain = {"optim": "sgd", "learning_rate": 0.05, "reference_cache": str(cache), "reference_max_tokens": 128}
    config = {"kto": KTOConfig, "dpo": DPOConfig}[method](**{**quiet, **plain, **settings})
    rows = Dataset.from_list(rows).to_iterable_dataset() if stream else rows
    lora = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **adapter) if adapter else None
    kind = {"kto": KTOTrainer, "dpo": DPOTrainer}[method]
    trainer = kind(
        MODEL, reference and MODEL, args=config, train_dataset=rows, eval_dataset=evaluated, peft_config=lora
    )
    trainer.cuts = []
    cut = trainer._cut
    def watch(batch):
        trainer.cuts.append(cut(batch))
        return trainer.cuts[-1]
    trainer._cut = watch
    return trainer


def tell(trainer):
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "logs": logs,
        "path": trainer.path.name,
        "rows": trainer.met,
        "microbatches": [len(cuts) for cuts in trainer.cuts],
        "sharded": type(trainer.model).__name__.startswith("FSDP"),
    }


class Meet(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.met.append(sorted(map(int, self.trainer._rows_of_batch)))


def play(name, case):
    microbatches = case.pop("microbatches", 1) * 2 // int(os.environ.get("WORLD_SIZE", 1))  # a batch on all ranks
    trainer = start(output_dir=f"{FOLDER}/{name}", gradient_accumulation_steps=microbatches, **case)
    watcher = Meet()
    watcher.trainer, trainer.met = trainer, []
    trainer.add_callback(watcher)
    trainer.train()
    trainer.save_model(f"{FOLDER}/{name}/saved")
    told = tell(trainer)
    if case.get("evaluated"):
        told["evaluated"] = trainer.evaluate()
    return told


RESUMED = {"method": "kto", "optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 2}


def play_resumed(name, **more):
    """An unbroken run of six steps, and the same from two of its checkpoints: in an epoch, and at its end."""
    told, settings = {}, {**RESUMED, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **more}
    for step in (None, 2, 3):
        folder = f"{FOLDER}/{name} from {step}"
        trainer = start(output_dir=folder, save_strategy="steps", save_steps=1, rows=ROWS, **settings)
        trainer.met = []
        trainer.train(step and f"{FOLDER}/{name} from None/checkpoint-{step}")
        trainer.save_model(f"{folder}/saved")
        told[str(step)] = tell(trainer)
    return told


def play_run():
    """A run that `run_training` starts, and the same asked for again."""
    calls, results = [], []
    for _ in range(2):
        trainer = start(output_dir=f"{FOLDER}/run", rows=ROWS, method="kto", max_steps=2)
        results.append(run_training(trainer, on_progress=lambda *call: calls.append(call[0])))
    first, second = results
    return {"stages": sorted(set(calls)), "same": first == second, "steps": first.steps, "cuts": len(trainer.cuts)}


def play_full_disk():
    """The second rank cannot write its random state."""
    save = torch.save
    def refuse(content, path, *args, **kwargs):
        if str(path).endswith("rng_state_1.pth"):
            raise OSError(28, "No space left on device")
        save(content, path, *args, **kwargs)
    torch.save = refuse
    trainer = start(output_dir=f"{FOLDER}/full", rows=ROWS, method="kto", save_strategy="steps", save_steps=1)
    try:
        trainer.train()
        return None
    except ThumbtuneError as error:
        return [type(error).__name__, str(error)]
    finally:
        torch.save = save


class PressCtrlC(TrainerCallback):
    """On the second rank alone."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and args.process_index == 1:
            signal.raise_signal(signal.SIGINT)


def play_interrupted():
    trainer = start(output_dir=f"{FOLDER}/interrupted", rows=ROWS, method="kto", per_device_train_batch_size=2)
    trainer.add_callback(PressCtrlC())
    trainer.train()
    return [trainer.interrupted, trainer.state.global_step]


'''

PLAY_ALONE = "report(**{name: play(name, case) for name, case in CASES.items()})"

PLAY_SHARED = """
told = {name: play(name, case) for name, case in CASES.items()}
told["resumed"] = play_resumed("resumed", adapter={"target_modules": "all-linear"})
report(**told, run=play_run(), full_disk=play_full_disk(), interrupted=play_interrupted())
"""

PLAY_PARTS = """
shard_without_gpus()
told = {name: play(name, case) for name, case in CASES.items()}
in_parts = {"fsdp": True, "fsdp_config": {**SHARDED["fsdp_config"], "state_dict_type": "SHARDED_STATE_DICT"}}
told["resumed full"] = play_resumed("resumed full", **in_parts)
told["resumed lora"] = play_resumed("resumed lora", adapter={"target_modules": "all-linear"}, **SHARDED)
report(**told)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def playing(lab: Any, script: str, name: str, *, size: int, **values: Any) -> Iterator[list[Any]]:
    """Children that play a script together, one a rank; killed when the block ends."""
    port, children = str(free_port()), []
    try:
        for rank in range(size):
            environment = {"OMP_NUM_THREADS": "1"}
            if size > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                environment |= {
                    "LOCAL_WORLD_SIZE": str(size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
            children.append(
                lab.run_child(PLAY + script, ENVIRONMENT=environment, FOLDER=str(lab.folder / name), **values)
            )
        yield children
    finally:
        for child in children:
            child.process.kill()


def answers(children: list[Any]) -> list[Any]:
    codes = [child.wait(SECONDS) for child in children]
    assert codes == [0] * len(children)
    return [child.answer for child in children]


def uneven_thumbs(n: int) -> list[dict[str, Any]]:
    """Completions of very different lengths, some prompts shared, so that ranks cut their shares differently."""
    return [
        {
            "prompt": f"question {i // 2}?",
            "completion": ("yes " if i % 2 else f"no {i}") + "." * (7 * i % 23 + 60 * (i % 5 == 0)),
            "label": bool(i % 2),
        }
        for i in range(n)
    ]


def uneven_pairs(n: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i}?", "chosen": "y" * (1 + 7 * i % 23), "rejected": "n" * (1 + 5 * i % 31)}
        for i in range(n)
    ]


LORA = {"target_modules": "all-linear"}
BY_COUNT = {"per_device_train_batch_size": 2, "microbatches": 2, "num_train_epochs": 2}
"""17 rows: batches of 8, 8 and 1, the last of which leaves one rank without a row."""
AT_ONCE = {"per_device_train_batch_size": 4, "num_train_epochs": 2}
BY_TOKENS = {"per_device_train_batch_size": 4, "max_tokens_per_microbatch": 110, "num_train_epochs": 2}
WINDOWS = {"per_device_train_batch_size": 2, "stream_window_rows": 8, "max_steps": 6}
MOVING = {"per_device_train_batch_size": 2, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
ONE_EACH = {"per_device_train_batch_size": 1, "max_steps": 4}
"""Each rank has one row of one class."""

CASES: dict[str, dict[str, Any]] = {
    "kto full packed by count": {"method": "kto", "engine": "packed", **BY_COUNT},
    "kto lora packed at once": {"method": "kto", "engine": "packed", "adapter": LORA, **AT_ONCE},
    "kto full padded by tokens": {"method": "kto", "engine": "padded", **BY_TOKENS},
    "kto lora packed by tokens": {"method": "kto", "engine": "packed", "adapter": LORA, **BY_TOKENS},
    "kto full padded at once": {"method": "kto", "engine": "padded", **AT_ONCE},
    "kto full packed one each": {"method": "kto", "engine": "packed", **ONE_EACH},
    "kto full packed of one token": {"method": "kto", "engine": "packed", "one_token": True, **AT_ONCE},
    "kto lora packed with ref_model": {"method": "kto", "adapter": LORA, "reference": True, **BY_COUNT},
    "kto lora packed as a stream": {"method": "kto", "adapter": LORA, "stream": True, **WINDOWS},
    "kto full packed with moving reference": {"method": "kto", "sync_ref_model": True, **MOVING},
    "kto lora packed in bf16": {"method": "kto", "adapter": LORA, "bf16": True, **AT_ONCE},
    "kto full packed that came low": {"method": "kto", "model_init_kwargs": {"dtype": "bfloat16"}, **AT_ONCE},
    "dpo full padded by count": {"method": "dpo", "engine": "padded", **BY_COUNT},
    "dpo lora packed by tokens": {"method": "dpo", "engine": "packed", "adapter": LORA, **BY_TOKENS},
}
SHARDED = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}
SHARDED_CASES = [
    "kto full packed by count",
    "kto lora packed at once",
    "kto lora packed by tokens",
    "kto full padded by tokens",
    "kto full packed of one token",
    "kto lora packed with ref_model",
    "kto lora packed in bf16",
    "kto full packed that came low",
    "kto lora packed as a stream",
    "dpo lora packed by tokens",
]


def with_rows(case: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"per_device_eval_batch_size": 3}
    if case["method"] == "dpo":
        return {**rows, "rows": uneven_pairs(17), "evaluated": uneven_pairs(7), **case}
    rows["desirable_weight"] = 3.0  # raises all log-probs, and so z0
    if case.pop("one_token", False):  # nothing of it has to be fed to predict it
        short = [
            {**row, "completion": "yn"[i % 2], "finished": False} for i, row in enumerate(uneven_thumbs(17))
        ]
        return {**rows, "rows": short, "evaluated": short[:7], **case}
    return {**rows, "rows": uneven_thumbs(17), "evaluated": uneven_thumbs(7), **case}
