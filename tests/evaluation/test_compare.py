"""The comparison end to end on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thumbtune.data.formats import rows_from_dataset
from thumbtune.data.synth.users import Sample, SimulatedUsers, parse_taste
from thumbtune.engine.loading import load_model_and_tokenizer
from thumbtune.errors import ConfigError
from thumbtune.evaluation.arms import Bench
from thumbtune.evaluation.compare import Request, compare, plan_arms
from thumbtune.evaluation.conditions import parse_sweep
from thumbtune.evaluation.judge import Sampling
from thumbtune.evaluation.judges import CheckerJudge, UsersJudge, VotesJudge
from thumbtune.evaluation.pairs_bought import buy_pairs, name_bought, plan_bought
from thumbtune.evaluation.price_of_pairs import _run_fewer_thumbs
from thumbtune.evaluation.report import write_report

USERS = SimulatedUsers(parse_taste("brevity:24"))
SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "disable_tqdm": True,
}


@contextmanager
def on_stage(name: str) -> Iterator[Any]:
    yield lambda done, total, note="": None


def make_pool(n_prompts: int = 8) -> list[list[Sample]]:
    return [
        [
            Sample(f"Question {i}?", f"A short answer {i}." if k else "long " * 30, 4 if k else 30, bool(k))
            for k in range(2)
        ]
        for i in range(n_prompts)
    ]


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.setenv("THUMBTUNE_CACHE", str(tmp_path / "cache"))
    pool = make_pool()
    rows = [
        {
            "prompt": [{"role": "user", "content": sample.prompt}],
            "completion": [{"role": "assistant", "content": sample.text}],
            "label": USERS.truth(sample),
        }
        for samples in pool
        for sample in samples
    ]
    return Request(
        model_name="tiny",
        rows=rows_from_dataset(rows, source="thumbs"),
        held_out=["One?", "Two?", "Three?"],
        users=USERS,
        out=tmp_path / "run",
        pool=pool,
        settings={"kto": SETTINGS, "dpo": SETTINGS},
        lora={"r": 4},
        sampling=Sampling(samples_per_prompt=2, max_new_tokens=6),
        pair_cost=2,
        title="a test",
    )


def test_all_arms_are_trained_judged_and_reported_and_the_base_is_handed_back(
    request_of: Request, tiny_model_path: Path
) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = compare(request_of, model, tokenizer, on_stage)
    assert list(content["arms"]) == ["base", "kto", "dpo", "dpo_bought"]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    kto = content["arms"]["kto"]
    assert kto["up_rate"]["n"] == 6
    assert kto["up_rate"]["low"] <= kto["up_rate"]["mean"] <= kto["up_rate"]["high"]
    assert [point["step"] for point in kto["curve"]] == [1, 2]
    assert kto["peak_rss_mb"] > 100
    assert content["arms"]["dpo"]["spent"]["pairs"] == 8
    assert (
        content["arms"]["dpo_bought"]["spent"] | {"bought": 8, "tied": 0}
        == content["arms"]["dpo_bought"]["spent"]
    )
    assert json.loads((request_of.out / "compare.json").read_text())["arms"]["kto"]["auc"] == kto["auc"]
    assert len((request_of.out / "completions.jsonl").read_text().splitlines()) == 3
    assert "Two?" in write_report(request_of.out).read_text()


def test_started_again_it_repeats_no_work_and_gives_the_same_numbers(
    request_of: Request, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    first = compare(request_of, model, tokenizer, on_stage)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr("thumbtune.training.trainer.PreferenceTrainer.train", refuse)
    monkeypatch.setattr("thumbtune.evaluation.judge.sample_completions", refuse)
    again = compare(request_of, model, tokenizer, on_stage)
    assert json.loads(json.dumps(again["arms"])) == json.loads(json.dumps(first["arms"]))


def test_before_training_the_log_ratios_and_the_kl_are_zero(
    request_of: Request, tiny_model_path: Path
) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    still = {name: SETTINGS | {"learning_rate": 0.0} for name in ("kto", "dpo")}
    content = compare(replace(request_of, settings=still), model, tokenizer, on_stage)
    assert content["arms"]["kto"]["kl_per_token"]["mean"] == pytest.approx(0.0, abs=1e-5)
    assert content["arms"]["kto"]["gain"]["mean"] == 0
    assert content["arms"]["kto"]["length"]["mean"] == content["arms"]["base"]["length"]["mean"]


def test_an_arm_of_other_code_is_another_arm(request_of: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = plan_arms(replace(request_of, methods=("kto",)))
    bench = Bench(None, None, "base", ["One?"], request_of.sampling, {}, request_of.out, on_stage)
    before = bench.name_arm(plan, 0)
    assert bench.name_arm(plan, 0) == before
    monkeypatch.setattr("thumbtune.evaluation.arms._digest_training", lambda: "other code")
    assert bench.name_arm(plan, 0) != before


def test_an_arm_that_is_refused_is_reported_and_the_others_go_on(
    request_of: Request, tiny_model_path: Path
) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    up_only = [e for e in request_of.rows.examples if e.label]
    rows = replace(request_of.rows, examples=up_only)
    content = compare(replace(request_of, rows=rows, pool=()), model, tokenizer, on_stage)
    assert "no pair" in content["arms"]["dpo"]["error"]
    assert content["arms"]["kto"]["up_rate"]["n"] == 6
    assert any("failed" in sentence for sentence in content["verdict"])


@pytest.fixture
def asking_for_all(request_of: Request) -> Request:
    """Two methods with two trials each, two sweeps, a crossing."""
    start = SETTINGS | {"beta": 0.1}
    return replace(
        request_of,
        methods=("kto", "dpo", "simpo"),
        seeds=(0, 1),
        settings={"kto": start, "dpo": start, "simpo": start},
        validation=["Four?", "Five?"],
        trials=2,
        sweeps=[parse_sweep("noise=0,0.2@12"), parse_sweep("per-prompt=1")],
        pair_counts=(2, 4, 8),
        pair_cost=4,
    )


def test_a_search_sweeps_and_a_crossing_are_run_told_and_not_repeated(
    asking_for_all: Request, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    told: list[Any] = []
    content = compare(
        asking_for_all,
        model,
        tokenizer,
        on_stage,
        on_sizes=told.append,
        on_arm=lambda *progress: told.append(progress),
    )
    sizes, *arms = told
    # 3 methods and DPO's bought pairs with 2 seeds: 8; 2 sweeps: noise 2 conditions and per-prompt 1, 2 methods, 2
    # seeds: 12; crossing 3 x 2, of which 4 pairs are the table's: 4; search of 3 methods and 3 numbers of pairs: 12
    assert (sizes.arms, sizes.done) == (36, 0)
    assert sizes.completions == 24 * 6 + 12 * 4
    assert arms[-1][0] <= sizes.arms
    assert arms[-1][2] >= 0.0
    search = content["search"]
    arms_of = {"kto": "kto", "dpo": "dpo", "simpo": "simpo", "dpo, 4 pairs bought": "dpo_bought"}
    assert {name: len(trials) for name, trials in search.items()} == dict.fromkeys(
        [*arms_of, "dpo, 2 pairs bought", "dpo, 8 pairs bought"], 2
    )
    for searched, arm in arms_of.items():
        (taken,) = (trial for trial in search[searched] if trial["chosen"])
        assert content["arms"][arm]["config"]["learning_rate"] == taken["settings"]["learning_rate"]
    noise, per_prompt = content["sweeps"]
    assert [point["label"] for point in noise["points"]] == ["0% wrong", "20% wrong"]
    assert noise["points"][1]["arms"]["kto"]["rows"] == 12
    assert {"lead"} <= noise["points"][0].keys()
    assert "no pair" in per_prompt["points"][0]["arms"]["dpo"]["error"]
    crossing = content["crossing"]
    assert [point["labels"] for point in crossing["points"]] == [8, 16, 32]
    # KTO on all thumbs, and on the 12 that the sweep drew without noise
    assert [level["labels"] for level in crossing["levels"]] == [12, 16]
    assert crossing["levels"][0]["up_rate"] == noise["points"][0]["arms"]["kto"]["up_rate"]
    assert crossing["levels"][1]["up_rate"]["mean"] == content["arms"]["kto"]["up_rate"]["mean"]
    kto = content["arms"]["kto"]
    outcomes = kto["outcomes"]
    assert outcomes["wins"] + outcomes["ties"] + outcomes["losses"] == 3
    assert len(kto["by_seed"]) == 2
    assert 0 <= kto["gain"]["p_value"] <= 1

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr("thumbtune.training.trainer.PreferenceTrainer.train", refuse)
    monkeypatch.setattr("thumbtune.evaluation.judge.sample_completions", refuse)
    monkeypatch.setattr(
        "thumbtune.evaluation.arms.score_samples", lambda m, t, p, s: [[0.0] * len(r) for r in s]
    )
    again: list[Any] = []
    repeated = compare(asking_for_all, model, tokenizer, on_stage, on_sizes=again.append)
    assert again[0].arms - again[0].done == 2  # DPO on one completion per prompt, refused anew with each seed
    assert again[0].rows == 0
    for part in ("search", "sweeps", "crossing"):
        assert json.loads(json.dumps(repeated[part])) == json.loads(json.dumps(content[part]))


def test_each_number_of_bought_pairs_has_the_settings_searched_for_it(request_of: Request) -> None:
    asked = replace(request_of, settings={"dpo": {"beta": 0.1}, name_bought(4): {"beta": 0.3}})
    assert plan_bought(asked, 4, "DPO")[0].settings == {"beta": 0.3}
    assert plan_bought(asked, 8, "DPO")[0].settings == {"beta": 0.1}


def test_a_crossing_takes_from_the_sweeps_what_has_fewer_thumbs_and_nothing_else(request_of: Request) -> None:
    sweeps = [parse_sweep(text) for text in ("noise=0,0.3@12", "ratio=1:1@8", "rows=4,9", "per-prompt=1")]

    class Recording:
        request = replace(request_of, sweeps=sweeps)

        def run_under(self, condition: Any, method: str) -> Any:
            return [], [f"{method}, {condition.name}"]

    assert _run_fewer_thumbs(Recording()) == {  # type: ignore[arg-type,comparison-overlap]
        12: ["kto, 12 thumbs"],
        4: ["kto, 4 thumbs"],
        9: ["kto, 9 thumbs"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("kto", "dqo")}, "unknown method 'dqo'"),
        ({"held_out": ["One?"]}, "1 held-out prompts"),
        ({"validation": []}, "a search needs prompts of its own"),
        ({"pool": ()}, "a crossing holds bought pairs against KTO"),
        ({"pair_counts": (2, 9)}, "the samples hold 8 pairs"),
        ({"pair_counts": (4,)}, "at least two numbers of bought pairs"),
        ({"methods": ("kto", "simpo")}, "samples for bought pairs are for DPO"),
        ({"sweep_methods": ("kto", "orpo")}, "whose settings were searched"),
        ({"users": None}, "bought pairs need users"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    asking_for_all: Request, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(replace(asking_for_all, **change), None, None, on_stage)


def test_held_out_votes_alone_rank_the_methods_without_a_sample(
    request_of: Request, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "thumbtune.evaluation.judge.sample_completions", lambda *a, **k: pytest.fail("sampled")
    )
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    held = rows_from_dataset(
        [
            {"prompt": f"Held out {i // 2}?", "completion": f"word {i}", "label": bool(i % 2)}
            for i in range(8)
        ],
        source="votes",
    )
    asked = replace(
        request_of,
        users=None,
        judge=VotesJudge("votes"),
        voted=held.examples,
        held_out=[],
        pool=(),
        methods=("kto",),
    )
    content = compare(asked, model, tokenizer, on_stage)
    kto = content["arms"]["kto"]
    assert kto["up_rate"] is None
    assert kto["auc"]["n"] == 8
    assert "ranks held-out 👍 above 👎 with an AUC of" in content["verdict"][0]
    assert not (request_of.out / "completions.jsonl").exists()
    page = write_report(request_of.out).read_text()
    assert "the held-out votes in votes" in page
    with pytest.raises(ConfigError, match="held-out votes alone rank methods"):
        compare(replace(asked, trials=2, validation=["a", "b"]), model, tokenizer, on_stage)


def test_a_judge_that_judges_nothing_is_refused_with_its_reason(
    request_of: Request, tiny_model_path: Path
) -> None:
    def check(prompt: str, completion: str) -> bool:
        return bool(1 / 0)

    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    broken = replace(request_of, judge=CheckerJudge(check, "broken.py:check"))
    with pytest.raises(ConfigError, match=r"judged none .*ZeroDivisionError"):
        compare(broken, model, tokenizer, on_stage)


def test_a_judge_s_outage_ends_the_comparison_and_what_is_unjudged_is_one_arm_s_error(
    request_of: Request, tiny_model_path: Path
) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    asked = replace(request_of, pool=(), methods=("kto",))

    class Failing(UsersJudge):
        def judge(self, prompts: Any, samples: Any, base: Any) -> Any:
            if samples is not base:
                raise ConfigError("the judge gave no answer")
            return super().judge(prompts, samples, base)

    class Silent(UsersJudge):
        def judge(self, prompts: Any, samples: Any, base: Any) -> Any:
            said = super().judge(prompts, samples, base)
            return said if samples is base else [[None for _ in row] for row in samples]

    with pytest.raises(ConfigError, match="gave no answer"):
        compare(replace(asked, judge=Failing(USERS)), model, tokenizer, on_stage)
    content = compare(replace(asked, judge=Silent(USERS)), model, tokenizer, on_stage)
    assert "judged none of its completions" in content["arms"]["kto"]["error"]


def test_the_budget_buys_its_pairs_and_counts_ties_and_an_empty_pool() -> None:
    pairs, counts = buy_pairs(make_pool(8), USERS, labels=20, pair_cost=5, seed=0)
    assert len(pairs) == 4
    assert counts == {"bought": 4, "tied": 0, "missing": 0}
    assert all(pair.chosen[0]["content"].startswith("A short") for pair in pairs)
    alike = [[samples[1], samples[1]] for samples in make_pool(3)]
    assert buy_pairs(alike, USERS, labels=20, pair_cost=5, seed=0)[1] == {
        "bought": 0,
        "tied": 3,
        "missing": 1,
    }
