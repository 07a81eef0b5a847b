"""How the loop's turns and a version's origin are shown; on one line of HTML each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thumbtune.gateway.page.numbers import write_day, write_number, write_rate, write_span, write_time
from thumbtune.gateway.page.phrases import write_sentence
from thumbtune.gateway.page.plain_text import as_html, shorten, write_cells, write_table
from thumbtune.gateway.page.words import Words
from thumbtune.store.cycles import Cycle, Step
from thumbtune.store.models import ModelVersion

CYCLE_COLUMNS = ("cycle", "state", "outcome", "steps", "took", "began")
STEP_COLUMNS = ("step", "took", "result")
CHECK_COLUMNS = ("check", "verdict", "numbers")
ORIGIN_COLUMNS = (
    "version",
    "up_rate",
    "learned_from",
    "held_out",
    "presses_behind",
    "snapshot",
    "time",
)

MAIN: Mapping[str, tuple[str, ...]] = {
    "votes": ("new_votes", "champion"),
    "snapshot": ("n_rows", "n_held_out", "digest"),
    "train": ("version", "new_rows", "old_rows", "alarms"),
    "measure": ("prompts", "held_out_votes"),
    "gate": ("outcome",),
    "canary": ("canary",),
}
"""What is told of a step first. Whatever else it recorded, of this version or a later one, follows."""

ELSEWHERE = ("ends", "checks")
"""Shown as the turn's outcome, and as a table."""


def write_cycles(cycles: Sequence[Cycle], words: Words) -> str:
    """The turns, newest first."""
    if not cycles:
        return f"<p>{as_html(words['no_cycles'])}</p>"
    rows = []
    for cycle in cycles:
        steps = ", ".join(words.find(name, "step") for name in cycle.steps)
        outcome = write_sentence(cycle.outcome, words) if cycle.outcome else as_html(words["going_on"])
        took = "–" if cycle.ended_us is None else write_span((cycle.ended_us - cycle.started_us) / 1e6, words)
        after = {"steps": steps or "–", "took": took, "time": write_time(cycle.started_us)}
        look = "mark serving" if cycle.state == "running" else "mark"
        state = f'<td><span class="{look}">{as_html(words.find(cycle.state, "state"))}</span></td>'
        rows.append(
            f'<th scope="row">{cycle.id}</th>{state}<td class="why">{outcome}</td>{write_cells(after)}'
        )
    return write_table([words[name] for name in CYCLE_COLUMNS], rows)


def write_cycle(cycle: Cycle, words: Words) -> str:
    """One turn: its steps, and what the gate checked."""
    title = f"<h2>{as_html(words.say('turn_so_far', number=cycle.id))}</h2>"
    if not cycle.steps:
        return f"<div>{title}<p>{as_html(words['no_steps'])}</p></div>"
    rows = [_write_step(step, words) for step in cycle.steps.values()]
    steps = write_table([words[name] for name in STEP_COLUMNS], rows)
    gate = cycle.steps.get("gate")
    checks = gate.result.get("checks") if gate is not None else None
    return f"<div>{title}{steps}{_write_checks(checks, words)}</div>"


def _write_step(step: Step, words: Words) -> str:
    main = [name for name in MAIN.get(step.name, ()) if name in step.result]
    rest = [name for name in step.result if name not in main and name not in ELSEWHERE]

    def tell(names: Sequence[str]) -> str:
        return " · ".join(as_html(_write_entry(name, step.result[name], words)) for name in names)

    told = f"<span>{tell(main)}</span>" if main else ""
    told += f'<span class="rest">{tell(rest)}</span>' if rest else ""
    took = as_html(write_span((step.ended_us - step.started_us) / 1e6, words))
    name = as_html(words.find(step.name, "step"))
    return f'<th scope="row">{name}</th><td class="time">{took}</td><td>{told or "–"}</td>'


