"""`thumbtune synth`: make thumbs whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from thumbtune.data.synth.prompts import Prompt

app = typer.Typer(help="Make thumbs whose truth is known.", no_args_is_help=True)


class LanguageChoice(str, Enum):  # noqa: UP042 - typer reads the values of a str Enum
    tr = "tr"
    en = "en"
    both = "both"


@app.callback()
def group() -> None:
    """Make thumbs whose truth is known."""


@app.command()
def facts(
    out: Path = typer.Option(..., "--out", help="The JSONL file to write."),
    rows: int = typer.Option(5000, min=0, help="How many completions to make."),
    language: LanguageChoice = typer.Option(LanguageChoice.tr, help="The language of the prompts."),
    seed: int = typer.Option(0, help="Same seed and options, same bytes."),
    label_noise: float = typer.Option(0.0, min=0.0, max=1.0, help="Share of labels turned round."),
    up_share: float | None = typer.Option(
        None, min=0.0, max=1.0, help="Share of desirable completions, before noise.  [default: half]"
    ),
    vote_rate: float = typer.Option(1.0, min=0.0, max=1.0, help="Share of completions that get a vote."),
    chat: bool = typer.Option(False, "--chat", help="Prompt and completion as chat messages."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the file if it exists."),
    as_json: bool = typer.Option(False, "--json", help="Print the counts as JSON."),
) -> None:
    """Write thumbs about facts: provinces, capitals, sums and short messages, good ones and flawed ones.

    Examples:

      thumbtune synth facts --out thumbs.jsonl

      thumbtune synth facts --rows 2000 --language both --label-noise 0.1 --up-share 0.3 --out thumbs.jsonl

      thumbtune synth facts --chat --vote-rate 0.2 --seed 7 --out thumbs.jsonl --overwrite --json
    """
    from thumbtune.data.synth.facts import count_rows, make_fact_thumbs
    from thumbtune.data.synth.files import check_target, write_rows

    check_target(out, overwrite=overwrite)
    made = make_fact_thumbs(
        rows=rows,
        language=language.value,
        seed=seed,
        label_noise=label_noise,
        up_share=up_share,
        vote_rate=vote_rate,
        chat=chat,
    )
    write_rows(out, made, overwrite=overwrite)
    counts = {**count_rows(made), "without_vote": rows - len(made), "out": str(out)}
    _print_counts(counts, as_json=as_json)


@app.command()
def simulate(
    model: str = typer.Option(..., "--model", help="A folder or a name on the Hub."),
    out: Path = typer.Option(..., "--out", help="The JSONL file to write."),
    prompts: Path | None = typer.Option(
        None, "--prompts", help="Prompts, one a line (.txt) or JSONL with a `prompt` field."
    ),
    n_prompts: int | None = typer.Option(
        None,
        min=1,
        help="How many prompts: everyday questions, or the first of --prompts.  [default: 64 or all]",
    ),
    system: str | None = typer.Option(None, "--system", help="System message before the everyday questions."),
    completions: int = typer.Option(4, min=1, help="Completions of each prompt."),
    taste: str = typer.Option(
        "brevity:24",
        help="What the users like: brevity[:tokens], language, format[:items], correctness, politeness, "
        "no_flattery; joined with + they must all be met.",
    ),
    noise: float = typer.Option(0.0, min=0.0, max=1.0, help="Share of presses on the wrong thumb."),
    silence: float = typer.Option(0.0, min=0.0, max=1.0, help="Share of completions without a vote."),
    max_new_tokens: int = typer.Option(48, min=1, help="Completions are cut here, in tokens."),
    temperature: float = typer.Option(1.0, min=0.0, help="Of the sampling."),
    batch_size: int = typer.Option(64, min=1, help="Completions sampled at once."),
    seed: int = typer.Option(0, help="Of the prompts, the sampling and the users."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the file if it exists."),
    as_json: bool = typer.Option(False, "--json", help="Print the counts as JSON."),
) -> None:
    """Sample completions from a model and have simulated users with a hidden taste vote on them.

    Examples:

      thumbtune synth simulate --model packaged:smollm2-135m-instruct --out thumbs.jsonl

      thumbtune synth simulate --model ./smollm2 --n-prompts 256 --taste brevity:20 --noise 0.1 --out t.jsonl

      thumbtune synth simulate --model ./smollm2 --prompts thumbs.jsonl --taste correctness+no_flattery --out t.jsonl
    """
    from thumbtune.data.synth.files import check_target, write_rows
    from thumbtune.data.synth.simulate import as_messages, collect_votes
    from thumbtune.data.synth.users import SimulatedUsers, parse_taste

    check_target(out, overwrite=overwrite)
    users = SimulatedUsers(parse_taste(taste), noise=noise, silence=silence, seed=seed)
    asked = _choose_prompts(prompts, n_prompts, seed, system)
    _check_facts_known(users.taste.name, asked)
    messages = [as_messages(prompt.text) for prompt in asked]

    from thumbtune.engine.loading import load_model_and_tokenizer
    from thumbtune.evaluation.generate import sample_completions

    loaded, tokenizer = load_model_and_tokenizer(model)
    with _progress_bar("Sampling") as on_progress:
        samples = sample_completions(
            loaded,
            tokenizer,
            messages,
            n=completions,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    rows, counts = collect_votes(messages, samples, users, [prompt.fact for prompt in asked])
    write_rows(out, rows, overwrite=overwrite)
    _print_counts({"rows": len(rows), "prompts": len(asked), **counts, "out": str(out)}, as_json=as_json)


def _choose_prompts(path: Path | None, n_prompts: int | None, seed: int, system: str | None) -> list[Prompt]:
    from thumbtune.data.synth.prompts import Prompt, ask, question_prompts, read_known_prompts
    from thumbtune.errors import ConfigError

    if path is None:
        return [Prompt(ask(question, system)) for question in question_prompts(n_prompts or 64, seed)]
    if system is not None:
        raise ConfigError("--system is for everyday questions: write it into the prompts of --prompts")
    known = read_known_prompts(path)
    if n_prompts is not None and n_prompts > len(known):
        raise ConfigError(f"asked for {n_prompts} prompts, {path} has {len(known)}: lower --n-prompts")
    return known[:n_prompts]


def _check_facts_known(taste_name: str, asked: list[Prompt]) -> None:
    """Refuse before an hour of sampling, not behind it."""
    from thumbtune.errors import ConfigError

    unknown = sum(prompt.fact is None for prompt in asked)
    if "correctness" in taste_name.split("+") and unknown:
        raise ConfigError(
            f"the taste 'correctness' needs the fact behind each prompt, and {unknown} of {len(asked)} have none: "
            "make the prompts with `thumbtune synth facts` and pass that file as --prompts"
        )


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on the error stream so that --json stays clean; gives the function to feed it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_counts(counts: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(counts, sort_keys=True, ensure_ascii=False))
        return
    print(f"{counts['out']}: {counts['rows']} rows, 👍 {counts['up']}, 👎 {counts['down']}")
    for name, value in counts.items():
        if name in ("out", "rows", "up", "down"):
            continue
        told = value if not isinstance(value, Mapping) else ", ".join(f"{k} {v}" for k, v in value.items())
        print(f"  {name.replace('_', ' ')}: {told}")
