"""A planted taste is found, on three seeds each, and none is found where none was planted. Against planted noise a last
bit of a sum can turn one run around, as another seed can: claims there are of five seeds together, or have wide limits.

The taste: thumbs go up for completions that begin with an `a` and down for those with a `b`. Prompts vary, held-out
prompts and completions are other ones. Measured is the AUC of the implicit reward over 200 held-out thumbs.
"""

from __future__ import annotations

import math
import random
import string
from typing import Any

import pytest

from thumbtune.data.weights import DAY_US, recency_weight

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers 5.23 for it
)

SEEDS = (1, 2, 3)
MORE_SEEDS = (1, 2, 3, 4, 5)
HELD_OUT = 200

Runs = list[dict[str, float]]


def complete(rng: random.Random, liked: bool) -> str:
    return ("a" if liked else "b") + "".join(rng.choices(string.ascii_lowercase, k=4))


def ask(rng: random.Random, name: str) -> str:
    return f"{rng.choice(['tell', 'say', 'name'])} {name}{rng.randrange(1000)}?"


def plant_thumbs(
    seed: int, n: int, name: str, *, share_up: float = 0.5, flipped: float = 0.0, shuffled: bool = False
) -> list[dict[str, Any]]:
    """Exactly `share_up` of the rows are to the taste; then that share of thumbs is flipped, or all are shuffled."""
    rng = random.Random(f"{seed}/{name}")
    tastes = [i < round(n * share_up) for i in range(n)]
    labels = [taste != (rng.random() < flipped) for taste in tastes]
    if shuffled:
        rng.shuffle(labels)
    rows = [
        {"prompt": ask(rng, name), "completion": complete(rng, taste), "label": label}
        for taste, label in zip(tastes, labels, strict=True)
    ]
    return rng.sample(rows, n)


def plant_pairs(seed: int, n: int, name: str, *, shuffled: bool = False) -> list[dict[str, Any]]:
    rng = random.Random(f"{seed}/{name}")
    rows = []
    for i in range(n):
        liked, other = complete(rng, True), complete(rng, False)
        chosen, rejected = (other, liked) if shuffled and i % 2 else (liked, other)
        rows.append({"prompt": ask(rng, name), "chosen": chosen, "rejected": rejected})
    return rng.sample(rows, n)


def train_and_measure(
    lab: Any, method: str, rows: Any, held_out: Any, seed: int, **settings: Any
) -> dict[str, float]:
    trainer = lab.trainer(
        method,
        rows,
        seed=seed,
        given={"eval_dataset": held_out},
        **{
            "num_train_epochs": 4,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 50,
            **settings,
        },
    )
    trainer.train()
    return trainer.evaluate()


def bound_of_chance(n_up: int, n_down: int) -> float:
    """Three standard errors of the AUC of scores that know nothing (Mann and Whitney)."""
    return 3 * math.sqrt((n_up + n_down + 1) / (12 * n_up * n_down))


@pytest.mark.parametrize("seed", SEEDS)
def test_kto_finds_a_planted_taste(lab: Any, seed: int) -> None:
    rows, held_out = plant_thumbs(seed, 96, "q"), plant_thumbs(seed, HELD_OUT, "held out ")
    found = train_and_measure(lab, "kto", rows, held_out, seed)
    assert found["eval_auc"] > 0.9
    # where z0 stands high, the rewards of both may stand above zero
    assert found["eval_rewards/chosen"] > found["eval_rewards/rejected"]


