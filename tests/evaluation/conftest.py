"""A made-up comparison in many shapes. Its numbers mean nothing: never quote them as results."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & \u2028 <!-- {{ 7 * 7 }}"


def make_interval(mean: float, half: float, n: int = 64) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def make_arm(name: str, method: str, strength: float, steps: int = 30) -> dict[str, Any]:
    """A trained arm whose every number grows with its strength, from 0 to 1."""
    curve = [
        {
            "step": step,
            "loss": 0.5 - 0.2 * strength * step / steps + 0.02 * math.sin(7 * step),
            "z0": 0.3 * strength * step / steps,
            "reward_desirable": 0.6 * strength * step / steps,
            "reward_undesirable": -1.1 * strength * step / steps + 0.05 * math.sin(3 * step),
            "auc": 0.5 + 0.4 * strength * (1 - math.exp(-5 * step / steps)),
            "saturated_share": 0.3 * strength * step / steps,
        }
        for step in range(1, steps + 1)
    ]
    edges = [-3 + 0.25 * place for place in range(25)]
    bell = [[math.exp(-((edge + 0.125 - mid) ** 2)) for edge in edges[:-1]] for mid in (strength, -strength)]
    return {
        "name": name,
        "method": method,
        "up_rate": make_interval(0.12 + 0.4 * strength, 0.08),
        "auc": make_interval(0.5 + 0.4 * strength, 0.06),
        "kl_per_token": make_interval(0.09 * strength**1.5, 0.008),
        "length": make_interval(41 - 18 * strength, 2.5),
        "seconds": 120 + 200 * strength,
        "peak_rss_mb": 2600 + 500 * strength,
        "spent": {"labels": 224, "rows": 224, "pairs": 0, "left_over": {}},
        "alarms": [],
        "curve": curve,
        "reward_histogram": {
            "edges": edges,
            "desirable": [round(12 * height) for height in bell[0]],
            "undesirable": [round(60 * height) for height in bell[1]],
        },
        "config": {"learning_rate": 2e-4, "beta": 0.1, "lora": {"r": 16, "alpha": 32}, "warmup": None},
    }


def make_comparison() -> dict[str, Any]:
    """`compare.json` as a good run writes it: the base, KTO, DPO, and DPO on bought pairs."""
    arms = {
        "base": {
            "name": "Base",
            "method": None,
            "up_rate": {"mean": 0.12, "low": 0.06, "high": 0.22, "n": 64},
            "auc": None,
            "kl_per_token": None,
            "length": make_interval(41.0, 3),
            "seconds": 0.0,
            "peak_rss_mb": None,
            "spent": None,
            "curve": [],
            "reward_histogram": None,
            "config": {},
        },
        "kto": make_arm("KTO", "kto", 0.8) | {"alarms": ["both rewards fell after step 20"]},
        "dpo": make_arm("DPO (pairs in the thumbs)", "dpo", 0.25),
        "dpo_bought": make_arm("DPO (bought pairs)", "dpo", 0.45),
    }
    return {
        "thumbtune": "0.1.0",
        "created_at": "2026-11-22T10:00:00+00:00",
        "title": "thumbtune demo",
        "seeds": [0],
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "data": {
            "source": "thumbs.jsonl",
            "digest": "9f2c" * 16,
            "rows": 224,
            "desirable": 30,
            "undesirable": 194,
            "prompts": 56,
            "held_out_prompts": 64,
            "held_out_votes": 64,
            "refused": {"wrong_label": 2},
        },
        "budget": {"labels": 224, "pair_cost_labels": 5},
        "judge": {
            "kind": "simulated user",
            "taste": "brevity:24",
            "noise": 0.0,
            "description": "likes a complete answer of at most 24 words",
        },
        "sampling": {"temperature": 1.0, "max_new_tokens": 48, "samples_per_prompt": 1},
        "verdict": [
            "KTO is better than the base: 44% of its answers got a thumbs up, against 12%.",
            "KTO is better than DPO on the pairs that happen to be in the thumbs (44% against 22%).",
            "Between KTO and DPO on bought pairs there is not enough data to tell.",
        ],
        "caveats": [
            "One seed: another may come out otherwise.",
            "The judge is a simulated user, not people.",
        ],
        "hardware": {"cpu": "made-up CPU", "cores": 2, "memory_gb": 24},
        "versions": {"torch": "2.13.0", "transformers": "5.23.1"},
        "arms": arms,
    }


def make_completions(arms: dict[str, Any], prompts: int = 20) -> list[dict[str, Any]]:
    """A row a prompt. The base wins every tenth prompt, KTO two in five, and so on."""
    rows = []
    for place in range(prompts):
        labels = {
            key: (place % 10 == 0) if key == "base" else (place + number) % 5 < 2
            for number, key in enumerate(arms)
        }
        rows.append(
            {
                "prompt": f"How do I keep bread fresh for {place + 1} days?",
                "arms": {
                    key: [
                        {
                            "text": f"Answer of {key}: wrap it in a cloth, in a box. " * (1 if label else 3),
                            "label": label,
                            "n_tokens": 14 if label else 48,
                            "finished": label,
                        }
                    ]
                    for key, label in labels.items()
                },
            }
        )
    return rows


def add_everything(comparison: dict[str, Any]) -> dict[str, Any]:
    """With what a comparison may hold beside its table: outcomes by prompt, a search, sweeps, a crossing."""
    for key, arm in comparison["arms"].items():
        if key == "base":
            continue
        arm |= {
            "gain": make_interval(arm["up_rate"]["mean"] - 0.12, 0.1) | {"p_value": 0.0004},
            "outcomes": {"wins": 30, "ties": 28, "losses": 6, "not_judged": 1},
            "negative_flips": {"mean": 0.125, "low": 0.02, "high": 0.47, "n": 8},
            "at_base_length": make_interval(0.31, 0.1) | {"covered": 0.75, "n": 40},
            "by_seed": [0.4, 0.5, 0.45],
        }
    comparison["arms"]["dpo"]["kto_lead"] = make_interval(0.22, 0.09) | {"p_value": 0.01}
    comparison["search"] = {
        "kto": [
            {"settings": {"learning_rate": 3e-4, "beta": 0.1}, "up_rate": make_interval(0.4, 0.1), "error": None,
             "chosen": True},
            {"settings": {"learning_rate": 9e-4, "beta": 0.1}, "up_rate": None, "error": "a loss is not a number",
             "chosen": False},
        ]
    }  # fmt: skip
    comparison["sweeps"] = [
        {
            "over": "noise",
            "methods": ["kto", "dpo"],
            "points": [
                {
                    "condition": condition,
                    "label": f"{(0, 10, 30)[place]}% wrong",
                    "arms": {
                        "kto": {
                            "name": "KTO",
                            "up_rate": make_interval(0.5 - 0.05 * place, 0.08),
                            "rows": 120,
                        },
                        "dpo": {"name": "DPO", "error": "no prompt has both"}
                        if place == 2
                        else {"name": "DPO", "up_rate": make_interval(0.2, 0.07), "rows": 20},
                    },
                    **({} if place == 2 else {"lead": make_interval(0.3 - 0.05 * place, 0.1)}),
                }
                for place, condition in enumerate(
                    ["120 thumbs", "120 thumbs, 10% wrong", "120 thumbs, 30% wrong"]
                )
            ],
        }
    ]
    comparison["crossing"] = {
        "pair_cost": 5,
        "points": [
            {
                "pairs_bought": n,
                "labels": 5 * n,
                "pairs": n - 3,
                "tied": 3,
                "up_rate": make_interval(rate, 0.08),
            }
            for n, rate in ((24, 0.15), (96, 0.3), (192, 0.5))
        ],
        "levels": [
            {
                "labels": 120,
                "up_rate": make_interval(0.3, 0.08),
                "gain": make_interval(0.18, 0.08) | {"p_value": 0.001},
                "pairs": 96.0,
                "low": 0.0,
                "high": 150.0,
                "share_beyond": 0.0,
                "times_the_labels": {"mean": 4.0, "low": 0.0, "high": 6.2},
            },
            {
                "labels": 240,
                "up_rate": make_interval(0.44, 0.08),
                "gain": make_interval(0.32, 0.08) | {"p_value": 0.001},
                "pairs": 150.0,
                "low": 90.0,
                "high": None,
                "share_beyond": 0.1,
                "times_the_labels": {"mean": 3.1, "low": 1.9, "high": None},
            },
        ],
        "fewest": 24,
        "most": 192,
    }
    return comparison


@pytest.fixture
def full_comparison(comparison: dict[str, Any]) -> dict[str, Any]:
    return add_everything(comparison)


@pytest.fixture
def comparison() -> dict[str, Any]:
    return copy.deepcopy(make_comparison())


@pytest.fixture
def hostile_text() -> str:
    return HOSTILE


@pytest.fixture
def nine_arms(comparison: dict[str, Any]) -> dict[str, Any]:
    """The base, seven methods, one of them unknown to us, and one arm that failed."""
    names = {
        "ipo": "IPO",
        "simpo": "SimPO",
        "cpo": "CPO",
        "novel": "A method nobody has named so far, at length",
    }
    for place, (key, name) in enumerate(names.items(), start=1):
        comparison["arms"][key] = make_arm(name, key, 0.18 * place)
    comparison["arms"]["rpo"] = {"name": "RPO", "error": "out of memory at step 3 <b>of 40</b>"}
    return comparison


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a comparison and its completions as a run folder, and give the folder."""

    def write(comparison: dict[str, Any], completions: list[dict[str, Any]] | None = None) -> Path:
        if completions is None:
            completions = make_completions(comparison["arms"])
        (tmp_path / "compare.json").write_text(json.dumps(comparison), encoding="utf-8")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in completions)
        (tmp_path / "completions.jsonl").write_text(lines, encoding="utf-8")
        return tmp_path

    return write
