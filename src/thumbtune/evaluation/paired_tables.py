"""Tables of the report beside the main one: each arm against the base prompt by prompt, and the search of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thumbtune.evaluation.comparison_record import Comparison, read_interval, read_number
from thumbtune.evaluation.wording import MISSING, say_points, say_share, say_up_rate


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under one heading."""

    slug: str
    heading: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The first cell is the row's name."""


def list_tables(comparison: Comparison) -> list[Table]:
    """The tables that have a row."""
    return [table for table in (_against_base(comparison), _search(comparison)) if table.rows]


def _against_base(comparison: Comparison) -> Table:
    rows = []
    arms = comparison.facts["arms"]
    for arm in comparison.measured:
        content = arms[arm.key]
        outcomes = content.get("outcomes")
        if arm is comparison.base or not isinstance(outcomes, Mapping):
            continue
        flips = read_interval(content.get("negative_flips"))
        at_length = content.get("at_base_length") or {}
        rows.append(
            (
                arm.name,
                MISSING if arm.gain is None else f"{_say_lead(content['gain'])}{_say_p(content['gain'])}",
                f"{outcomes['wins']}, {outcomes['ties']}, {outcomes['losses']}",
                str(outcomes["not_judged"]),
                say_up_rate(flips),
                f"{say_up_rate(read_interval(at_length))}, of {say_share(at_length['covered'])}"
                if at_length
                else "cannot be told",
                ", ".join(say_share(rate) for rate in content.get("by_seed") or ()),
                _say_lead(content.get("kto_lead")),
            )
        )
    return Table(
        "against-the-base",
        "Prompt by prompt",
        "Against the base on the same prompts. p: signs of the differences flipped at random. Negative flips: of the "
        "prompts whose answer was liked before, those whose fresh sample is not; sampling anew alone flips some. "
        "At the base's length: the up-rate if completions were as long as the base's, by quarters of its lengths, and "
        "the share of them that this covers.",
        (
            "Arm",
            "Gain",
            "Won, equal, lost",
            "Not judged",
            "Negative flips",
            "At the base's length",
            "By seed",
            "KTO's lead",
        ),
        tuple(rows),
    )


def _search(comparison: Comparison) -> Table:
    search = comparison.facts.get("search")
    rows = [
        (
            str(method),
            f"{trial['settings']['learning_rate']:.2g}",
            f"{trial['settings']['beta']:.2g}",
            f"failed: {trial['error']}"
            if trial.get("error")
            else say_up_rate(read_interval(trial["up_rate"])),
            "taken" if trial.get("chosen") else "",
        )
        for method, trials in (search.items() if isinstance(search, Mapping) else ())
        for trial in trials
    ]
    return Table(
        "trials",
        "What was tried",
        "Settings of each method, tried on validation prompts with one seed; the best are those of the tables above.",
        ("Method", "Learning rate", "β", "Up-rate there", ""),
        tuple(rows),
    )


def _say_p(gain: Any) -> str:
    p_value = read_number(gain.get("p_value")) if isinstance(gain, Mapping) else None
    if p_value is None:
        return ""
    return ", p < 0.001" if p_value < 0.001 else f", p = {p_value:.3f}"


def _say_lead(lead: Any) -> str:
    interval = read_interval(lead) if isinstance(lead, Mapping) else None
    if interval is None or interval.low is None or interval.high is None:
        return MISSING
    ends = f"({say_points(interval.low)} to {say_points(interval.high)})".replace(" points to", " to")
    return f"{say_points(interval.mean)} {ends}"
