"""What attackers move: people with a hidden taste and some who press against it, with the loop's defences and without.

Everybody chats with the same base model and presses; a candidate is trained on what curation leaves; it answers prompts
that nobody asked, and the crowd's taste judges. `moved` is its distance to the candidate of a crowd without attackers.

    python benchmarks/poisoning.py [--seeds 0,1] [--chats 900] [--out runs/poisoning]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from thumbtune.cli.progress import stage
from thumbtune.loop.curate import CurationRules
from thumbtune.loop.snapshot import freeze
from thumbtune.loop.staging import stage_votes
from thumbtune.loop.training import train_candidate
from thumbtune.simulation.run import Simulation, SimulationSettings

DEFENDED = CurationRules(keep_apart="completion", near_duplicates=None)
OPEN = replace(DEFENDED, most_votes_of_one=None, burst_votes=None, quorum=None)

CROWDS = {
    "nobody": {"attackers": 0.0},
    "5 % of people": {"attackers": 0.05},
    "one with 1,000 votes": {"attackers": 0.0},
}


class Attacked(Simulation):
    """One crowd that votes, and one candidate for each way of curating."""

    flood = 0

    async def _run(self) -> dict[str, Any]:
        await self._open()
        try:
            await self._chat(self.settings.chats, 0, "people chat")
            for number in range(self.flood):
                await self._one_chat(0, person=-1)
                if number % 25 == 0:
                    await asyncio.sleep(0)
            found = {}
            for name, rules in (("on", DEFENDED), ("off", OPEN)):
                found[name] = await self._train(name, rules)
            return {"base": self._up_rate(self.engine.base.version), **found}
        finally:
            await self.gateway.close()

    async def _train(self, name: str, rules: CurationRules) -> dict[str, Any]:
        folder = self.settings.out / name
        folder.mkdir()
        staged = await asyncio.to_thread(stage_votes, self.store, folder / "staged")
        snapshot = await asyncio.to_thread(freeze, staged, rules, folder / "snapshot")
        with stage(f"defences {name}: training") as progress:
            candidate = await asyncio.to_thread(
                lambda: train_candidate(
                    self.loop,
                    self.engine.base,
                    rows=snapshot.train,
                    seen_before_us=None,
                    folder=folder / f"adapter-{name}",
                    seed=self.settings.seed,
                    on_progress=progress,
                )
            )
        assert candidate.version is not None
        await self.engine.load_adapter(candidate.version)
        return {"up_rate": self._up_rate(candidate.version.version), "outcomes": dict(snapshot.outcomes)}


class Flooded(Attacked):
    flood = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="packaged:smollm2-135m-instruct")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--chats", type=int, default=900)
    parser.add_argument("--out", type=Path, default=Path("runs/poisoning"))
    given = parser.parse_args()
    print("| seed | attackers | defences | up-rate (95 %) | moved | rows | left out |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for seed in map(int, given.seeds.split(",")):
        clean: dict[str, float] = {}
        for name, crowd in CROWDS.items():
            out = given.out / f"{seed}-{name.split()[0]}"
            shutil.rmtree(out, ignore_errors=True)
            settings = SimulationSettings(
                model=given.model, out=out, seed=seed, chats=given.chats, plant=False, crowd=crowd
            )
            run = (Flooded if "1,000" in name else Attacked)(settings, lambda _: nullcontext(lambda *_: None))
            found = run.run()
            for defences in ("on", "off"):
                told, rate = found[defences], found[defences]["up_rate"]
                clean.setdefault(defences, rate["mean"])
                outcomes = told["outcomes"]
                left = ", ".join(f"{n} {why}" for why, n in outcomes.items() if not why.startswith("kept"))
                interval = f"{rate['mean']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"
                moved = 100 * (rate["mean"] - clean[defences])
                kept = outcomes.get("kept: training", 0)
                row = f"| {seed} | {name} | {defences} | {interval} | {moved:+.0f} points | {kept} | {left} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
