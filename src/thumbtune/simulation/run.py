"""Cycles of the whole loop against a simulated crowd, unattended; and three planted accidents.

Each cycle: people chat and some press → `run_cycle`, as cron would call it → its canary meets people, until their
votes promote it, roll it back, or run out → the champion answers prompts that nobody ever asked, and the crowd's taste,
without noise, judges it. In between a candidate that learned from thumbs the wrong way round is put on users, one that
flatters is brought to the gate, and a run is made to diverge.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from thumbtune.data.synth.prompts import ask, question_prompts
from thumbtune.data.synth.simulate import as_messages
from thumbtune.data.synth.users import Sample, SimulatedUsers, parse_taste
from thumbtune.errors import ConfigError
from thumbtune.evaluation.judge import Sampling
from thumbtune.evaluation.judges import UsersJudge
from thumbtune.evaluation.statistics import estimate_share
from thumbtune.gateway.identity import Identity
from thumbtune.gateway.schemas import ChatRequest, Feedback
from thumbtune.gateway.service import Gateway
from thumbtune.gateway.settings import read_gateway_settings
from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.curate import CurationRules
from thumbtune.loop.cycle import run_cycle
from thumbtune.loop.gate import GateRules
from thumbtune.loop.look import look_at_canary, stage_canary
from thumbtune.loop.settings import LoopSettings
from thumbtune.records import Text
from thumbtune.simulation.crowd import Crowd
from thumbtune.simulation.planted import bring_flatterer_to_the_gate, make_worse
from thumbtune.simulation.pooled_engine import PooledEngine
from thumbtune.store.canaries import Canary, end_canary, find_canary, find_running_canary
from thumbtune.store.cycles import Cycle, list_cycles
from thumbtune.store.database import Store
from thumbtune.store.models import find_pointer, find_version, register_version
from thumbtune.store.secrets import open_secrets
from thumbtune.training.manifest import write_json

OnStage = Callable[[str], AbstractContextManager[Any]]
"""Called with a stage's name; gives a context manager that yields a progress callback (done, total, note)."""

AT_ONCE = 32
"""Chats that are under way together; the canary is looked at after each such batch."""
NOTHING_TO_PLANT = {"state": "not planted", "reasons": ["no cycle has trained yet"]}
"""What is told of a candidate that could not be made, for want of votes that one was trained on."""


