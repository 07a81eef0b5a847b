"""One turn of the loop: enough new votes? → snapshot → train → measure → gate → canary.

Each step's result is recorded in the store before the next one begins; a turn that was killed anywhere is taken up by
the next call, which finds what is recorded and does the rest. Within a step, what it left is found as well: training
goes on from its checkpoint, a canary that was started is not started again. One turn at a time: a lock in the store.

The champion is touched by none of this. It changes when a canary is promoted (`look`), in one transaction.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from thumbtune.errors import ConfigError, DataError, ThumbtuneError
from thumbtune.evaluation.judges import Judge
from thumbtune.loop import gate
from thumbtune.loop.look import look_at_canary, stage_canary
from thumbtune.loop.settings import LoopSettings
from thumbtune.loop.training import build_training_config, train_candidate
from thumbtune.store.canaries import find_running_canary, list_canaries
from thumbtune.store.cycles import (
    Cycle,
    begin_cycle,
    end_cycle,
    find_cycle,
    hold_lock,
    list_cycles,
    record_step,
)
from thumbtune.store.database import Store, now_us
from thumbtune.store.erasure import was_touched
from thumbtune.store.models import find_pointer, find_version, record_metrics, register_version, trace_lineage
from thumbtune.store.reading import VoteFilter, count_votes
from thumbtune.training.manifest import write_json

ACTOR = "cycle"

OnStep = Callable[[str], Any]
"""Called with a step's name; gives a context manager that yields a progress callback (done, total, note)."""


class Ended(NamedTuple):
    """A step that ends the turn, and how."""

    outcome: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """What the steps of one turn share."""

    store: Store
    cycle: Cycle
    settings: LoopSettings
    on_step: OnStep
    judge: Judge | None = None

    @property
    def folder(self) -> Path:
        return Path(self.cycle.folder)

    def result(self, step: str) -> Mapping[str, Any]:
        """What an earlier step gave."""
        return self.cycle.steps[step].result


def run_cycle(
    store: Store, settings: LoopSettings, *, on_step: OnStep, judge: Judge | None = None
) -> Cycle | None:
    """Take up the turn that was left, or begin one; None where a canary runs, since one candidate at a time is tried.

    Raises `StoreError` where another process runs one. What goes wrong in a step ends the turn as failed: the champion
    stays in service, and the next call begins anew. Raises `ConfigError` before that for training settings that
    cannot be.
    """
    build_training_config(settings, settings.folder, seed=0)
    with hold_lock(store):
        look_at_canary(store, actor=ACTOR)
        unfinished = find_unfinished(store)
        if unfinished is None and find_running_canary(store):
            return None
        number = 1 + max((cycle.id for cycle in list_cycles(store, 1)), default=0)
        folder = (settings.folder / f"cycle-{number}").resolve()
        cycle = unfinished or begin_cycle(store, settings.as_json(), str(folder))
        try:
            state, outcome = _run_steps(Turn(store, cycle, settings, on_step, judge))
        except (ThumbtuneError, OSError) as error:
            state, outcome = "failed", f"{type(error).__name__}: {str(error).splitlines()[0][:500]}"
        end_cycle(store, cycle, state, outcome)
        done = find_cycle(store, cycle.id)
    if "snapshot" in done.steps or done.state == "failed":
        _notify(settings.notify, done)
    return done


def _run_steps(turn: Turn) -> tuple[str, str]:
    for name, run in STEPS.items():
        if name not in turn.cycle.steps:
            started = now_us()
            with turn.on_step(name) as progress:
                found = run(turn, progress)
            result = {**found.result, "ends": found.outcome} if isinstance(found, Ended) else found
            record_step(turn.store, turn.cycle, name, result, started)
            turn = replace(turn, cycle=find_cycle(turn.store, turn.cycle.id))
        if outcome := turn.result(name).get("ends"):
            return "done", outcome
    return "done", f"canary of {turn.result('train')['version']} began"


def find_unfinished(store: Store) -> Cycle | None:
    """The turn that a killed process left."""
    return next((cycle for cycle in list_cycles(store) if cycle.state == "running"), None)


def plan_cycle(store: Store, settings: LoopSettings) -> dict[str, Any]:
    """What a turn would do now, without doing it. Raises `ConfigError` for training settings that cannot be."""
    build_training_config(settings, settings.folder, seed=0)
    pointer, unfinished = find_pointer(store), find_unfinished(store)
    n_new = count_new_votes(store, settings)
    plan: dict[str, Any] = {
        "champion": None if pointer is None else pointer.version,
        "new_votes": n_new,
        "fewest_new_votes": settings.fewest_new_votes,
        "canary_runs": find_running_canary(store) is not None,
        "unfinished_cycle": None if unfinished is None else unfinished.id,
    }
    if pointer is None:
        plan["would"] = "stop: no champion is in service yet"
    elif unfinished is not None:
        left = [name for name in STEPS if name not in unfinished.steps]
        plan["would"] = f"go on with cycle {unfinished.id}: {', '.join(left)}"
    elif plan["canary_runs"]:
        plan["would"] = "look at the canary, and wait for its end"
    elif n_new < settings.fewest_new_votes:
        plan["would"] = f"wait for {settings.fewest_new_votes - n_new} more votes"
    else:
        plan["would"] = f"run {', '.join(STEPS)} from {pointer.version}"
    return plan


def count_new_votes(store: Store, settings: LoopSettings) -> int:
    """Current votes that no turn has learned from yet."""
    since = learned_until_us(store)
    return count_votes(store, VoteFilter(kinds=settings.curation.kinds, since_us=since))


