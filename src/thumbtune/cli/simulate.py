"""`thumbtune simulate`: the whole loop against a simulated crowd, unattended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from thumbtune.cli.progress import stage, warn_on_stderr

SIMULATE_EXAMPLES = """
[bold]Examples[/bold]

  thumbtune simulate --cycles 5 --seed 0 --out runs/loop

  thumbtune simulate --cycles 2 --out runs/seen --page 8400
"""


def simulate(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder: store, answers, cycles, simulation.json.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model to serve and to train.")
    ] = "packaged:smollm2-135m-instruct",
    cycles: Annotated[int, typer.Option(min=1, help="Turns of the loop.")] = 5,
    seed: Annotated[int, typer.Option(help="Of people, prompts and answers.")] = 0,
    taste: Annotated[str, typer.Option(help="What most people like, hidden from the loop.")] = "brevity:24",
    prompts: Annotated[int, typer.Option(min=8, help="Prompts that people ask.")] = 120,
    held_out: Annotated[int, typer.Option(min=4, help="Prompts that only the measurement asks.")] = 48,
    samples: Annotated[int, typer.Option(min=1, help="Answers to a prompt that people may meet.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(min=4, help="Longest answer.")] = 40,
    chats: Annotated[int, typer.Option(min=32, help="Chats before each cycle.")] = 900,
    canary_chats: Annotated[int, typer.Option(min=32, help="Most chats that a canary may take.")] = 6_000,
    plant: Annotated[
        bool,
        typer.Option("--plant/--no-plant", help="With a worse candidate, a flatterer and a diverging run."),
    ] = True,
    setting: Annotated[
        list[str] | None, typer.Option("--training", help="A field of the method's config, as name=value.")
    ] = None,
    page: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Serve the page meanwhile, on loopback.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run the loop against people who have a hidden taste, noise, silence, drift, and a few attackers among them.

    The model, the store, the gateway, training, gate and canary are real; people are not, and time is short.
    """
    from thumbtune.simulation.run import Simulation, SimulationSettings

    warn_on_stderr()
    given = _read_settings(setting or [])
    settings = SimulationSettings(
        model=model,
        out=out,
        cycles=cycles,
        seed=seed,
        taste=taste,
        n_prompts=prompts,
        n_held_out=held_out,
        samples_per_prompt=samples,
        max_new_tokens=max_new_tokens,
        chats=chats,
        most_canary_chats=canary_chats,
        plant=plant,
    )
    settings = replace(settings, training={**settings.training, **given})
    result = Simulation(settings, lambda name: stage(name, quiet=False), page_port=page).run()
    if as_json:
        print(json.dumps(result, default=str))
        return
    for turn in (result["base"], *result["cycles"]):
        rate = turn["up_rate"]
        told = f"{rate['mean']:.0%} ({rate['low']:.0%} to {rate['high']:.0%}, n = {rate['n']:.0f})"
        canary = turn.get("canary", {}).get("state", "")
        print(f"cycle {turn['cycle']}: up-rate {told} {canary} {turn.get('outcome', '')}")
    answers = {True: "yes", False: "NO", None: "not planted, no cycle had trained yet"}
    for name in ("planted_worse_rolled_back", "planted_flatterer_refused", "nan_run_survived"):
        if name in result:
            print(f"{name.replace('_', ' ')}: {answers[result[name]]}")
    print(f"{out / 'simulation.json'}, {result['minutes']} minutes")


def _read_settings(texts: list[str]) -> dict[str, Any]:
    from thumbtune.training.settings import parse_overrides

    return parse_overrides([part for text in texts for part in _as_option(text)])


def _as_option(text: str) -> list[str]:
    from thumbtune.errors import ConfigError

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--training {text!r}: write name=value, such as learning_rate=3e-4")
    return [f"--{name.replace('_', '-')}", value]
