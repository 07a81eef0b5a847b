"""Methods compared on one base model, the same thumbs and the same annotation budget.

Each arm is trained from the same base with the same seeds, and judged on held-out prompts. Beside the table of methods
there may be: a search of learning rate and β with as many trials for each; sweeps, which ask how the methods take
fewer, unbalanced or wrong thumbs; and a crossing, which asks how many bought pairs do as well as the thumbs. Every arm
is kept by content (`thumbtune.evaluation.arms`); started again, a comparison goes on where it stopped.

A paired method gets the pairs that these very thumbs contain; DPO also those that the same budget would have bought.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from thumbtune.data.chat import template_digest, tokenize_example
from thumbtune.data.formats import Rows
from thumbtune.data.pairs import key_prompt, pair_thumbs
from thumbtune.data.synth.users import Sample, SimulatedUsers
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.reference import fingerprint_weights
from thumbtune.errors import ConfigError, ThumbtuneError
from thumbtune.evaluation.arm_report import (
    add_leads,
    estimate_liked,
    join_liked,
    report_arm,
    report_base,
    report_comparison,
    write_completions,
)
from thumbtune.evaluation.arms import ArmError, ArmPlan, Bench, OnStage, Samples, refusing_an_arm
from thumbtune.evaluation.conditions import Condition, label, vary
from thumbtune.evaluation.judge import Sampling
from thumbtune.evaluation.judges import Judge, UsersJudge
from thumbtune.evaluation.measures import ArmScores, Votes, collect_held_out_votes, mean
from thumbtune.evaluation.pairs_bought import count_affordable, count_pairs, name_bought, plan_bought
from thumbtune.evaluation.price_of_pairs import run_crossing
from thumbtune.evaluation.search import Trial, choose, propose_settings
from thumbtune.evaluation.statistics import estimate_mean
from thumbtune.evaluation.work import Clock, OnArm, Sizes, weigh
from thumbtune.records import Example, Text
from thumbtune.training.manifest import write_json
from thumbtune.training.methods import METHODS
from thumbtune.training.run import RunResult

Arm = tuple[list[RunResult], list[ArmScores]]
"""The runs of an arm and what they say, seed by seed."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare."""

    model_name: str
    rows: Rows
    """The thumbs; their number is the annotation budget, in labels."""
    held_out: Sequence[Text]
    """Prompts that no arm trains on."""
    users: SimulatedUsers | None
    """Who voted, and who votes on held-out prompts; None where people voted, and the judge's word is taken there."""
    out: Path
    judge: Judge | None = None
    """Who judges; the users unless given."""
    pool: Sequence[Sequence[Sample]] = ()
    """Samples by training prompt, for the pairs that the budget would buy; without it that arm is left out."""
    methods: Sequence[str] = ("kto", "dpo")
    seeds: Sequence[int] = (0,)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings by method."""
    lora: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = Sampling()
    pair_cost: float = 5.0
    """Labels that one pair costs."""
    title: str = "Comparison"
    validation: Sequence[Text] = ()
    """Prompts on which settings are searched; neither trained on nor judged in a table."""
    trials: int = 1
    """Settings tried per method; 1 takes the ones given."""
    sweeps: Sequence[tuple[str, Sequence[Condition]]] = ()
    sweep_methods: Sequence[str] = ("kto", "dpo")
    voted: Sequence[Example] = ()
    """Held-out votes that alone judge; then `held_out` is not asked, and there is no search, sweep or crossing."""
    pair_counts: Sequence[int] = ()
    """How many pairs are bought for each point of the crossing; empty leaves it out."""


@dataclass
class Comparison:
    """A comparison under way."""

    request: Request
    bench: Bench
    judge: Judge
    base: ArmScores

    def run(self, plan: ArmPlan) -> Arm:
        """An arm with every seed, judged. Raises `ArmError` where it is refused."""
        return self._run([(plan, seed) for seed in self.request.seeds])

    def run_under(self, condition: Condition, method: str) -> Arm:
        """A method under a condition, each seed with rows of its own drawing, judged. Raises `ArmError`."""
        name, settings = f"{METHODS[method].name}, {condition.name}", self.request.settings.get(method, {})
        with refusing_an_arm():
            drawn = [(vary(self.request.rows, condition, seed), seed) for seed in self.request.seeds]
        return self._run([(ArmPlan(method, name, method, rows, settings), seed) for rows, seed in drawn])

    def _run(self, plans: Sequence[tuple[ArmPlan, int]]) -> Arm:
        with refusing_an_arm():
            done = [self.bench.run(plan, seed, self._base_samples) for plan, seed in plans]
        scores = [self.score(said) for _, said in done]
        if any(any(said.samples) for _, said in done) and not any(join_liked(scores)):
            raise ArmError(
                f"the {self.judge.description} judged none of its completions{self.judge.why_not()}"
            )
        return [run for run, _ in done], scores

    def score(self, said: Samples) -> ArmScores:
        """What the judge says. An outage of its is no fault of an arm: it ends the comparison, which goes on later."""
        liked = self.judge.judge(self.bench.prompts, said.samples, self.base.samples)
        return ArmScores(said.samples, liked, said.base_log_probs, said.vote_log_ratios)

    @property
    def _base_samples(self) -> Samples:
        return Samples(self.base.samples, self.base.base_log_probs, self.base.vote_log_ratios)


def compare(
    request: Request,
    model: Any,
    tokenizer: Any,
    on_stage: OnStage,
    *,
    on_sizes: Callable[[Sizes], None] | None = None,
    on_arm: OnArm | None = None,
) -> dict[str, Any]:
    """Train and judge every arm; gives the content of `compare.json`, which is written with `completions.jsonl`.

    `model` is the base and is handed back as it was. An arm that is refused is reported as an error, not left out.
    `on_sizes` is told what there is to do before it begins, `on_arm` after each arm how much of it is left.
    """
    check_request(request)
    bench = Bench(
        model=model,
        tokenizer=tokenizer,
        identity=f"{fingerprint_weights(model)} {template_digest(tokenizer)}",
        prompts=[example.prompt for example in request.voted] or request.held_out,
        voted=[_as_branch(tokenizer, example) for example in request.voted],
        sampling=request.sampling,
        lora=request.lora,
        folder=request.out,
        on_stage=on_stage,
    )
    trials = _list_trials(request, bench)
    known, found = request, None
    if all(where.is_done(plan, request.seeds[0]) for plan, where in trials):
        found = search_settings(request, bench)
        known = replace(request, settings=found[0], trials=1)
    sizes, clock = measure_work(known, bench, on_arm)
    if on_sizes is not None:
        on_sizes(sizes)
    bench = replace(bench, clock=clock)
    comparison = begin(request, bench)
    settings, search = found or search_settings(request, bench)
    request = comparison.request = replace(request, settings=settings)
    votes = (
        _read_votes(request.voted)
        if request.voted
        else collect_held_out_votes(request.users, request.held_out, comparison.base)
    )
    arms: dict[str, Any] = {"base": report_base(comparison.base)}
    scores: dict[str, list[ArmScores]] = {"base": [comparison.base]}
    for plan in plan_arms(request):
        try:
            runs, scores[plan.key] = comparison.run(plan)
        except ArmError as error:
            arms[plan.key] = {"name": plan.name, "method": plan.method, "error": str(error)}
            continue
        arms[plan.key] = report_arm(request, plan, runs, scores[plan.key], comparison.base, votes)
    add_leads(arms, scores)
    content = report_comparison(
        request,
        comparison.judge,
        arms,
        votes,
        search=search,
        sweeps=[run_sweep(comparison, over, conditions) for over, conditions in request.sweeps],
        crossing=run_crossing(comparison, scores) if request.pair_counts else None,
    )
    write_json(content, request.out / "compare.json")
    write_completions(request, scores)
    return content


def begin(request: Request, bench: Bench) -> Comparison:
    """The base, sampled and judged."""
    judge = request.judge
    if judge is None:
        if request.users is None:
            raise ConfigError("nobody judges: give users, or a judge")
        judge = UsersJudge(request.users)
    said = bench.sample_base()
    liked = judge.judge(bench.prompts, said.samples, said.samples)
    if any(said.samples) and not any(outcome is not None for row in liked for outcome in row):
        raise ConfigError(f"the {judge.description} judged none of the base's completions{judge.why_not()}")
    base = ArmScores(said.samples, liked, said.base_log_probs, said.vote_log_ratios)
    return Comparison(request, bench, judge, base)


def _as_branch(tokenizer: Any, example: Example) -> Branch:
    tokens = tokenize_example(tokenizer, example)
    return Branch(tokens.prompt_ids, tokens.completion_ids)


def _read_votes(examples: Sequence[Example]) -> Votes:
    numbers: dict[str, int] = {}
    prompts = [numbers.setdefault(key_prompt(example), len(numbers)) for example in examples]
    return Votes([example.label for example in examples], prompts, [(i, 0) for i in range(len(examples))])


def check_request(request: Request) -> None:
    """Raise `ConfigError` where something cannot be compared, before anything is trained."""
    if request.voted and (request.trials > 1 or request.sweeps or request.pair_counts):
        raise ConfigError(
            "held-out votes alone rank methods; a search, a sweep or a crossing needs another judge"
        )
    if not request.voted and len(request.held_out) < 2:
        raise ConfigError(
            f"{len(request.held_out)} held-out prompts: at least 2 are needed, 50 tell something"
        )
    for method in [*request.methods, *request.sweep_methods]:
        if method not in METHODS:
            raise ConfigError(f"unknown method '{method}': {', '.join(METHODS)}")
    if request.trials > 1 and len(request.validation) < 2:
        raise ConfigError("a search needs prompts of its own: at least 2, 20 tell something")
    if request.pool and request.users is None:
        raise ConfigError("bought pairs need users who prefer one of two completions")
    if request.pool and "dpo" not in request.methods:
        raise ConfigError("samples for bought pairs are for DPO: add 'dpo' to the methods, or leave them out")
    if request.pool and request.rows.examples and isinstance(request.rows.examples[0].prompt, str):
        raise ConfigError(
            "bought pairs are chat, and the thumbs are plain text: DPO would be trained in the format that is judged "
            "and the others not. Write the thumbs as chat messages, or leave the bought pairs out"
        )
    if request.trials > 1 and request.sweeps and not set(request.sweep_methods) <= set(request.methods):
        raise ConfigError("a sweep beside a search takes methods of the table, whose settings were searched")
    if request.pair_counts:
        if "kto" not in request.methods or not request.pool:
            raise ConfigError(
                "a crossing holds bought pairs against KTO: it needs 'kto' among the methods, and samples for the pairs"
            )
        if len(request.pair_counts) < 2:
            raise ConfigError(
                "a crossing needs at least two numbers of bought pairs: it is looked for between them"
            )
        n_pairs = count_pairs(request.pool)
        if max(request.pair_counts) > n_pairs:
            raise ConfigError(
                f"the samples hold {n_pairs} pairs, each completion used once: a crossing of "
                f"{max(request.pair_counts)} needs more samples a prompt"
            )


def plan_arms(request: Request) -> list[ArmPlan]:
    """The arms of the table, in the order of the report."""
    plans = []
    for method in request.methods:
        name, settings = METHODS[method].name, request.settings.get(method, {})
        if not METHODS[method].paired:
            plans.append(ArmPlan(method, name, method, request.rows, settings))
            continue
        plans.append(ArmPlan(method, f"{name} (pairs in the thumbs)", method, request.rows, settings))
        if request.pool and method == "dpo":
            plans += plan_bought(request, count_affordable(request), f"{name} (bought pairs)")
    return plans


def measure_work(request: Request, bench: Bench, on_arm: OnArm | None) -> tuple[Sizes, Clock]:
    """What there is to do. Settings that a search will choose are not known yet: the starting ones stand for them."""
    plans = [(plan, seed, bench) for plan in plan_arms(request) for seed in request.seeds]
    for _, conditions in request.sweeps:
        for method, condition, seed in product(request.sweep_methods, conditions, request.seeds):
            with suppress(ThumbtuneError):
                rows = vary(request.rows, condition, seed)
                settings = request.settings.get(method, {})
                plans.append((ArmPlan(method, "", method, rows, settings), seed, bench))
    for n_pairs in request.pair_counts:
        plans += [(plan, seed, bench) for plan in plan_bought(request, n_pairs, "") for seed in request.seeds]
    plans += [(plan, request.seeds[0], where) for plan, where in _list_trials(request, bench)]
    arms = {(where.name_arm(plan, seed), id(where)): (plan, seed, where) for plan, seed, where in plans}
    left = [(plan, where) for plan, seed, where in arms.values() if not where.is_done(plan, seed)]
    sizes = Sizes(
        arms=len(arms),
        done=len(arms) - len(left),
        rows=sum(count_rows(plan) for plan, _ in left),
        completions=sum(where.n_completions for _, where in left),
    )
    return sizes, Clock(len(left), weigh(sizes.rows, sizes.completions), on_arm)


def _list_trials(request: Request, bench: Bench) -> list[tuple[ArmPlan, Bench]]:
    """Every arm of the search, and where it is judged."""
    if request.trials == 1:
        return []
    validating = replace(bench, prompts=request.validation)
    return [
        (replace(plan, settings=settings), validating)
        for plan in _list_searched(request).values()
        for settings in propose_settings(plan.settings, request.trials)
    ]


def count_rows(plan: ArmPlan) -> int:
    """Rows that an arm trains: thumbs, or the pairs that are in them."""
    if not METHODS[plan.method].paired:
        return len(plan.rows.examples) or 2 * len(plan.rows.pairs)
    return len(plan.rows.pairs) or len(pair_thumbs(plan.rows.examples).pairs)


# ---- settings


def search_settings(
    request: Request, bench: Bench
) -> tuple[dict[str, Mapping[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The best settings of each method, and all that was tried; those given where nothing is searched."""
    if request.trials == 1:
        return dict(request.settings), {}
    validating = begin(request, replace(bench, prompts=request.validation))
    chosen: dict[str, Mapping[str, Any]] = {}
    tried: dict[str, list[dict[str, Any]]] = {}
    for searched, plan in _list_searched(request).items():
        trials = [
            _try(validating, replace(plan, settings=settings), request.seeds[0])
            for settings in propose_settings(plan.settings, request.trials)
        ]
        chosen[searched] = choose(trials)
        tried[searched] = [
            {
                "settings": {name: trial.settings[name] for name in ("learning_rate", "beta")},
                "up_rate": trial.up_rate.as_dict() if trial.up_rate else None,
                "error": trial.error,
                "chosen": trial.settings == chosen[searched],
            }
            for trial in trials
        ]
    return dict(request.settings) | chosen, tried


