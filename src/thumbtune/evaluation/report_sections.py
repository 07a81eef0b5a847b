"""What the report says around its figures: headings, captions, table rows, the list of how it was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thumbtune.evaluation import charts, condition_charts, training_charts
from thumbtune.evaluation.comparison_record import Arm, Comparison, read_number
from thumbtune.evaluation.wording import (
    MISSING,
    say_count,
    say_interval,
    say_megabytes,
    say_seconds,
    say_up_rate,
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure on the page."""

    slug: str
    figure: Any
    summary: str
    """What the figure shows, for those who cannot see it."""
    title: str = ""
    note: str = ""
    """A line under the title."""
    arm_key: str | None = None
    """The arm that the panel belongs to, where it belongs to one."""


@dataclass(frozen=True, slots=True)
class ChartSection:
    """Figures under one heading, with the caption that says how to read them."""

    slug: str
    heading: str
    caption: str
    panels: tuple[Panel, ...]
    names_arms: bool = False
    """Whether a key of the arms' marks is needed above the panels."""


COLUMNS = ("Up-rate", "AUC", "KL per token (nats)", "Tokens", "Training", "Peak memory", "Labels spent")


def write_cells(arm: Arm) -> list[tuple[str, str]]:
    """The cells of an arm's row, as `COLUMNS` names them: a value, and its interval where it has one."""
    measured = [
        say_up_rate(arm.up_rate),
        say_interval(arm.auc),
        say_interval(arm.kl_per_token, 3),
        say_interval(arm.length, 1),
    ]
    plain = [
        say_seconds(arm.seconds) if arm.method or arm.seconds else MISSING,
        say_megabytes(arm.peak_rss_mb),
        say_count(read_number(arm.spent.get("labels"))),
    ]
    return [*(cell.partition(" ")[::2] for cell in measured), *((cell, "") for cell in plain)]


def name_level(comparison: Comparison) -> str:
    """`95% interval`, at the level that the comparison states; 95% is what thumbtune computes."""
    level = read_number(comparison.facts.get("interval_level"))
    return f"{100 * (0.95 if level is None else level):.4g}% interval"


def draw_sections(comparison: Comparison) -> list[ChartSection]:
    """The figures of the report in reading order. A section without a figure is left out."""
    level = name_level(comparison)
    base, gain = comparison.base, charts.draw_gain_against_kl(comparison)
    reference = f" The dotted line is {base.name}." if base else ""
    trained = [arm for arm in comparison.measured if arm is not base]
    pairing = "the gain's prompt by prompt" if all(arm.gain for arm in trained) else "the gain's unpaired"
    first_seed = " Drawn: the first seed." if comparison.seed_count > 1 else ""
    sections = [
        ChartSection(
            "up-rates",
            "Up-rates",
            f"Share of completions on held-out prompts that got a 👍. Whiskers: {level}; "
            f"n completions judged.{reference}{_name_absent(comparison, lambda arm: arm.up_rate)}",
            _one("up-rates", charts.draw_up_rates(comparison), "Up-rate by arm, with intervals"),
        ),
        ChartSection(
            "gain",
            "Gain against distance",
            "How much up-rate an arm won over the base, and how far it moved from it to do so. Up and to "
            f"the left is better. Whiskers: {level}, {pairing}."
            + _name_absent(comparison, lambda arm: arm is base or arm.kl_per_token),
            _one("gain", gain, "Gain in up-rate against KL by arm"),
            names_arms=gain is not None and not gain.layout.annotations,
        ),
        ChartSection(
            "sweeps",
            "Under other conditions",
            f"Up-rates with the thumbs changed before training; every seed draws anew. Whiskers: {level}."
            f"{reference} {_say_sweeps(comparison)}",
            _sweep_panels(comparison),
        ),
        ChartSection(
            "crossing",
            "What pairs cost",
            "Up-rates over what the labels cost. "
            + _say_crossing(comparison)
            + f" In brackets and as whiskers: {level}, prompts resampled.{reference}",
            _one(
                "crossing",
                condition_charts.draw_crossing(comparison),
                "Up-rates of KTO and of DPO on bought pairs by the labels paid for",
            ),
        ),
        ChartSection(
            "curves",
            "Learning curves",
            "One line an arm. Losses of different methods are not on one scale: compare their shapes only. "
            "At an AUC of 0.5 (dotted) the rewards do not tell 👍 from 👎; a saturated example has a gradient "
            "near zero." + _note_thinning(comparison) + first_seed,
            _metric_panels(comparison),
            names_arms=True,
        ),
        ChartSection(
            "rewards",
            "Implicit rewards by class",
            "Mean implicit reward of desirable (👍, the solid line in the arm's colour) and undesirable "
            "(👎, dotted) examples, in nats × β. Widening lines mean that the arm tells them apart; both falling "
            "means that it forgets. All panels share one scale." + first_seed,
            _arm_panels(comparison, "rewards", training_charts.draw_rewards(comparison)),
        ),
        ChartSection(
            "histograms",
            "Rewards after training",
            "Implicit rewards of held-out votes: desirable (👍, filled) and undesirable (👎, dotted outline), each "
            "as shares of its class. The less they overlap, the better the arm tells them apart.",
            _arm_panels(
                comparison, "histogram", training_charts.draw_reward_histograms(comparison), _say_counts
            ),
        ),
        ChartSection(
            "lengths",
            "Length",
            f"Mean tokens in a completion. Whiskers: {level}; n completions.{reference}",
            _one("lengths", charts.draw_lengths(comparison), "Mean length of completions by arm"),
        ),
        ChartSection(
            "cost",
            "Cost",
            "What training an arm took on the hardware named below: time on the clock, and the most memory "
            "the process held.",
            (
                *_one("seconds", charts.draw_seconds(comparison), "Seconds of training by arm", "Time"),
                *_one("memory", charts.draw_peak_memory(comparison), "Peak memory by arm", "Memory"),
            ),
        ),
    ]
    return [section for section in sections if section.panels]


