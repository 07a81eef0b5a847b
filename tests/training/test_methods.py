"""Every method of the family: each setting is felt or refused, no reference where none is used, no cut is seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from thumbtune.errors import CheckpointError, ConfigError
from thumbtune.preference.reference_point import RewardShift
from thumbtune.training.config import PreferenceConfig
from thumbtune.training.methods import METHODS, PAIR_TERMS, Scores
from thumbtune.training.settings import build_config, list_own_fields

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

REFERENCE_FREE = [name for name, method in METHODS.items() if not method.uses_reference(method.config)]
KTO_TYPES = (
    "kto",
    "kto_thresholds",
    "kto_prospect",
    "kto_logsigmoid",
    "kto_reference_free",
    "apo_zero_unpaired",
)
VARIANTS = [
    *[("kto", {"loss_type": name}) for name in KTO_TYPES],
    ("kto", {"reference_point_decay": 0.5}),
    ("kto", {"desirable_flip_rate": 0.2, "undesirable_flip_rate": 0.1}),
    *[(name, {}) for name in METHODS if name != "kto"],
    ("dpo", {"loss_type": ["sigmoid", "sft"]}),
    ("ipo", {"length_normalized": False}),
]
VARIANT_IDS = [" ".join([name, *map(str, settings.values())]) for name, settings in VARIANTS]


def scores_of(config: Any) -> Scores:
    """What a loss might see somewhere in training: six branches, nothing at zero."""
    method = METHODS[config.method]
    log_ratio = torch.tensor([3.0, -2.0, 1.5, -4.0, 0.5, 2.5])
    log_probs = torch.tensor([-9.0, -20.0, -4.0, -16.0, -7.0, -30.0])
    return Scores(
        log_probs=log_probs,
        log_ratio=log_ratio if method.uses_reference(config) else log_probs,
        n_tokens=torch.tensor([4.0, 8.0, 3.0, 6.0, 7.0, 12.0]),
        desirable=torch.tensor([True, True, True, False, False, False]),
        reference_point=torch.tensor(0.0 if method.reference_point(config) == "none" else 0.7),
        mean_chosen_tokens=torch.tensor(5.0),
    )


def loss_of(method: str, **settings: Any) -> float:
    config = build_config(method, {"output_dir": "unused", **settings})
    return float(METHODS[method].loss(config, scores_of(config)).mean())


# ---- no setting is ignored

MUTATIONS: dict[str, Any] = {
    "beta": 0.37,
    "desirable_weight": 1.7,
    "undesirable_weight": 1.7,
    "desirable_flip_rate": 0.2,
    "undesirable_flip_rate": 0.2,
    "z_yes": 0.4,
    "z_no": 0.4,
    "prospect_alpha": 0.5,
    "loss_aversion": 3.0,
    "label_smoothing": 0.2,
    "loss_weights": [0.5],
    "length_normalized": False,
    "rpo_alpha": 0.3,
    "cpo_alpha": 0.3,
    "simpo_gamma": 0.3,
}
MOVES_THE_ZERO = {"reference_point_decay": 0.5, "reward_shift_decay": 0.5}
"""Felt from the second batch on: `test_averages_of_the_zero_…`."""
SAME_AT_A_THRESHOLD_OF_ZERO = {"kto_thresholds", "apo_zero_unpaired"}
CHANGES_NO_LOSS = {field.name for field in dataclasses.fields(PreferenceConfig)} - {"beta"} | {
    "precompute_ref_log_probs",
    "reference_cache",
    "reference_max_tokens",
    "precompute_ref_batch_size",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "max_pairs_per_prompt",
    "one_per_prompt",
}
"""Read by the trainer, the engine and the rows, not by a loss: `test_every_field.py` asks what becomes of each."""


def list_cases() -> list[tuple[str, str, str | list[str]]]:
    """(method, loss type, field): each field under each loss type of its method."""
    cases = []
    for name, method in METHODS.items():
        own = {field for field, _, _ in list_own_fields(method.config)} - CHANGES_NO_LOSS
        types: tuple[Any, ...] = {
            "kto": KTO_TYPES,
            "dpo": ("sigmoid", "ipo", "apo_zero", "bco_pair", ["sigmoid", "sft"]),
        }.get(name, ("",))
        cases += [(name, kind, field) for kind in types for field in sorted(own)]
    return cases


@pytest.mark.parametrize(("method", "loss_type", "field"), list_cases())
def test_changing_any_setting_of_a_method_changes_its_loss_or_is_refused(
    method: str, loss_type: Any, field: str
) -> None:
    given = {"loss_type": loss_type} if loss_type else {}
    before = loss_of(method, **given)
    if field == "loss_type":
        for name, other, _ in list_cases():
            pair = {str(other), str(loss_type)}
            if name == method and len(pair) == 2 and pair != SAME_AT_A_THRESHOLD_OF_ZERO:
                assert loss_of(method, loss_type=other) != pytest.approx(before, abs=1e-6), other
        return
    value = (MUTATIONS | MOVES_THE_ZERO)[field]
    if field == "loss_weights":
        value = [0.5] if isinstance(loss_type, str) else [0.5, 0.25]
    try:
        after = loss_of(method, **given, **{field: value})
    except ConfigError as error:
        assert field in str(error)  # noqa: PT017 - refused is as good as felt
        return
    if field in MOVES_THE_ZERO:
        assert METHODS[method].reference_point(build_config(method, {"output_dir": "u", **given})) != "none"
    else:
        assert after != pytest.approx(before, abs=1e-6)


# ---- worked by hand: what is made of several functions


def score(
    log_ratio: list[float],
    labels: list[bool],
    *,
    log_probs: list[float] | None = None,
    n_tokens: list[int] | None = None,
    mean_chosen_tokens: float = 1.0,
    reference_point: float = 0.0,
) -> Scores:
    return Scores(
        log_probs=torch.tensor(log_probs or log_ratio),
        log_ratio=torch.tensor(log_ratio),
        n_tokens=torch.tensor(n_tokens or [1] * len(labels)).float(),
        desirable=torch.tensor(labels),
        reference_point=torch.tensor(reference_point),
        mean_chosen_tokens=torch.tensor(mean_chosen_tokens),
    )


def losses_of(method: str, scores: Scores, **settings: Any) -> list[float]:
    config = build_config(method, {"output_dir": "unused", **settings})
    return METHODS[method].loss(config, scores).tolist()


def test_rpo_is_dpo_and_alpha_times_the_likelihood_worked_by_hand() -> None:
    # β = 0.1, α = 0.5; chosen completions of 4 and 8 tokens, 6 on average, of −12 and −4 nats
    # first pair: −log σ(0.1 × (6 − (−4))) = −log σ(1) = 0.313262, and 0.5 × 12 / 6 = 1: 1.313262
    # second pair: −log σ(0) = 0.693147, and 0.5 × 4 / 6 = 0.333333: 1.026480
    pairs = score(
        [6.0, 2.0, -4.0, 2.0],
        [True, True, False, False],
        log_probs=[-12.0, -4.0, -30.0, -50.0],
        n_tokens=[4, 8, 5, 5],
        mean_chosen_tokens=6.0,
    )
    assert losses_of("rpo", pairs, beta=0.1, rpo_alpha=0.5) == pytest.approx([1.313262, 1.026480], abs=1e-6)


def test_orpo_is_the_likelihood_and_beta_times_the_odds_worked_by_hand() -> None:
    # λ = β = 0.5; a chosen completion of 4 tokens at p = 0.5 each, in a batch of 5 chosen tokens on average:
    # 4 × log 2 / 5 = 0.554518. Odds 1 against 0.25 of a rejected one of 2 tokens at p = 0.2: −log σ(log 4) =
    # log(1 + 1/4) = 0.223144, half of it 0.111572; together 0.666089
    pair = score(
        [0.0, 0.0],
        [True, False],
        log_probs=[4 * math.log(0.5), 2 * math.log(0.2)],
        n_tokens=[4, 2],
        mean_chosen_tokens=5.0,
    )
    assert losses_of("orpo", pair, beta=0.5) == pytest.approx([0.666089], abs=1e-6)


def test_apo_zero_on_single_thumbs_worked_by_hand() -> None:
    # β = 0.1, weights 1 and 3, zero at the reference. 👍 at r = 10: 1 − σ(1) = 0.268941
    # 👎 at r = 10: 3 × (1 − σ(−1)) = 3 × 0.731059 = 2.193176
    thumbs = score([10.0, 10.0], [True, False])
    found = losses_of("kto", thumbs, loss_type="apo_zero_unpaired", beta=0.1, undesirable_weight=3.0)
    assert found == pytest.approx([0.268941, 2.193176], abs=1e-6)


def test_bco_on_single_thumbs_worked_by_hand() -> None:
    # the batch before: 👍 at 4, 👎 at −2, so that the zero lies halfway, at 1. β = 0.1, weights 1 and 2
    # 👍 at r = 11: −log σ(0.1 × (11 − 1)) = −log σ(1) = 0.313262
    # 👎 at r = 11: 2 × −log σ(−1) = 2 × 1.313262 = 2.626523
    shift = RewardShift(0.9)
    shift.update(torch.tensor([4.0, -2.0]), torch.tensor([True, False]))
    thumbs = score([11.0, 11.0], [True, False], reference_point=shift.value)
    found = losses_of("bco", thumbs, beta=0.1, undesirable_weight=2.0)
    assert found == pytest.approx([0.313262, 2.626523], abs=1e-6)


# ---- what is refused


def test_a_setting_of_another_method_is_unknown() -> None:
    for method, field in (
        ("simpo", "reference_cache"),
        ("cpo", "sync_ref_model"),
        ("orpo", "label_smoothing"),
        ("ipo", "rpo_alpha"),
        ("bco", "z_yes"),
        ("dpo", "desirable_weight"),
    ):
        with pytest.raises(ConfigError, match=f"unknown setting '{field}' of method {method}"):
            build_config(method, {"output_dir": "unused", field: 1})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("kto", {"loss_type": "kto_treshold"}, "'kto', 'kto_thresholds'"),
        ("kto", {"reference_point_decay": 1.0}, "between 0 and 1"),
        ("kto", {"loss_type": "kto_reference_free", "sync_ref_model": True}, "has no reference model"),
        ("kto", {"desirable_flip_rate": 0.6, "undesirable_flip_rate": 0.4}, "add up to 1 or more"),
        ("kto", {"desirable_flip_rate": -0.1}, "a share from 0 on"),
        ("bco", {"reward_shift_decay": 1.0}, "from 0 to below 1"),
        ("dpo", {"loss_type": ["sft"]}, "learns nothing from the rejected"),
        ("dpo", {"loss_type": ["sigmoid", "sigmoid"]}, "each once"),
        ("dpo", {"loss_type": "hinge"}, "'bco_pair' or 'sft'"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "one for each of"),
        ("dpo", {"loss_weights": [0.0]}, "numbers above 0"),
        ("dpo", {"loss_type": "ipo", "label_smoothing": 0.1}, "of 'sigmoid' alone"),
        ("rpo", {"rpo_alpha": 0}, "a number above 0"),
        ("simpo", {"simpo_gamma": -1.0}, "0 or more"),
        ("cpo", {"label_smoothing": 0.5}, r"a share in \[0, 0.5\)"),
        ("ipo", {"ref_model_mixup_alpha": 0.5}, "no effect without sync_ref_model"),
        ("kto", {"loss_type": "kto_reference_free", "reference_max_tokens": 5}, "has no reference model"),
        (
            "kto",
            {"desirable_flip_rate": "auto", "one_per_prompt": True},
            "one_per_prompt keeps one of each prompt",
        ),
        ("orpo", {"max_pairs_per_prompt": 0}, "1 at least, or None for no cap"),
    ],
)
def test_impossible_settings_are_refused(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(method, {"output_dir": "unused", **settings})


def test_every_term_of_the_pair_losses_is_used_by_some_method() -> None:
    used = {
        name
        for method, settings in VARIANTS
        if METHODS[method].paired
        for name in build_config(method, {"output_dir": "unused", **settings}).terms  # type: ignore[attr-defined]
    }
    for kind in ("ipo", "apo_zero", "bco_pair"):
        used |= set(build_config("dpo", {"output_dir": "unused", "loss_type": kind}).terms)  # type: ignore[attr-defined]
    assert used == set(PAIR_TERMS)


# ---- what each run does


WHOLE = {"per_device_train_batch_size": 4}
CUTS: list[dict[str, Any]] = [
    WHOLE | {"engine": "packed"},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "engine": "packed"},
    WHOLE | {"max_tokens_per_microbatch": 120, "engine": "padded"},
]


@pytest.mark.parametrize(("method", "settings"), VARIANTS, ids=VARIANT_IDS)
@pytest.mark.parametrize("with_adapter", [False, True], ids=["all weights", "adapter"])
def test_neither_the_cut_nor_the_engine_changes_a_step(
    lab: Any, method: str, settings: dict[str, Any], with_adapter: bool
) -> None:
    """Against a reference that is another model, so that no log ratio is zero, where prospect theory's value bends;
    and with plain gradient descent, since AdamW takes a step of one size for a gradient of rounding alone."""
    reference = lab.model()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1)
    uses_reference = METHODS[method].uses_reference(lab.config(method, **settings))
    ends = []
    for cut in CUTS:
        trainer = lab.trainer(
            method,
            adapter=lab.lora() if with_adapter else None,
            given={"ref_model": reference} if uses_reference else {},
            **{"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, **cut, **settings},
        )
        trainer.train()
        ends.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(set(ends[0])) == 3
    assert ends[0] == pytest.approx(ends[1], rel=2e-5, abs=1e-6)
    assert ends[0] == pytest.approx(ends[2], rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("method", [*REFERENCE_FREE, "kto"])
def test_without_a_reference_there_is_no_reference_pass(
    lab: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"loss_type": "kto_reference_free"} if method == "kto" else {}
    monkeypatch.setattr(
        "thumbtune.training.reference_pass.reference_log_probs", lambda *a, **k: pytest.fail("it was scored")
    )
    held_out = lab.pairs(4) if METHODS[method].paired else lab.thumbs(4)
    trainer = lab.trainer(method, max_steps=2, given={"eval_dataset": held_out}, **settings)
    trainer.train()
    assert trainer.build_manifest()["model"]["reference"] == "none"
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.evaluate(held_out)["eval_loss"] > 0
    with pytest.raises(ConfigError, match="has no reference: leave it out"):
        lab.trainer(method, given={"ref_model": lab.model()}, **settings)


def test_three_methods_have_no_reference() -> None:
    assert REFERENCE_FREE == ["simpo", "cpo", "orpo"]


def test_a_reference_free_zero_is_the_mean_log_prob_of_lent_completions(lab: Any) -> None:
    trainer = lab.trainer(loss_type="kto_reference_free", max_steps=1, learning_rate=0.0)
    trainer.train()
    plan = next(iter(trainer.plan.batches(0)))
    lent = [trainer.train_dataset.rows.mismatched_branch(planned) for planned in plan]
    expected = trainer.path.score(trainer.model, lent, max_tokens=4096).mean()
    assert trainer.state.log_history[0]["z0"] == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) < -1  # a log-prob, and not clamped


# ---- averages of the zero


def test_averages_of_the_zero_follow_the_batches_and_survive_a_checkpoint(lab: Any) -> None:
    for method, settings, name in (
        ("kto", {"reference_point_decay": 0.5}, "z0"),
        ("bco", {"reward_shift_decay": 0.5}, "reward_shift"),
    ):
        quiet = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, **settings}
        whole = lab.trainer(method, **quiet, output_dir=str(lab.folder / f"{method} whole"))
        whole.train()
        resumed = lab.trainer(method, **quiet, output_dir=str(lab.folder / f"{method} whole"))
        resumed.train(resume_from_checkpoint=str(lab.folder / f"{method} whole" / "checkpoint-3"))
        assert resumed._moving_point.value == whole._moving_point.value
        told = [entry[name] for entry in whole.state.log_history if name in entry]
        assert len(told) == 6
        assert len(set(told)) > 3
        for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_an_averaged_z0_is_half_of_what_was_and_half_of_what_is(lab: Any) -> None:
    """With the weights held still by a learning rate of zero, but moved off the reference by hand: to where lent
    completions are likelier, since a z0 clamped at zero would tell nothing."""
    seen: dict[float | None, list[float]] = {}
    for decay in (None, 0.5):
        trainer = lab.trainer(learning_rate=0.0, num_train_epochs=2, reference_point_decay=decay)
        trainer._score_references()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(0.5)
        trainer.train()
        seen[decay] = [entry["z0"] for entry in trainer.state.log_history if "z0" in entry]
    plain, averaged = seen[None], seen[0.5]
    assert min(plain) > 0.1
    assert max(plain) - min(plain) > 0.02
    expected = [plain[0]]
    for value in plain[1:]:
        expected.append(0.5 * expected[-1] + 0.5 * value)
    assert averaged == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_reward_shift_of_a_step_is_of_the_batches_before_it(lab: Any) -> None:
    """BCO's first step stands at −log σ(0) = log 2 for each row, whatever the batch will show."""
    trainer = lab.trainer("bco", max_steps=2)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(0.693147, rel=1e-5)
    assert first["reward_shift"] == 0.0
    assert trainer.state.log_history[1]["reward_shift"] != 0.0