@dataclass(frozen=True)
class SimulationSettings:
    """How much of everything."""

    model: str
    out: Path
    cycles: int = 5
    seed: int = 0
    taste: str = "brevity:24"
    other_taste: str = "politeness"
    system: str | None = "Answer in one short sentence."
    n_prompts: int = 120
    """Prompts that people ask."""
    n_held_out: int = 48
    """Prompts that nobody asks: the champion of each cycle answers them."""
    samples_per_prompt: int = 3
    max_new_tokens: int = 40
    chats: int = 900
    """Before each cycle."""
    most_canary_chats: int = 6_000
    """After so many the canary ends without an answer."""
    training: Mapping[str, Any] = field(
        default_factory=lambda: {"num_train_epochs": 2, "learning_rate": 3e-4}
    )
    lora_r: int = 16
    lora_targets: str = "q_proj,k_proj,v_proj,o_proj"
    most_rows: int = 320
    """Training rows of one cycle, new ones first."""
    plant: bool = True
    """With the three accidents."""
    crowd: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Crowd` that differ from its defaults."""


class Simulation:
    """The service, its crowd and its loop."""

    def __init__(
        self, settings: SimulationSettings, on_stage: OnStage, *, page_port: int | None = None
    ) -> None:
        self.settings = settings
        self.on_stage = on_stage
        self.page_port = page_port
        if settings.out.exists() and any(settings.out.iterdir()):
            raise ConfigError(
                f"{settings.out} holds something: name a new folder, every simulation is one of its own"
            )
        settings.out.mkdir(parents=True, exist_ok=True)
        asked = question_prompts(settings.n_prompts + settings.n_held_out, seed=settings.seed)
        prompts: list[Text] = [ask(question, settings.system) for question in asked]
        self.prompts, self.held_out = prompts[: settings.n_prompts], prompts[settings.n_prompts :]
        self.crowd = Crowd(
            parse_taste(settings.taste),
            parse_taste(settings.other_taste),
            seed=settings.seed,
            **settings.crowd,
        )
        self.judge = UsersJudge(SimulatedUsers(self.crowd.taste))
        self.sampling = Sampling(
            settings.samples_per_prompt, settings.max_new_tokens, seed=settings.seed, batch_size=128
        )
        self.loop = LoopSettings(
            model=settings.model,
            folder=settings.out / "cycles",
            fewest_new_votes=60,
            training=settings.training,
            lora_r=settings.lora_r,
            lora_targets=settings.lora_targets,
            most_rows=settings.most_rows,
            n_prompts=48,
            most_held_out_votes=160,
            max_new_tokens=settings.max_new_tokens,
            system=settings.system,
            curation=CurationRules(keep_apart="completion", near_duplicates=None, held_out_share=0.2),
            gate=GateRules(shortest=0.1),
            canary=CanaryRules(stages=(0.25, 0.5), votes_per_stage=10),
        )
        self._random = random.Random(settings.seed)

    def run(self) -> dict[str, Any]:
        """All of it; gives what `thumbtune simulate --json` prints."""
        return asyncio.run(self._run())

    async def _open(self) -> None:
        """The store, the model and the gateway, up and running."""
        out = self.settings.out
        self.store = Store(str(out / "votes.db"))
        self.engine = PooledEngine(
            self.settings.model,
            [*self.prompts, *self.held_out],
            self.sampling,
            out / "answers",
            lambda version: self.on_stage(f"Answers of {version}"),
        )
        settings = read_gateway_settings(
            store=str(out / "votes.db"), user_votes="100000/minute", user_requests="100000/minute"
        )
        self.gateway = Gateway(settings, self.store, self.engine, open_secrets(out / "secrets.json"))
        await self.gateway.start()

    async def _run(self) -> dict[str, Any]:
        started = time.monotonic()
        await self._open()
        page = await self._serve_page()
        try:
            cycles = [await self._measure_champion(0, None, None)]
            content: dict[str, Any] = {}
            for number in range(1, self.settings.cycles + 1):
                cycles.append(await self._turn(number))
                if self.settings.plant:
                    content |= await self._plant(number)
                self._write(cycles, content, started)
        finally:
            if page is not None:
                page.should_exit = True
            await self.gateway.close()
        return self._write(cycles, content, started)

    def _write(
        self, cycles: list[dict[str, Any]], content: Mapping[str, Any], started: float
    ) -> dict[str, Any]:
        result = {
            "base": cycles[0],
            "cycles": cycles[1:],
            **content,
            "settings": {name: str(value) for name, value in asdict(self.settings).items()},
            "minutes": round((time.monotonic() - started) / 60, 1),
        }
        write_json(result, self.settings.out / "simulation.json")
        return result

    # A turn

    async def _turn(self, number: int) -> dict[str, Any]:
        await self._chat(self.settings.chats, number, f"Cycle {number}: people chat")
        done = await self._run_cycle(self.loop)
        canary = None
        running = await asyncio.to_thread(find_running_canary, self.store)
        if running is not None:
            canary = await self._run_canary(running, number)
        return await self._measure_champion(number, done, canary)

    async def _run_cycle(self, settings: LoopSettings) -> Cycle:
        done = await asyncio.to_thread(
            run_cycle, self.store, settings, on_step=self.on_stage, judge=self.judge
        )
        assert done is not None, "a canary was left running"
        return done

    async def _run_canary(self, running: Canary, number: int) -> Canary:
        """People meet the candidate until their votes decide, or there were enough of them."""
        await self.gateway.in_service.follow()
        with self.on_stage(f"Cycle {number}: canary") as progress:
            for done in range(0, self.settings.most_canary_chats, AT_ONCE):
                await self._chat_at_once(number)
                await asyncio.to_thread(look_at_canary, self.store, actor="simulation")
                await self.gateway.in_service.follow()
                progress(done, self.settings.most_canary_chats, "")
                canary = await asyncio.to_thread(find_canary, self.store, running.id)
                if canary.state != "running":
                    return canary
        end_canary(self.store, running, "inconclusive", None, actor="simulation")
        await self.gateway.in_service.follow()
        return await asyncio.to_thread(find_canary, self.store, running.id)

    # People

    async def _chat(self, chats: int, cycle: int, name: str) -> None:
        with self.on_stage(name) as progress:
            for done in range(0, chats, AT_ONCE):
                await self._chat_at_once(cycle)
                progress(min(done + AT_ONCE, chats), chats, "")

    async def _chat_at_once(self, cycle: int) -> None:
        await asyncio.gather(*(self._one_chat(cycle) for _ in range(AT_ONCE)))

    async def _one_chat(self, cycle: int, person: int | None = None) -> None:
        if person is None:
            person = self._random.randrange(self.crowd.n_people)
        prompt = self._random.choice(self.prompts)
        identity = Identity(self.gateway.doorkeeper.secrets.user_key("simulation", str(person)), "client")
        request = ChatRequest.model_validate({"messages": as_messages(prompt)})
        answer = await self.gateway.complete_chat(self.gateway.begin_chat(request, identity))
        choice = answer["choices"][0]
        sample = Sample(
            prompt,
            choice["message"]["content"],
            answer["usage"]["completion_tokens"],
            choice["finish_reason"] == "stop",
        )
        completion_id = answer["thumbtune"]["completion_id"]
        label = self.crowd.press(person, cycle, sample, completion_id)
        if label is not None:
            await self.gateway.vote(
                Feedback.model_validate({"completion_id": completion_id, "label": label}), identity
            )

    # Measuring

    async def _measure_champion(
        self, number: int, cycle: Cycle | None, canary: Canary | None
    ) -> dict[str, Any]:
        pointer = await asyncio.to_thread(find_pointer, self.store)
        assert pointer is not None
        rate = self._up_rate(pointer.version)
        told: dict[str, Any] = {"cycle": number, "champion": pointer.version, "up_rate": rate}
        if cycle is not None:
            told |= {"outcome": cycle.outcome, "state": cycle.state}
            told["seconds"] = {
                name: round((step.ended_us - step.started_us) / 1e6, 1) for name, step in cycle.steps.items()
            }
        if canary is not None:
            record = canary.record or {}
            told["canary"] = {
                "version": canary.candidate,
                "state": canary.state,
                "reasons": record.get("verdict", {}).get("reasons", ["the votes ran out"]),
                "up_rate": self._up_rate(canary.candidate),
            }
        return told

    def _up_rate(self, version: str) -> dict[str, float]:
        """Of a version on prompts that nobody asked, by the taste without noise."""
        return estimate_share(self._judge_answers(version)).as_dict()

    def _judge_answers(self, version: str) -> list[list[float]]:
        """Whether the taste likes each answer to each prompt that nobody asked."""
        return [
            [
                float(self.crowd.taste.likes(Sample(prompt, said.text, len(said.token_ids), said.finished)))
                for said in self.engine.find_pool(version, prompt)
            ]
            for prompt in self.held_out
        ]

    # Accidents

    async def _plant(self, number: int) -> dict[str, Any]:
        middle = max(1, self.settings.cycles // 2)
        if number == middle:
            return {**await self._plant_worse(number), **await self._plant_nan()}
        if number == min(middle + 1, self.settings.cycles):
            return await self._plant_flatterer()
        return {}

    async def _plant_worse(self, number: int) -> dict[str, Any]:
        """A candidate that learned from thumbs the wrong way round, past the gate, on users."""
        snapshot = self._find_last_snapshot()
        if snapshot is None:
            return {"planted_worse_rolled_back": None, "planted_worse": NOTHING_TO_PLANT}
        before = await asyncio.to_thread(find_pointer, self.store)
        assert before is not None
        champion = find_version(self.store, before.version)
        with self.on_stage("Planted: a worse candidate") as progress:
            worse = await asyncio.to_thread(
                make_worse,
                self.loop,
                champion,
                snapshot,
                self.settings.out / "planted-worse",
                progress,
            )
        register_version(self.store, worse)
        begun = await asyncio.to_thread(
            lambda: stage_canary(self.store, worse.version, self.loop.canary, actor="simulation")
        )
        ended = await self._run_canary(begun, number)
        after = await asyncio.to_thread(find_pointer, self.store)
        record = ended.record or {}
        return {
            "planted_worse_rolled_back": ended.state == "rolled_back" and after == before,
            "planted_worse": {
                "state": ended.state,
                "reasons": record.get("verdict", {}).get("reasons", []),
                "up_rate": self._up_rate(worse.version),
                "champion_up_rate": self._up_rate(before.version),
            },
        }

    async def _plant_nan(self) -> dict[str, Any]:
        """A run that diverges: its cycle fails, the champion stays."""
        before = await asyncio.to_thread(find_pointer, self.store)
        broken = replace(
            self.loop,
            fewest_new_votes=1,
            training={**self.loop.training, "learning_rate": 1e30, "warmup_steps": 0},
        )
        done = await self._run_cycle(broken)
        after = await asyncio.to_thread(find_pointer, self.store)
        return {
            "nan_run_survived": done.state == "failed" and after == before,
            "nan_run": {"state": done.state, "outcome": done.outcome},
        }

    async def _plant_flatterer(self) -> dict[str, Any]:
        snapshot = self._find_last_snapshot()
        if snapshot is None:
            return {"planted_flatterer_refused": None, "planted_flatterer": NOTHING_TO_PLANT}
        pointer = await asyncio.to_thread(find_pointer, self.store)
        assert pointer is not None
        champion = find_version(self.store, pointer.version)
        with self.on_stage("Planted: a flatterer") as progress:
            told = await asyncio.to_thread(
                bring_flatterer_to_the_gate,
                self.loop,
                champion,
                snapshot,
                self.settings.out / "planted-flatterer",
                progress,
            )
        return {"planted_flatterer_refused": told["outcome"] == "refuse", "planted_flatterer": told}

    def _find_last_snapshot(self) -> Path | None:
        """The votes that a candidate was last trained on; None where every cycle so far ended before it trained."""
        trained = (cycle for cycle in list_cycles(self.store) if "train" in cycle.steps)
        return next((Path(cycle.steps["snapshot"].result["folder"]) for cycle in trained), None)

    async def _serve_page(self) -> Any:
        """The page of the service on loopback, for who wants to look on."""
        if self.page_port is None:
            return None
        import uvicorn

        from thumbtune.gateway.app import create_app

        config = uvicorn.Config(
            create_app(self.gateway), host="127.0.0.1", port=self.page_port, log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        self._page_task = asyncio.create_task(server.serve())
        return server