def _list_searched(request: Request) -> dict[str, ArmPlan]:
    """The arms that settings are searched on: each method's on the thumbs, and DPO's of each number of bought pairs."""
    searched = {plan.method: plan for plan in plan_arms(request) if plan.key == plan.method}
    if request.pool:
        for n_pairs in sorted({count_affordable(request), *request.pair_counts}):
            for plan in plan_bought(request, n_pairs, f"DPO ({n_pairs} pairs bought)"):
                searched[name_bought(n_pairs)] = plan
    return searched


def _try(comparison: Comparison, plan: ArmPlan, seed: int) -> Trial:
    shown = (
        f"{plan.name}, learning rate {plan.settings['learning_rate']:.2g}, beta {plan.settings['beta']:.2g}"
    )
    try:
        with refusing_an_arm():
            _, said = comparison.bench.run(plan, seed, comparison._base_samples, shown)
        scores = [comparison.score(said)]
        if not any(join_liked(scores)):
            raise ArmError("none of its completions was judged")
    except ArmError as error:
        return Trial(plan.settings, None, str(error))
    return Trial(plan.settings, estimate_liked(scores))


# ---- sweeps


def run_sweep(comparison: Comparison, over: str, conditions: Sequence[Condition]) -> dict[str, Any]:
    """Each condition with each method of the sweep, each seed with rows of its own drawing."""
    points = [
        _run_point(comparison, condition) | {"label": label(over, condition)} for condition in conditions
    ]
    return {"over": over, "methods": list(comparison.request.sweep_methods), "points": points}


def _run_point(comparison: Comparison, condition: Condition) -> dict[str, Any]:
    request = comparison.request
    point: dict[str, Any] = {"condition": condition.name, "arms": {}}
    liked: dict[str, list[list[float]]] = {}
    for method in request.sweep_methods:
        try:
            runs, scores = comparison.run_under(condition, method)
        except ArmError as error:
            point["arms"][method] = {"name": METHODS[method].name, "error": str(error)}
            continue
        liked[method] = join_liked(scores)
        point["arms"][method] = {
            "name": METHODS[method].name,
            "up_rate": estimate_liked(scores).as_dict(),
            "rows": sum(run.data["rows"] for run in runs) / len(runs),
            "steps": sum(run.steps for run in runs) / len(runs),
            "seeds": len(runs),
        }
    if len(liked) == 2:
        first, second = liked.values()
        lead = [mean(a) - mean(b) for a, b in zip(first, second, strict=True) if a and b]
        point["lead"] = estimate_mean(lead).as_dict()
    return point