def test_a_checkpoint_that_is_not_there_is_refused(lab: Any) -> None:
    other = lab.trainer("kto", max_steps=2)
    with pytest.raises((ConfigError, CheckpointError)):
        other.train(resume_from_checkpoint=str(lab.folder / "nowhere"))


# ---- weights


def test_a_row_of_twice_the_weight_counts_as_two_rows(lab: Any) -> None:
    """Summed over the batch: BCO's zero and KTO's thresholds do not see how often a row stands there."""
    rows = lab.thumbs(4)
    doubled = [{**row, "weight": 2.0 if i == 1 else 1.0} for i, row in enumerate(rows)]
    repeated = [*rows, rows[1]]
    losses = []
    for given in (doubled, repeated):
        trainer = lab.trainer(
            rows=given,
            loss_type="kto_thresholds",
            per_device_train_batch_size=8,
            learning_rate=0.0,
            max_steps=1,
        )
        trainer._score_references()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"] * len(given))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_weights_come_through_pairs_both_ways(lab: Any) -> None:
    thumbs = [{**row, "weight": 0.5 + i} for i, row in enumerate(lab.thumbs(4))]
    paired = lab.trainer("dpo", rows=thumbs)
    assert paired.train_dataset.rows.weights.tolist() == [0.5, 2.5]  # the lighter half's
    pairs = [{**row, "weight": 3.0} for row in lab.pairs(2)]
    assert lab.trainer("kto", rows=pairs).train_dataset.rows.weights.tolist() == [3.0] * 4


