"""How a canary is shown: its state in words and numbers, both tests' evidence as a picture and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thumbtune.gateway.canary_state import CanaryNow, tell_why
from thumbtune.gateway.page.numbers import (
    write_day,
    write_evidence,
    write_number,
    write_points,
    write_rate,
    write_share,
    write_span,
    write_time,
)
from thumbtune.gateway.page.phrases import write_sentence
from thumbtune.gateway.page.plain_text import as_html, write_cells, write_table
from thumbtune.gateway.page.words import Words
from thumbtune.loop.canary import CanaryRules
from thumbtune.store.canaries import Canary
from thumbtune.store.database import now_us

DAY_US = 86_400_000_000

ARM_COLUMNS = ("arm", "up_rate", "up", "down", "users_here", "users_share", "completions", "broke_off")
PAST_COLUMNS = ("candidate", "outcome", "why_so", "widest", "took", "began")
TABLE_ROWS = 12

BETTER, HARM, LIMIT = "#0f8a60", "#c8551a", "#77757a"
"""Of at least 3.9:1 on the light paper and on the dark; the lines differ in their strokes as well."""


def write_canary(canary: Canary, now: CanaryNow | None, words: Words) -> str:
    """Who is tried, what is concluded and why, and the numbers of both arms; on one line of HTML."""
    title = words.say("against", candidate=canary.candidate, champion=canary.champion)
    running = canary.state == "running"
    mark = words.find(canary.state, "state")
    said = tell_why(canary)
    if running and now is not None:
        mark, said = words.find(now.verdict.action, "action"), "; ".join(now.verdict.reasons)
    why = write_sentence(said, words) if said else as_html(words["no_numbers"])
    look = "mark serving" if running else "mark"
    head = f'<h2>{as_html(title)}</h2><p class="why"><span class="{look}">{as_html(mark)}</span> {why}</p>'
    if now is None:
        return f"<div>{head}</div>"
    return f"<div>{head}{_write_tiles(now, words)}{_write_arms(now, words)}</div>"


def _write_tiles(now: CanaryNow, words: Words) -> str:
    numbers, rules = now.verdict.numbers, now.rules
    stage = words.say(
        "stage_value",
        share=write_share(rules.stages[now.seen.stage], words),
        stage=now.seen.stage + 1,
        n=len(rules.stages),
    )
    span = words.say(
        "span_of",
        span=write_span(now.seen.days * 86_400, words),
        most=write_span(rules.max_days * 86_400, words),
    )
    limit = write_evidence(numbers["log_limit"], words)

    def tell(log_value: float) -> str:
        if not len(now.curves.n_canary):
            return words.say("highest_of", value="–", limit=limit)
        return words.say("highest_of", value=write_evidence(log_value, words), limit=limit)

    tiles = {
        words["stage"]: stage,
        words["lasting" if now.canary.state == "running" else "lasted"]: span,
        _name_better(rules, words): tell(numbers["log_better"]),
        words["evidence_harm"]: tell(numbers["log_harm"]),
    }
    terms = "".join(
        f"<div><dt>{as_html(name)}</dt><dd>{as_html(value)}</dd></div>" for name, value in tiles.items()
    )
    return f'<dl class="tiles">{terms}</dl>'


def _name_better(rules: CanaryRules, words: Words) -> str:
    if rules.promote_on == "better":
        return words["evidence_better"]
    margin = words.say("points", n=write_number(100 * rules.margin, words=words))
    return words.say("evidence_not_worse", margin=margin)


def _write_arms(now: CanaryNow, words: Words) -> str:
    on_canary, everybody = now.seen.users
    expected = now.rules.stages[now.seen.stage]
    rows = []
    for arm, version, users, share in (
        ("canary", now.canary.candidate, on_canary, expected),
        ("champion", now.canary.champion, everybody - on_canary, 1 - expected),
    ):
        n_up, n = now.verdict.numbers[arm]
        n_answers, n_failed = now.seen.answers.get(arm, (0, 0))
        seen_share = write_share(users / everybody, words) if everybody else "–"
        cells = {
            "rate": write_rate(n_up, n - n_up, words),
            "up": write_number(n_up, words=words),
            "down": write_number(n - n_up, words=words),
            "users": write_number(users, words=words),
            "share": words.say("expected", share=seen_share, expected=write_share(share, words)),
            "completions": write_number(n_answers, words=words),
            "failed": write_number(n_failed, words=words),
        }
        role = words["candidate" if arm == "canary" else "champion"]
        name = f'{as_html(role)} <span class="of">{as_html(version)}</span>'
        rows.append(f'<th scope="row">{name}</th>{write_cells(cells)}')
    return write_table([words[name] for name in ARM_COLUMNS], rows)


# Evidence


def draw_evidence(now: CanaryNow, words: Words) -> str | None:
    """Plotly's figure as JSON: both E-values over the votes, the line that decides; None where there is no vote yet.

    Its texts take their colour from `page.css`, which knows whether it is dark.
    """
    if not len(now.curves.n_canary):
        return None
    n = [0, *now.curves.n_canary.tolist()]
    log_limit = now.verdict.numbers["log_limit"]
    lines = {
        _name_better(now.rules, words): (now.curves.better, BETTER, "solid"),
        words["evidence_harm"]: (now.curves.harm, HARM, "dash"),
    }
    data = []
    for name, (curve, colour, dash) in lines.items():
        logs = np.clip([0.0, *curve], -300, 300)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(n) <= TABLE_ROWS else "lines",
                "name": name,
                "x": n,
                "y": np.exp(logs).tolist(),
                "line": {"color": colour, "dash": dash, "width": 2.5},
                "hovertemplate": "%{x}: %{y:.3~g}<extra></extra>",
            }
        )
    low, high = _find_range(now, log_limit)
    powers = range(math.ceil(low), math.floor(high) + 1, max(1, round((high - low) / 7)))
    axis = {
        "gridcolor": "rgba(128, 128, 128, .22)",
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
    }
    layout = {
        "height": 340,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": LIMIT},
        "separators": ",." if words.language == "tr" else ".,",
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#1d1d1b", "bordercolor": LIMIT, "font": {"color": "#fffefb"}},
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom", "itemclick": False},
        "xaxis": {
            **axis,
            "title": {"text": words["votes_axis"], "font": {"size": 13}},
            "rangemode": "tozero",
            "tickformat": ",d",
        },
        "yaxis": {
            **axis,
            "type": "log",
            "title": {"text": words["evidence_axis"], "font": {"size": 13}},
            "range": [low, high],
            "tickvals": [10.0**power for power in powers],
            "ticktext": [_write_power(power, words) for power in powers],
        },
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": math.exp(log_limit),
                "y1": math.exp(log_limit),
                "line": {"color": LIMIT, "width": 1.5, "dash": "dot"},
            }
        ],
        "annotations": [
            {
                "xref": "paper",
                "x": 1,
                "xanchor": "right",
                "y": log_limit / math.log(10),
                "yanchor": "bottom",
                "showarrow": False,
                "text": words.say("decides", limit=write_evidence(log_limit, words)),
            }
        ],
    }
    config = {"displayModeBar": False, "doubleClick": False, "scrollZoom": False}
    return json.dumps({"data": data, "layout": layout, "config": config})


def _write_power(power: int, words: Words) -> str:
    return write_number(10.0**power, max(0, -power), words=words) if power < 7 else f"10<sup>{power}</sup>"


def _find_range(now: CanaryNow, log_limit: float) -> tuple[float, float]:
    """Powers of ten between which there is something to see; far below 1 is all the same."""
    lowest = min(0.0, float(now.curves.better.min()), float(now.curves.harm.min()))
    highest = max(log_limit, float(now.curves.better.max()), float(now.curves.harm.max()))
    return max(-2.0, lowest / math.log(10)) - 0.15, min(highest / math.log(10), 130.0) + 0.35


def write_evidence_hint(now: CanaryNow, words: Words) -> str:
    """What the picture says, in a sentence."""
    if not len(now.curves.n_canary):
        return f'<p class="hint">{as_html(words["evidence_none"])}</p>'
    limit = write_evidence(now.verdict.numbers["log_limit"], words)
    hint = words.say("evidence_hint", limit=limit, alpha=write_share(now.rules.alpha, words))
    return f'<p class="hint">{as_html(hint)}</p>'


def write_evidence_table(now: CanaryNow, words: Words) -> str:
    """The curves in some rows, for those who cannot see them."""
    n = len(now.curves.n_canary)
    if not n:
        return f"<p>{as_html(words['evidence_none'])}</p>"
    rows = []
    for place in np.unique(np.linspace(0, n - 1, TABLE_ROWS).round().astype(int)):
        cells = {
            "better": write_evidence(float(now.curves.better[place]), words),
            "harm": write_evidence(float(now.curves.harm[place]), words),
        }
        votes = write_number(int(now.curves.n_canary[place]), words=words)
        rows.append(f'<th scope="row">{votes}</th>{write_cells(cells)}')
    heads = [words["votes_axis"], _name_better(now.rules, words), words["evidence_harm"]]
    return write_table(heads, rows)


# What is to come, and what has been


def write_outlook(now: CanaryNow, words: Words) -> str:
    """What can be told by when, while it runs."""
    if now.canary.state != "running":
        return ""
    end_us = now.canary.started_us + now.rules.max_days * DAY_US
    rows = []
    for one in now.forecast:
        days, date = words["no_pace"], "–"
        if one.days == 0:
            days, date = write_number(0, words=words), words["by_now"]
        elif one.days is not None:
            days = write_number(one.days, 1, words=words)
            at_us = now_us() + one.days * DAY_US
            if one.days < 36_500:
                date = write_day(at_us)
            if at_us > end_us:
                date = words.say("too_late", date=date)
        votes = write_number(one.votes, words=words)
        cells = {"votes": votes, "days": days, "time": date}
        rows.append(f'<th scope="row">{write_points(one.difference, words)}</th>{write_cells(cells)}')
    heads = [words[name] for name in ("if_it_differs", "votes_needed", "days_from_now", "likely_on")]
    hint = words.say("outlook_hint", date=write_day(end_us))
    return (
        f'<div class="outlook"><h2>{as_html(words["outlook"])}</h2><p class="hint">{as_html(hint)}</p>'
        f"{write_table(heads, rows)}</div>"
    )


def write_past(canaries: Sequence[Canary], words: Words) -> str:
    """Those that ended, with how and why."""
    ended = [canary for canary in canaries if canary.ended_us is not None]
    if not ended:
        return f"<div><h2>{as_html(words['past_canaries'])}</h2><p>{as_html(words['no_past'])}</p></div>"
    rows = []
    for canary in ended:
        seconds = ((canary.ended_us or canary.started_us) - canary.started_us) / 1e6
        why = tell_why(canary)
        if why is not None:
            said = write_sentence(why, words)
        else:
            said = as_html(words["not_said"] if canary.state == "withdrawn" else "–")
        before = {"outcome": words.find(canary.state, "state")}
        after: dict[str, Any] = {
            "share": write_share(canary.share, words),
            "days": write_span(seconds, words),
            "time": write_time(canary.started_us),
        }
        name = as_html(canary.candidate)
        rows.append(
            f'<th scope="row">{name}</th>{write_cells(before)}<td class="why">{said}</td>{write_cells(after)}'
        )
    table = write_table([words[name] for name in PAST_COLUMNS], rows)
    return f"<div><h2>{as_html(words['past_canaries'])}</h2>{table}</div>"