def list_methods(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """How it was done: groups of a heading and its facts, as far as the comparison wrote them down."""
    facts = comparison.facts
    run = {
        "model": facts.get("model"),
        "seeds": facts.get("seeds"),
        "thumbtune": facts.get("thumbtune"),
        "commit": facts.get("git_commit"),
        "created": facts.get("created_at"),
    }
    groups = {"Run": run} | {
        heading: facts.get(heading.lower())
        for heading in ("Data", "Judge", "Budget", "Sampling", "Hardware", "Versions")
    }
    return [
        (heading, list_facts(group))
        for heading, group in groups.items()
        if isinstance(group, Mapping) and list_facts(group)
    ]


def list_facts(group: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each fact, in words; what is None is left out."""
    return [(_say_key(key), say_value(value)) for key, value in group.items() if value is not None]


def say_value(value: Any) -> str:
    """A setting as one writes it in a sentence: lists with commas, mappings as `name: value`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_say_key(key)}: {say_value(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(say_value(each) for each in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _say_key(key: object) -> str:
    return str(key).replace("_", " ").replace("held out", "held-out")


def _one(slug: str, figure: Any | None, summary: str, title: str = "") -> tuple[Panel, ...]:
    return () if figure is None else (Panel(slug, figure, summary, title),)


def _metric_panels(comparison: Comparison) -> tuple[Panel, ...]:
    return tuple(
        panel
        for metric, (title, _) in training_charts.METRICS.items()
        for panel in _one(
            f"curve-{metric}",
            training_charts.draw_metric(comparison, metric),
            f"{title} over the steps",
            title,
        )
    )


def _list_sweeps(comparison: Comparison) -> list[Mapping[str, Any]]:
    sweeps = comparison.facts.get("sweeps")
    return [sweep for sweep in sweeps if isinstance(sweep, Mapping)] if isinstance(sweeps, list) else []


SWEPT = {
    "noise": "Thumbs on the wrong button",
    "ratio": "👍 to 👎",
    "rows": "Number of thumbs",
    "per-prompt": "Completions per prompt",
}


def _sweep_panels(comparison: Comparison) -> tuple[Panel, ...]:
    panels: list[Panel] = []
    for place, sweep in enumerate(_list_sweeps(comparison)):
        title = SWEPT.get(str(sweep.get("over")), str(sweep.get("over")))
        figure = condition_charts.draw_sweep(comparison, sweep)
        panels += _one(f"sweep-{place}", figure, f"Up-rate by method: {title}", title)
    return tuple(panels)


def _say_sweeps(comparison: Comparison) -> str:
    return " ".join(condition_charts.say_sweep(sweep) for sweep in _list_sweeps(comparison))


def _say_crossing(comparison: Comparison) -> str:
    from thumbtune.evaluation.verdict import describe_crossing

    crossing = comparison.facts.get("crossing")
    return describe_crossing(crossing) if isinstance(crossing, Mapping) else ""


def _arm_panels(
    comparison: Comparison,
    slug: str,
    figures: Mapping[str, Any],
    say_more: Callable[[Arm], str] | None = None,
) -> tuple[Panel, ...]:
    return tuple(
        Panel(
            f"{slug}-{place}",
            figures[arm.key],
            f"Implicit rewards by class: {arm.name}",
            arm.name,
            say_more(arm) if say_more else "",
            arm.key,
        )
        for place, arm in enumerate(comparison.arms)
        if arm.key in figures
    )


def _say_counts(arm: Arm) -> str:
    up, down = (sum((arm.reward_histogram or {})[kind]) for kind in ("desirable", "undesirable"))
    return f"{up:,.0f} 👍, {down:,.0f} 👎"


def _name_absent(comparison: Comparison, pick: Callable[[Arm], Any]) -> str:
    absent = [arm.name for arm in comparison.arms if arm.error is not None or not pick(arm)]
    return f" Not drawn, for lack of a measurement: {', '.join(absent)}." if absent else ""


def _note_thinning(comparison: Comparison) -> str:
    most = max((len(arm.curve) for arm in comparison.arms), default=0)
    if most <= training_charts.MOST_POINTS:
        return ""
    return f" Of up to {most:,} steps, {training_charts.MOST_POINTS} are drawn, evenly spaced."