# ---- which rows


def test_a_prompt_gives_no_more_pairs_than_it_may_from_thumbs_and_from_pairs(lab: Any) -> None:
    thumbs = [
        {"prompt": f"question {i}?", "completion": f"answer {k}", "label": bool(k % 2)}
        for i in range(2)
        for k in range(6)
    ]
    trainer = lab.trainer("dpo", rows=thumbs, max_pairs_per_prompt=2)
    assert len(trainer.train_dataset) == 4
    assert trainer.train_dataset.rows.counts["not paired: over_cap"] == 4
    pairs = [
        {"prompt": f"question {i}?", "chosen": f"yes {k}", "rejected": "no"}
        for i in range(2)
        for k in range(3)
    ]
    capped = lab.trainer("simpo", rows=pairs, max_pairs_per_prompt=1)
    assert len(capped.train_dataset) == 2
    assert capped.train_dataset.rows.counts["left out: over_cap"] == 4
    held_out = lab.trainer("simpo", rows=pairs, max_pairs_per_prompt=1, given={"eval_dataset": pairs})
    assert len(held_out.eval_dataset) == 6  # all of them are judged


def test_the_first_argument_of_every_config_is_its_folder() -> None:
    for method in METHODS.values():
        assert method.config("somewhere").output_dir == "somewhere"