def learned_until_us(store: Store, before: int | None = None) -> int | None:
    """When the last snapshot began that a candidate was trained on; `before` leaves out a turn and later ones.

    A turn that failed behind its training has nothing to show for its votes: they are new again.
    """
    for cycle in list_cycles(store):
        if "train" in cycle.steps and cycle.state != "failed" and (before is None or cycle.id < before):
            return cycle.steps["snapshot"].started_us
    return None


# The steps. Each gives what is recorded of it, or `Ended`.


def _count_votes(turn: Turn, progress: Any) -> Mapping[str, Any] | Ended:
    pointer = find_pointer(turn.store)
    if pointer is None:
        raise ConfigError("no champion is in service yet: start the gateway once, `thumbtune serve`")
    n_new = count_new_votes(turn.store, turn.settings)
    result = {"new_votes": n_new, "champion": pointer.version}
    if n_new < turn.settings.fewest_new_votes:
        return Ended(f"not enough new votes: {n_new} of {turn.settings.fewest_new_votes}", result)
    return result


def _freeze(turn: Turn, progress: Any) -> Mapping[str, Any] | Ended:
    from thumbtune.loop.snapshot import take_snapshot

    turn.folder.mkdir(parents=True, exist_ok=True)
    folder = turn.folder / "snapshot"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed try
    try:
        snapshot = take_snapshot(turn.store, turn.settings.curation, folder)
    except DataError as error:  # nothing is left to learn from
        return Ended(str(error), {})
    return {
        "digest": snapshot.digest,
        "folder": str(folder),
        "train": str(snapshot.train),
        "held_out": None if snapshot.held_out is None else str(snapshot.held_out),
        "n_rows": snapshot.n_rows,
        "n_held_out": snapshot.n_held_out,
        "outcomes": dict(snapshot.outcomes),
    }


def _train(turn: Turn, progress: Any) -> Mapping[str, Any] | Ended:
    champion = find_version(turn.store, turn.result("votes")["champion"])
    candidate = train_candidate(
        turn.settings,
        champion,
        base=trace_lineage(turn.store, champion.version)[-1],
        rows=Path(turn.result("snapshot")["train"]),
        seen_before_us=learned_until_us(turn.store, before=turn.cycle.id),
        folder=turn.folder / f"adapter-{turn.cycle.id}",
        seed=turn.cycle.id,
        on_progress=progress,
    )
    if candidate.version is None:  # stopped by a person: the same call goes on
        raise KeyboardInterrupt
    version = candidate.version
    register_version(turn.store, replace(version, snapshot=turn.result("snapshot")["digest"]))
    return {"version": version.version, **candidate.told}


def _measure(turn: Turn, progress: Any) -> Mapping[str, Any] | Ended:
    from thumbtune.loop.measure import choose_questions, measure

    champion = find_version(turn.store, turn.result("votes")["champion"])
    candidate = find_version(turn.store, turn.result("train")["version"])
    questions = choose_questions(turn.settings, turn.result("snapshot")["held_out"], seed=turn.cycle.id)
    evidence = measure(
        turn.settings.model,
        Path(champion.location) if champion.kind == "adapter" else None,
        Path(candidate.location),
        questions,
        turn.folder,
        judge=turn.judge,
        on_progress=progress,
    )
    write_json(asdict(evidence), turn.folder / "evidence.json")
    return {"prompts": len(questions.prompts), "held_out_votes": len(questions.votes)}


def _pass_gate(turn: Turn, progress: Any) -> Mapping[str, Any] | Ended:
    evidence = gate.read_evidence(json.loads((turn.folder / "evidence.json").read_text()))
    decision = gate.decide(evidence, turn.settings.gate)
    write_json(gate.as_record(evidence, turn.settings.gate, decision), turn.folder / "gate.json")
    version = turn.result("train")["version"]
    result = {
        "outcome": decision.outcome,
        "checks": [asdict(check) for check in decision.checks],
        "record": str(turn.folder / "gate.json"),
    }
    record_metrics(turn.store, version, {"gate": {"outcome": decision.outcome, "reasons": decision.reasons}})
    if decision.outcome != "pass":
        said = "the gate refused" if decision.outcome == "refuse" else "the gate had not enough data for"
        return Ended(f"{said} {version}: {'; '.join(decision.reasons)}", result)
    return result


def _stage(turn: Turn, progress: Any) -> Mapping[str, Any] | Ended:
    candidate, champion = turn.result("train")["version"], turn.result("votes")["champion"]
    known = next((one for one in list_canaries(turn.store) if one.candidate == candidate), None)
    if known is not None:  # of a killed try
        return {"canary": known.id}
    if was_touched(turn.store, turn.result("snapshot")["digest"]):
        return Ended(
            f"somebody whom {candidate} learned from was erased meanwhile: the next turn is without them", {}
        )
    pointer = find_pointer(turn.store)
    if pointer is None or pointer.version != champion:
        return Ended(f"the champion is no longer {champion}, which {candidate} was trained from", {})
    return {"canary": stage_canary(turn.store, candidate, turn.settings.canary, actor=ACTOR).id}


STEPS: Mapping[str, Callable[[Turn, Any], Mapping[str, Any] | Ended]] = {
    "votes": _count_votes,
    "snapshot": _freeze,
    "train": _train,
    "measure": _measure,
    "gate": _pass_gate,
    "canary": _stage,
}


def _notify(command: Sequence[str], cycle: Cycle) -> None:
    """Tell whoever wants to know. A bell that does not ring stops no turn."""
    if not command:
        return
    told = json.dumps({"cycle": cycle.id, "state": cycle.state, "outcome": cycle.outcome})
    try:
        subprocess.run(list(command), input=told, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger("thumbtune.loop").warning("the notification failed: %s", type(error).__name__)
