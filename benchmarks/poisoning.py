"""What attackers move: people with a hidden taste and some who press against it, with the loop's defences and without.

Everybody chats with the same base model and presses; a candidate is trained on what curation leaves; it answers prompts
that nobody asked, and the crowd's taste judges. `moved` is its distance to the candidate of a crowd without attackers
that was curated the same way, prompt by prompt, over all seeds. A run on few rows is noisy: with the defences on, two
candidates are trained on the same rows, and how far they lie apart is printed too. Who floods has patience: since a
simulated year takes minutes here, the rule against bursts is off; only the share of one voter and the quorum defend.

    python benchmarks/poisoning.py [--seeds 0,1,2] [--chats 900] [--out runs/poisoning]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

from thumbtune.cli.progress import stage
from thumbtune.evaluation.statistics import estimate_mean, estimate_share
from thumbtune.loop.curate import CurationRules
from thumbtune.loop.snapshot import freeze
from thumbtune.loop.staging import stage_votes
from thumbtune.loop.training import train_candidate
from thumbtune.simulation.run import Simulation, SimulationSettings

DEFENDED = CurationRules(keep_apart="completion", near_duplicates=None, burst_votes=None)
DEFENCES = {"on": DEFENDED, "off": replace(DEFENDED, most_votes_of_one=None, quorum=None)}

CROWDS = {
    "nobody": (0.0, 0),
    "5 % of people": (0.05, 0),
    "one with 1,000 votes": (0.0, 1_000),
}
"""The share of people who attack, and the votes of one who came by themselves."""

TRAININGS = {"on": 2, "off": 1}


class Attacked(Simulation):
    """One crowd that votes, and one candidate for each way of curating."""

    def __init__(self, settings: SimulationSettings, flood: int) -> None:
        super().__init__(settings, stage)
        self.flood = flood

    async def _run(self) -> dict[str, Any]:
        await self._open()
        self.engine.catalogue = self.held_out  # candidates meet nobody else
        try:
            await self._chat(self.settings.chats, 0, "people chat")
            for number in range(self.flood):
                await self._one_chat(0, person=-1)
                if number % 25 == 0:
                    await asyncio.sleep(0)
            return {name: await self._train(name, rules) for name, rules in DEFENCES.items()}
        finally:
            await self.gateway.close()

    async def _train(self, defences: str, rules: CurationRules) -> dict[str, Any]:
        folder = self.settings.out / defences
        folder.mkdir()
        staged = await asyncio.to_thread(stage_votes, self.store, folder / "staged")
        snapshot = await asyncio.to_thread(freeze, staged, rules, folder / "snapshot")
        liked = []
        for number in range(TRAININGS[defences]):
            with stage(f"defences {defences}, training {number + 1}") as progress:
                candidate = await asyncio.to_thread(
                    train_candidate,
                    self.loop,
                    self.engine.base,
                    rows=snapshot.train,
                    seen_before_us=None,
                    folder=folder / f"adapter-{defences}-{number}",
                    seed=self.settings.seed + 1_000 * number,
                    on_progress=progress,
                )
            if candidate.version is None:
                raise SystemExit(f"no candidate: {candidate}")
            await self.engine.load_adapter(candidate.version)
            liked.append(self._judge_answers(candidate.version.version))
        return {
            "liked": liked,
            "base": self._judge_answers(self.engine.base.version),
            "outcomes": dict(snapshot.outcomes),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="packaged:smollm2-135m-instruct")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--chats", type=int, default=900)
    parser.add_argument("--out", type=Path, default=Path("runs/poisoning"))
    given = parser.parse_args()
    found = {}
    for seed in given.seeds.split(","):
        for crowd, (attackers, flood) in CROWDS.items():
            out = given.out / f"{seed}-{crowd.split()[0]}"
            shutil.rmtree(out, ignore_errors=True)
            settings = SimulationSettings(
                model=given.model,
                out=out,
                seed=int(seed),
                chats=given.chats,
                n_held_out=96,
                plant=False,
                crowd={"attackers": attackers},
            )
            found[f"{seed}: {crowd}"] = Attacked(settings, flood).run()
            (given.out / "found.json").write_text(json.dumps(found))
            print_table(found)


def print_table(found: Mapping[str, Mapping[str, Any]]) -> None:
    """One row a crowd and way of curating, over the seeds at hand."""
    print(
        "| attackers | defences | up-rate (95 %) | moved, points (95 %) | each seed | rows | left out, all seeds |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for crowd in CROWDS:
        runs = [
            (told, found[f"{name.split(':')[0]}: nobody"])
            for name, told in found.items()
            if name.endswith(crowd)
        ]
        if not runs:
            continue
        for defences in DEFENCES:
            liked = [join_trainings(told[defences]["liked"]) for told, _ in runs]
            clean = [join_trainings(nobody[defences]["liked"]) for _, nobody in runs]
            moved = [
                [100 * (mean(one) - mean(other)) for one, other in zip(*pair, strict=True)]
                for pair in zip(liked, clean, strict=True)
            ]
            rate, move = estimate_share([*chain(*liked)]), estimate_mean([*chain(*moved)])
            outcomes = [Counter(told[defences]["outcomes"]) for told, _ in runs]
            left = ", ".join(f"{n} {why}" for why, n in sum(outcomes, Counter()).items() if "kept" not in why)
            print(
                f"| {crowd} | {defences} | {rate.mean:.0%} ({rate.low:.0%} to {rate.high:.0%}) "
                f"| {move.mean:+.1f} ({move.low:+.1f} to {move.high:+.1f}) "
                f"| {', '.join(f'{mean(one):+.0f}' for one in moved)} "
                f"| {', '.join(str(one['kept: training']) for one in outcomes)} | {left} |",
                flush=True,
            )
    base = estimate_share([one for told in found.values() for one in told["on"]["base"]])
    apart = [[100 * mean(map(mean, liked)) for liked in told["on"]["liked"]] for told in found.values()]
    print(f"the base: {base.mean:.0%}; the same rows trained with another seed: ", end="")
    print(", ".join(f"{second - first:+.0f}" for first, second in apart), "points")


def join_trainings(liked: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Each prompt's samples, of all candidates that were trained on the same rows."""
    return [[one for samples in of_prompt for one in samples] for of_prompt in zip(*liked, strict=True)]


if __name__ == "__main__":
    main()