def test_a_list_of_losses_can_be_given_at_the_command_line() -> None:
    config = build_config(
        "dpo", {"output_dir": "u", "loss_type": '["sigmoid", "sft"]', "loss_weights": "[1.0, 0.5]"}
    )
    assert config.terms == {"sigmoid": 1.0, "sft": 0.5}  # type: ignore[attr-defined]


def test_a_finished_run_of_bco_is_evaluated_at_the_zero_that_it_ended_with(lab: Any) -> None:
    from thumbtune.training.run import evaluate_run, run_training

    told = []
    for _ in range(2):  # the second finds it finished
        trainer = lab.trainer("bco", max_steps=3, given={"eval_dataset": lab.thumbs(6)})
        told.append(evaluate_run(trainer, run_training(trainer)))
        assert trainer._moving_point.value != 0.0
    assert told[0]["eval_loss"] == pytest.approx(told[1]["eval_loss"], rel=1e-6)


def test_one_completion_per_prompt_from_thumbs_and_from_pairs(lab: Any) -> None:
    name = "left out: another completion of its prompt is taken"
    for rows, n_left in ((lab.thumbs(12), 6), (lab.pairs(6), 6)):
        trainer = lab.trainer(rows=rows, one_per_prompt=True)
        assert len(trainer.train_dataset) == 6
        assert len(set(trainer.train_dataset.rows.prompt_keys.tolist())) == 6
        assert trainer.train_dataset.rows.counts[name] == n_left
    seeds = {
        tuple(lab.trainer(one_per_prompt=True, seed=seed).train_dataset.rows.labels) for seed in range(4)
    }
    assert len(seeds) > 1


# ---- wrong thumbs


def test_a_flip_rate_is_estimated_from_repeated_votes(lab: Any) -> None:
    # ten completions with 3 votes each; of one the third vote differs: 2 of 30 pairs disagree, d = 1/15
    # ρ = (1 − √(1 − 2/15)) / 2 = (1 − 0.930949) / 2 = 0.034525
    rows = [
        {"prompt": f"question {i}?", "completion": "yes" if i % 2 else "no", "label": bool(i % 2) != wrong}
        for i in range(10)
        for wrong in (False, False, i == 0)
    ]
    trainer = lab.trainer(rows=rows, desirable_flip_rate="auto")
    assert trainer.args.desirable_flip_rate == pytest.approx(0.034525, abs=1e-6)
    assert trainer.args.undesirable_flip_rate == trainer.args.desirable_flip_rate
    assert "from 2 of 30 pairs of votes on one completion that disagree" in trainer.args.adjustments[0]
    with pytest.raises(ConfigError, match="no completion was voted on twice"):
        lab.trainer(undesirable_flip_rate="auto")