def _write_entry(name: str, value: Any, words: Words) -> str:
    return f"{words.find(name, 'key').replace('_', ' ')}: {_write_value(name, value, words)}"


def _write_value(name: str, value: Any, words: Words) -> str:
    """A recorded value in words; nothing that was recorded is too strange to be shown."""
    if value is None or value == [] or value == {}:
        return words["none"]
    if isinstance(value, bool):
        return words["yes" if value else "no"]
    if isinstance(value, int | float):
        return write_number(value, 0 if float(value).is_integer() else 2, words=words)
    if name == "digest":
        return str(value)[:12]
    if name == "outcome":
        return words.find(str(value), "verdict")
    if name == "outcomes" and isinstance(value, Mapping):
        return _write_outcomes(value, words)
    if isinstance(value, str):
        return shorten(value, 120)
    return shorten(json.dumps(value, ensure_ascii=False, default=str), 160)


def _write_outcomes(outcomes: Mapping[str, Any], words: Words) -> str:
    parts = []
    for name, n in outcomes.items():
        number = write_number(n, words=words) if isinstance(n, int | float) else str(n)
        parts.append(f"{words.find(name, 'became')} {number}")
    return ", ".join(parts)


def _write_checks(checks: Any, words: Words) -> str:
    if not isinstance(checks, Sequence) or isinstance(checks, str) or not checks:
        return ""
    rows = []
    for check in checks:
        if not isinstance(check, Mapping):
            continue
        verdict = str(check.get("verdict") or check.get("outcome") or "–")
        cells = {"verdict": words.find(verdict, "verdict")}
        told = write_sentence(str(check.get("told") or "–"), words)
        name = str(check.get("name") or "–")
        check_name = words.find(name, "check")
        rows.append(
            f'<th scope="row">{as_html(check_name)}</th>{write_cells(cells)}<td class="why">{told}</td>'
        )
    table = write_table([words[name] for name in CHECK_COLUMNS], rows)
    return f"<h2>{as_html(words['gate_checks'])}</h2>{table}"


def write_origin(
    line: Sequence[ModelVersion],
    counts: Mapping[str, Mapping[str, Any]],
    snapshots: Mapping[str, Mapping[str, Any]],
    words: Words,
) -> str:
    """A version and its line of parents, each with the snapshot and the votes that it was made from."""
    rows = []
    for version in line:
        count = counts.get(version.version, {})
        entry = snapshots.get(version.snapshot or "")
        learned, held_out, presses = _write_snapshot(version, entry, words)
        cells = {
            "rate": write_rate(count.get("n_up", 0), count.get("n_down", 0), words),
            "rows": learned,
            "held": held_out,
            "presses": presses,
            "snapshot": (version.snapshot or "–")[:12],
            "time": write_day(version.created_us),
        }
        rows.append(f'<th scope="row">{as_html(version.version)}</th>{write_cells(cells)}')
    return write_table([words[name] for name in ORIGIN_COLUMNS], rows)


def _write_snapshot(
    version: ModelVersion, entry: Mapping[str, Any] | None, words: Words
) -> tuple[str, str, str]:
    """(rows learned from, rows held out, presses by what became of them)."""
    if version.snapshot is None:
        return "–", "–", "–"
    if entry is None:
        return words["not_entered"], "–", "–"
    manifest = entry["manifest"]
    learned = write_number(entry["n_rows"], words=words)
    if isinstance(manifest.get("n_up"), int):
        learned = words.say("learned_value", rows=learned, up=write_number(manifest["n_up"], words=words))
    held_out = manifest.get("n_held_out")
    outcomes = manifest.get("outcomes")
    presses = "–"
    if isinstance(outcomes, Mapping) and outcomes:
        n = sum(number for number in outcomes.values() if isinstance(number, int))
        parts = _write_outcomes(outcomes, words)
        presses = words.say("presses_value", n=write_number(n, words=words), parts=parts)
    return learned, write_number(held_out, words=words) if isinstance(held_out, int) else "–", presses
