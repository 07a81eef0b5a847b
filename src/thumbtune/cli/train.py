"""`thumbtune train`: a file of thumbs and a model in, an adapter out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from thumbtune.cli.progress import format_seconds, stage, warn_on_stderr

EXAMPLES = """
Examples:

  thumbtune train thumbs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --out runs/first

  thumbtune train thumbs.jsonl --model ./model --out runs/dpo --method dpo --beta 0.2 --learning-rate 1e-4

  thumbtune train thumbs.jsonl --model ./model --out runs/simpo --method simpo --simpo-gamma 1.0 --learning-rate 1e-3

  thumbtune train thumbs.jsonl --model ./model --out runs/full --full --config settings.toml --max-steps 50

Any field of the method's config is an option too: --beta 0.2, --num-train-epochs 2, --loss-type kto_prospect.
Run the same command again after an interruption: it goes on from the last checkpoint.
"""


def _print_fields(wanted: bool) -> None:
    if not wanted:
        return
    from thumbtune.training.settings import CONFIGS, list_own_fields

    for method, config in CONFIGS.items():
        print(f"{method}:")
        for name, default, text in list_own_fields(config):
            print(f"  {name} = {default}\n      {text}")
    print("Every field of transformers' TrainingArguments is a setting too.")
    raise typer.Exit()


def train(
    context: typer.Context,
    file: Path = typer.Argument(..., help="Thumbs or pairs: JSONL, CSV, Parquet, or a saved HF dataset."),
    model: str = typer.Option(..., "--model", "-m", help="Hub name or folder of the model."),
    out: Path = typer.Option(..., "--out", "-o", help="Run folder: adapter, manifest, metrics, checkpoints."),
    method: str = typer.Option(
        "kto", help="kto and bco learn from thumbs; dpo, ipo, simpo, cpo, rpo, orpo and apo_zero from pairs."
    ),
    max_steps: int | None = typer.Option(None, min=1, help="Stop after so many optimizer steps."),
    config: Path | None = typer.Option(None, help="Settings by name, from a .toml, .yaml or .json file."),
    eval_file: Path | None = typer.Option(None, "--eval", help="Held-out rows, evaluated at the end."),
    full: bool = typer.Option(False, help="Train all weights instead of a LoRA adapter."),
    lora_r: int = typer.Option(16, help="Rank of the adapter."),
    lora_alpha: int | None = typer.Option(None, help="Scale of the adapter; twice the rank unless given."),
    lora_targets: str = typer.Option("all-linear", help="Module names, with commas, or all-linear."),
    label_map: str | None = typer.Option(None, help="Other labels: 'good=true,meh=false'."),
    skip_refused: bool = typer.Option(
        False, help="Go on without rows that cannot be used; they are counted."
    ),
    overwrite: bool = typer.Option(False, help="Start anew in a folder that holds another run."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
    help_fields: bool = typer.Option(
        False,
        "--help-fields",
        callback=_print_fields,
        is_eager=True,
        help="List the settings with their meaning.",
    ),
) -> None:
    """Fine-tune a model on thumbs. KTO learns from single 👍 and 👎; DPO and its family from the pairs in them."""
    from thumbtune.training.settings import (
        build_config,
        config_class,
        default_settings,
        parse_overrides,
        read_settings,
    )

    config_class(method)  # an unknown method is refused before anything is read
    settings = default_settings(method, full=full)
    settings |= read_settings(config) if config else {}
    settings |= {name.replace("-", "_"): value for name, value in parse_overrides(context.args).items()}
    if max_steps is not None:
        settings["max_steps"] = max_steps
    training_config = build_config(method, settings | {"output_dir": str(out)})

    from thumbtune.data.formats import parse_label_map, read_rows

    labels = parse_label_map(label_map) if label_map else None
    rows = read_rows(file, label_map=labels, skip_refused=skip_refused)
    eval_rows = read_rows(eval_file, label_map=labels, skip_refused=skip_refused) if eval_file else None

    from thumbtune.training.adapters import lora_config
    from thumbtune.training.run import evaluate_run, remove_run, run_training
    from thumbtune.training.trainers import TRAINERS

    speaks = training_config.process_index == 0  # of several processes the first
    quiet = as_json or not speaks
    warn_on_stderr()
    with stage("Loading model and rows", quiet=quiet):
        trainer = TRAINERS[method](
            model=model,
            args=training_config,
            train_dataset=rows,
            eval_dataset=eval_rows,
            peft_config=None if full else lora_config(r=lora_r, alpha=lora_alpha, targets=lora_targets),
        )
    if overwrite:
        trainer.ranks.decide(lambda: remove_run(out))
    with stage(f"Training {method.upper()}", quiet=quiet) as progress:

        def show(name: str, done: int, total: int, latest: Mapping[str, float]) -> None:
            note = f"loss {latest['loss']:.4f}" if "loss" in latest else ""
            progress(done, total, note if name == "train" else "reference pass")

        result = run_training(trainer, on_progress=show)
    if result.finished and eval_rows is not None:
        metrics = evaluate_run(trainer, result)
    else:
        metrics = {}
    if as_json and speaks:
        print(json.dumps({**_plain(result), "eval": metrics}, ensure_ascii=False, default=str))
    elif speaks:
        _print_result(result, metrics)
    trainer.ranks.leave()
    if not result.finished:
        raise typer.Exit(130)


def _plain(result: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(result)


def _print_result(result: Any, metrics: Mapping[str, float]) -> None:
    last: Mapping[str, float] = next((entry for entry in reversed(result.curve) if "loss" in entry), {})
    print(
        f"{result.steps} steps in {format_seconds(result.seconds)}, peak memory {result.peak_rss_mb:,.0f} MB"
    )
    for name, value in result.data.get("counts", {}).items():
        if value:
            print(f"  {name}: {value}")
    for name in ("loss", "z0", "rewards/chosen", "rewards/rejected", "auc"):
        if name in last:
            print(f"  last {name}: {last[name]:.4f}")
    for name, value in metrics.items():
        if isinstance(value, float) and name != "epoch":
            print(f"  {name}: {value:.4f}")
    for alarm in result.alarms[:1]:
        print(f"  alarm: {alarm}")
    if result.finished:
        print(
            f"Saved to {result.folder}. Use it: thumbtune compare, or PeftModel.from_pretrained(model, folder)"
        )
    else:
        print(f"Interrupted; a checkpoint is in {result.folder}. Run the same command again to go on.")