@pytest.mark.parametrize("seed", SEEDS)
def test_kto_finds_nothing_in_shuffled_thumbs(lab: Any, seed: int) -> None:
    rows = plant_thumbs(seed, 96, "q", shuffled=True)
    held_out = plant_thumbs(seed, HELD_OUT, "held out ", shuffled=True)
    found = train_and_measure(lab, "kto", rows, held_out, seed)
    bound = bound_of_chance(HELD_OUT // 2, HELD_OUT // 2)
    assert bound == pytest.approx(0.12, abs=0.003)
    assert abs(found["eval_auc"] - 0.5) < bound


@pytest.mark.parametrize("seed", SEEDS)
def test_kto_finds_the_taste_among_ten_times_as_many_thumbs_down_with_a_tenth_of_them_wrong(
    lab: Any, seed: int
) -> None:
    """32 of 352 rows are to the taste; a tenth of all thumbs is flipped, so about as many 👍 are wrong as right."""
    rows = plant_thumbs(seed, 352, "q", share_up=1 / 11, flipped=0.1)
    held_out = plant_thumbs(seed, HELD_OUT, "held out ")
    found = train_and_measure(lab, "kto", rows, held_out, seed, desirable_weight="auto", num_train_epochs=2)
    assert found["eval_auc"] > 0.8  # of ten seeds one gave 0.87, the others 0.94 and more


@pytest.mark.parametrize("seed", SEEDS)
def test_dpo_finds_a_planted_taste_and_none_in_shuffled_pairs(lab: Any, seed: int) -> None:
    settings = {"num_train_epochs": 2}
    held_out = plant_pairs(seed, HELD_OUT // 2, "held out ")
    found = train_and_measure(lab, "dpo", plant_pairs(seed, 64, "q"), held_out, seed, **settings)
    assert found["eval_auc"] > 0.9
    shuffled = plant_pairs(seed, 64, "q", shuffled=True)
    none = plant_pairs(seed, HELD_OUT // 2, "held out ", shuffled=True)
    lost = train_and_measure(lab, "dpo", shuffled, none, seed, **settings)
    assert abs(lost["eval_auc"] - 0.5) < bound_of_chance(HELD_OUT // 2, HELD_OUT // 2)


def test_lora_finds_a_planted_taste_too(lab: Any) -> None:
    rows, held_out = plant_thumbs(1, 96, "q"), plant_thumbs(1, HELD_OUT, "held out ")
    trainer = lab.trainer(
        rows=rows,
        adapter=lab.lora(r=8, lora_alpha=32),
        num_train_epochs=4,
        per_device_train_batch_size=16,
        given={"eval_dataset": held_out},
    )
    trainer.train()
    assert trainer.evaluate()["eval_auc"] > 0.9


FAMILY: dict[str, dict[str, Any]] = {  # on this tiny model a loss per token pulls less than a sum does
    "ipo": {"learning_rate": 2e-2},
    "simpo": {},
    "cpo": {},
    "rpo": {},
    "orpo": {"beta": 1.0},
    "apo_zero": {},
    "bco": {"num_train_epochs": 4},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", FAMILY)
def test_each_method_of_the_family_finds_a_planted_taste_and_none_in_shuffled_rows(
    lab: Any, method: str, seed: int
) -> None:
    settings = {"num_train_epochs": 2, **FAMILY[method]}
    plant = plant_thumbs if method == "bco" else plant_pairs
    n_held_out = HELD_OUT if method == "bco" else HELD_OUT // 2
    held_out = plant(seed, n_held_out, "held out ")
    found = train_and_measure(lab, method, plant(seed, 64, "q"), held_out, seed, **settings)
    assert found["eval_auc"] > 0.9
    shuffled, none = plant(seed, 64, "q", shuffled=True), plant(seed, n_held_out, "held out ", shuffled=True)
    lost = train_and_measure(lab, method, shuffled, none, seed, **settings)
    assert abs(lost["eval_auc"] - 0.5) < bound_of_chance(HELD_OUT // 2, HELD_OUT // 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "kto_thresholds", "z_yes": 0.2, "z_no": -0.2},
        {"loss_type": "kto_prospect"},
        {"loss_type": "kto_logsigmoid"},
        {"loss_type": "kto_reference_free"},
        {"loss_type": "apo_zero_unpaired"},
        {"reference_point_decay": 0.9},
    ],
    ids=lambda settings: str(next(iter(settings.values()))),
)
def test_each_variant_of_kto_finds_the_taste_and_none_in_shuffled_thumbs(
    lab: Any, settings: dict[str, Any], seed: int
) -> None:
    for shuffled in (False, True):
        rows = plant_thumbs(seed, 96, "q", shuffled=shuffled)
        held_out = plant_thumbs(seed, HELD_OUT, "held out ", shuffled=shuffled)
        found = train_and_measure(lab, "kto", rows, held_out, seed, num_train_epochs=2, **settings)
        if shuffled:
            assert abs(found["eval_auc"] - 0.5) < bound_of_chance(HELD_OUT // 2, HELD_OUT // 2)
        else:
            assert found["eval_auc"] > 0.9


# ---- against planted noise


def test_weights_that_distrust_a_careless_voter_find_the_taste_that_equal_ones_lose(lab: Any) -> None:
    """A careful voter's 48 thumbs, and 96 of one who presses the wrong button four times out of five."""
    equal: Runs = []
    distrusting: Runs = []
    for seed in MORE_SEEDS:
        careful = plant_thumbs(seed, 48, "q")
        careless = plant_thumbs(seed, 96, "r", flipped=0.8)
        held_out = plant_thumbs(seed, HELD_OUT, "held out ")
        for weight, found in ((1.0, equal), (0.05, distrusting)):
            rows = [*careful, *({**row, "weight": weight} for row in careless)]
            found.append(train_and_measure(lab, "kto", rows, held_out, seed))
    assert average("eval_auc", distrusting) > max(0.85, average("eval_auc", equal) + 0.2)


def test_weights_by_recency_find_the_taste_of_today_where_equal_ones_find_that_of_before(lab: Any) -> None:
    """96 votes of two to four months ago, when the taste was the contrary, and 48 of the last two weeks."""
    equal: Runs = []
    by_age: Runs = []
    for seed in MORE_SEEDS:
        rng = random.Random(seed)
        aged = [(row, rng.uniform(60, 120)) for row in plant_thumbs(seed, 96, "r", flipped=1.0)]
        aged += [(row, rng.uniform(0, 15)) for row in plant_thumbs(seed, 48, "q")]
        held_out = plant_thumbs(seed, HELD_OUT, "held out ")
        weighed = [{**row, "weight": recency_weight(int(days * DAY_US), 15)} for row, days in aged]
        equal.append(train_and_measure(lab, "kto", [row for row, _ in aged], held_out, seed))
        by_age.append(train_and_measure(lab, "kto", weighed, held_out, seed))
    assert average("eval_auc", equal) < 0.5
    assert average("eval_auc", by_age) > 0.85


def average(metric: str, runs: Runs) -> float:
    return sum(run[metric] for run in runs) / len(runs)


def measure_as_right_and_equal(lab: Any, rows: Any, seed: int, **settings: Any) -> dict[str, float]:
    """Trained with the settings, measured on held-out rows whose thumbs are right, one weight each."""
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 16, **settings}
    trainer = lab.trainer(
        rows=rows,
        seed=seed,
        given={"eval_dataset": plant_thumbs(seed, HELD_OUT, "held out ")},
        per_device_eval_batch_size=50,
        **settings,
    )
    trainer.train()
    args = trainer.args
    args.desirable_flip_rate = args.undesirable_flip_rate = 0.0
    args.desirable_weight = args.undesirable_weight = 1.0
    return trainer.evaluate()


@pytest.mark.parametrize("seed", SEEDS)
def test_class_weights_raise_the_rare_taste_that_noisy_thumbs_down_drown(lab: Any, seed: int) -> None:
    """One in eleven is to the taste, and a tenth of all thumbs is wrong. With equal weights both kinds of completion
    are pushed far down, where a loss of 1/2 teaches nothing more; weights by the counts raise what deserves it, and
    tell the two apart by more. Their order is no matter of weights: the AUC is about 0.95 either way.
    """
    rows = plant_thumbs(seed, 352, "q", share_up=1 / 11, flipped=0.1)
    equal = measure_as_right_and_equal(lab, rows, seed)
    weighed = measure_as_right_and_equal(lab, rows, seed, desirable_weight="auto")
    assert equal["eval_rewards/chosen"] < -4
    assert weighed["eval_rewards/chosen"] > equal["eval_rewards/chosen"] + 2
    assert weighed["eval_rewards/margins"] > 1.5 * equal["eval_rewards/margins"]
    assert weighed["eval_loss"] < 0.9 * equal["eval_loss"]
    assert min(equal["eval_auc"], weighed["eval_auc"]) > 0.8


def press(seed: int, rows: list[dict[str, Any]], up_rate: float, down_rate: float) -> list[dict[str, Any]]:
    """Three presses of each row, each wrong by the chance of what it deserves."""
    rng = random.Random(f"{seed}/presses")
    pressed = [
        {**row, "label": row["label"] != (rng.random() < (up_rate if row["label"] else down_rate))}
        for row in rows
        for _ in range(3)
    ]
    return rng.sample(pressed, len(pressed))


def test_unequal_rates_of_wrong_thumbs_bring_back_the_taste_that_they_took(lab: Any) -> None:
    """40 % of what deserves a 👍 got a 👎, and none the other way."""
    plain: Runs = []
    told: Runs = []
    for seed in MORE_SEEDS:
        rows = press(seed, plant_thumbs(seed, 96, "q"), 0.4, 0.0)
        plain.append(measure_as_right_and_equal(lab, rows, seed))
        told.append(measure_as_right_and_equal(lab, rows, seed, desirable_flip_rate=0.4))
    assert average("eval_loss", told) < 0.8 * average("eval_loss", plain)
    assert average("eval_rewards/margins", told) > 1.5 * average("eval_rewards/margins", plain)


def test_an_estimated_rate_of_wrong_thumbs_brings_the_log_sigmoid_value_nearer_to_the_right_ones(
    lab: Any,
) -> None:
    """A quarter of 576 presses is wrong, of either kind. What is gained is the distance between the kinds, which wrong
    thumbs shrink, and so the loss under right ones; not their order, which equal rates leave as it is. It takes that
    many presses: of 288, with rates estimated as 0.21 to 0.33, one seed of three lost by the correction; of these 576,
    six seeds of eight gained 10 to 34 % of the loss, and two nothing.
    """
    plain: Runs = []
    corrected: Runs = []
    for seed in MORE_SEEDS:
        rows = press(seed, plant_thumbs(seed, 192, "q"), 0.25, 0.25)
        plain.append(measure_as_right_and_equal(lab, rows, seed, loss_type="kto_logsigmoid"))
        corrected.append(
            measure_as_right_and_equal(
                lab, rows, seed, loss_type="kto_logsigmoid", desirable_flip_rate="auto"
            )
        )
    margins, loss = "eval_rewards/margins", "eval_loss"
    assert average(margins, corrected) > 1.15 * average(margins, plain)
    assert average(loss, corrected) < 0.96 * average(loss, plain)
    assert average("eval_auc", corrected) > 0.9


@pytest.mark.parametrize("loss_type", ["kto", "kto_logsigmoid"])
def test_a_correction_for_wrong_thumbs_restores_what_they_took(lab: Any, loss_type: str) -> None:
    """40 % of what deserves a 👍 got a 👎. Told so, training comes nearer to the loss under the right labels."""
    plain: Runs = []
    told: Runs = []
    for seed in MORE_SEEDS:
        rows = [
            {**row, "label": row["label"] and (i * 7919 + seed) % 5 > 1}
            for i, row in enumerate(plant_thumbs(seed, 192, "q"))
        ]
        for rate, found in ((0.0, plain), (0.4, told)):
            settings = {"loss_type": loss_type, "desirable_flip_rate": rate}
            found.append(measure_as_right_and_equal(lab, rows, seed, **settings))
    assert average("eval_loss", told) < 0.95 * average("eval_loss", plain)
