"""The settings of each method: what its loss reads, and nothing that it would ignore.

A field that a method has no use for is not there, so that naming it is an error; a field of one variant is refused
under another. Defaults are those of the paper or of TRL, as each says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from thumbtune.errors import ConfigError
from thumbtune.training.config import PreferenceConfig, ReferenceConfig, setting
from thumbtune.training.trl_fields import DPO_FIELDS, answers

LABEL_SMOOTHING = "Share of pairs taken to be flipped, in [0, 0.5): conservative DPO."

# ---- single completions


@dataclass
class ThumbConfig(ReferenceConfig):
    """What methods share that learn from single completions with a thumb each. Use `KTOConfig` or `BCOConfig`."""

    desirable_weight: float | str = setting(
        1.0, "Weight of 👍 rows, or 'auto' for both weights by the class balance."
    )
    undesirable_weight: float | str = setting(
        1.0, "Weight of 👎 rows, or 'auto' for both weights by the class balance."
    )
    desirable_flip_rate: float | str = setting(
        0.0,
        "Chance that what deserves a 👍 got a 👎; the loss is corrected for it. 'auto' estimates one rate for both "
        "classes from completions that were voted on more than once.",
    )
    undesirable_flip_rate: float | str = setting(0.0, "Chance that what deserves a 👎 got a 👍, or 'auto'.")
    one_per_prompt: bool = setting(
        False, "Train on one completion of each prompt, drawn by the seed; what is left over is counted."
    )

    def __post_init__(self) -> None:
        _read_both(self, ("desirable_weight", "undesirable_weight"), "a number above 0", _is_positive)
        _read_both(self, ("desirable_flip_rate", "undesirable_flip_rate"), "a share from 0 on", _is_share)
        rates = (self.desirable_flip_rate, self.undesirable_flip_rate)
        if "auto" in rates and self.one_per_prompt:
            raise ConfigError(
                "flip rates 'auto' count repeated votes, and one_per_prompt keeps one of each prompt: give rates"
            )
        if "auto" not in rates and sum(map(float, rates)) >= 1:
            raise ConfigError(
                f"desirable_flip_rate={rates[0]} and undesirable_flip_rate={rates[1]} add up to 1 or more: a thumb "
                "would then say nothing, or the contrary"
            )
        super().__post_init__()


@dataclass
class KTOConfig(ThumbConfig):
    """Settings of a KTO run: learning from single completions with a thumb each."""

    method: ClassVar[str] = "kto"

    loss_type: Literal[
        "kto",
        "kto_thresholds",
        "kto_prospect",
        "kto_logsigmoid",
        "kto_reference_free",
        "apo_zero_unpaired",
    ] = setting(
        "kto",
        "'kto' estimates the reference point from mismatched completions; 'kto_thresholds' takes z_yes and z_no; "
        "'kto_prospect' has the prospect-theory value in place of the sigmoid, 'kto_logsigmoid' its logarithm; "
        "'kto_reference_free' has no reference model, as if it were uniform; 'apo_zero_unpaired' has no reference "
        "point: its zero is the reference itself.",
    )
    z_yes: float | None = setting(
        None, "Threshold of 👍 rows in units of the implicit reward (kto_thresholds)."
    )
    z_no: float | None = setting(
        None, "Threshold of 👎 rows in units of the implicit reward (kto_thresholds)."
    )
    prospect_alpha: float | None = setting(None, "α of the prospect value, 0.88 unless given (kto_prospect).")
    loss_aversion: float | None = setting(None, "λ of the prospect value, 2.25 unless given (kto_prospect).")
    reference_point_decay: float | None = setting(
        None,
        "Average z0 over steps: so much of it is what earlier batches showed, in (0, 1). For batches too small to tell "
        "z0 by themselves. None takes each batch's own.",
    )

    def __post_init__(self) -> None:
        types = typing_choices(type(self), "loss_type")
        if self.loss_type not in types:
            raise ConfigError(f"loss_type={self.loss_type!r}: {_list_choices(types)}")
        self._require("kto_thresholds", {"z_yes": 0.0, "z_no": 0.0})
        self._require("kto_prospect", {"prospect_alpha": 0.88, "loss_aversion": 2.25})
        if self.prospect_alpha is not None and not 0 < self.prospect_alpha <= 1:
            raise ConfigError(f"prospect_alpha={self.prospect_alpha}: above 0 and up to 1, 0.88 is usual")
        if self.loss_aversion is not None and not 0 < self.loss_aversion < math.inf:
            raise ConfigError(f"loss_aversion={self.loss_aversion}: a number above 0, 2.25 is usual")
        decay = self.reference_point_decay
        if decay is not None and not 0 < decay < 1:
            raise ConfigError(f"reference_point_decay={decay}: between 0 and 1, 0.9 is usual, or None")
        if decay is not None and not self.estimates_reference_point:
            raise ConfigError(
                f"reference_point_decay={decay}: {self.loss_type!r} estimates no reference point"
            )
        if self.loss_type == "kto_reference_free":
            own = {field.name for field in fields(PreferenceConfig)}
            for known in fields(ReferenceConfig):
                value = getattr(self, known.name)
                if known.name not in own and value != known.default:
                    raise ConfigError(f"{known.name}={value!r}: 'kto_reference_free' has no reference model")
        super().__post_init__()

    @property
    def estimates_reference_point(self) -> bool:
        """Whether z0 comes from mismatched completions."""
        return self.loss_type not in ("kto_thresholds", "apo_zero_unpaired")

    def _require(self, loss_type: str, defaults: dict[str, float]) -> None:
        """Fill in a variant's own settings, and refuse them under another variant."""
        for name, default in defaults.items():
            given = getattr(self, name)
            if self.loss_type == loss_type:
                setattr(self, name, default if given is None else given)
            elif given is not None:
                raise ConfigError(
                    f"{name}={given} is used by loss_type='{loss_type}' only, not by {self.loss_type!r}"
                )


@dataclass
class BCOConfig(ThumbConfig):
    """Settings of a BCO run: a binary classifier of thumbs, whose zero lies halfway between the classes' rewards."""

    method: ClassVar[str] = "bco"

    reward_shift_decay: float = setting(
        0.9,
        "How much of the reward shift δ is what earlier batches showed, in [0, 1); it starts at zero.",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.reward_shift_decay < 1:
            raise ConfigError(
                f"reward_shift_decay={self.reward_shift_decay}: from 0 to below 1, 0.9 is usual"
            )
        super().__post_init__()


# ---- pairs


@dataclass
class PairTerms:
    """What paired methods share: how many pairs a prompt may give, and a loss that is a weighted sum of terms."""

    max_pairs_per_prompt: int | None = field(
        default=None,
        kw_only=True,  # the first argument of a config is its output_dir
        metadata={
            "help": "Pairs of one prompt, at most, so that none speaks too loudly; what is left over is counted."
        },
    )

    @property
    def terms(self) -> dict[str, float]:
        """Weights of the loss's terms, by their names in `thumbtune.training.methods.PAIR_TERMS`."""
        raise NotImplementedError


@answers(DPO_FIELDS)
@dataclass
class DPOConfig(ReferenceConfig, PairTerms):
    """Settings of a DPO run: learning from pairs of completions."""

    method: ClassVar[str] = "dpo"

    loss_type: str | list[str] = setting(
        "sigmoid",
        "'sigmoid' is DPO as published. Also, as TRL names them, 'ipo', 'apo_zero', 'bco_pair', 'sft' (the chosen "
        "completions' negative log-likelihood), or a list of these, which are added up.",
    )
    loss_weights: list[float] | None = setting(None, "A weight for each of a list of losses; None is 1 each.")
    label_smoothing: float = setting(0.0, LABEL_SMOOTHING + " Of 'sigmoid' alone.")

    def __post_init__(self) -> None:
        types = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        known = ("sigmoid", "ipo", "apo_zero", "bco_pair", "sft")
        if not types or len(set(types)) < len(types) or not set(types) <= set(known):
            raise ConfigError(
                f"loss_type={self.loss_type!r}: {_list_choices(known)}, or a list of them, each once"
            )
        if types == ["sft"]:
            raise ConfigError(
                "loss_type='sft' alone learns nothing from the rejected ones: add a preference loss"
            )
        if self.loss_weights is not None:
            if len(self.loss_weights) != len(types):
                raise ConfigError(f"loss_weights={self.loss_weights}: one for each of {types}")
            if not all(0 < weight < math.inf for weight in self.loss_weights):
                raise ConfigError(
                    f"loss_weights={self.loss_weights}: numbers above 0; leave out what has none"
                )
        if len(types) == 1:
            self.loss_type = types[0]  # as TRL spells it
        _check_smoothing(self)
        if self.label_smoothing and "sigmoid" not in types:
            raise ConfigError(f"label_smoothing={self.label_smoothing} is of 'sigmoid' alone, not of {types}")
        super().__post_init__()

    @property
    def terms(self) -> dict[str, float]:
        types = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        return dict(zip(types, self.loss_weights or [1.0] * len(types), strict=True))


@dataclass
class IPOConfig(ReferenceConfig, PairTerms):
    """Settings of an IPO run: pairs, with a squared loss that aims at a margin instead of an ever larger one."""

    method: ClassVar[str] = "ipo"

    beta: float = setting(0.1, "The paper's τ: the margin aimed at is 1 / (2 β).")
    length_normalized: bool = setting(
        True, "Log ratios per token, as in practice and in TRL; false sums them, as the paper writes it."
    )

    @property
    def terms(self) -> dict[str, float]:
        return {"ipo" if self.length_normalized else "ipo_summed": 1.0}


@dataclass
class APOZeroConfig(ReferenceConfig, PairTerms):
    """Settings of an APO-zero run: pairs, each half held against the reference by itself."""

    method: ClassVar[str] = "apo_zero"

    @property
    def terms(self) -> dict[str, float]:
        return {"apo_zero": 1.0}


@dataclass
class RPOConfig(ReferenceConfig, PairTerms):
    """Settings of an RPO run: DPO and, times α, the chosen completions' negative log-likelihood per token.

    The regularised preference optimisation of Pang et al. 2024 (arXiv:2404.19733) and Liu et al. 2024
    (arXiv:2405.16436), with the likelihood averaged over the batch's tokens as in TRL; not NVIDIA's reward-aware RPO
    (arXiv:2406.11704), which is another method.
    """

    method: ClassVar[str] = "rpo"

    rpo_alpha: float = setting(1.0, "Weight of the negative log-likelihood, above 0.")
    label_smoothing: float = setting(0.0, LABEL_SMOOTHING)

    def __post_init__(self) -> None:
        _check_positive(self, "rpo_alpha")
        _check_smoothing(self)
        super().__post_init__()

    @property
    def terms(self) -> dict[str, float]:
        return {"sigmoid": 1.0, "sft": self.rpo_alpha}


@dataclass
class SimPOConfig(PreferenceConfig, PairTerms):
    """Settings of a SimPO run: pairs, log-probs per token, a margin, and no reference."""

    method: ClassVar[str] = "simpo"

    beta: float = setting(2.0, "Scale of the log-probs per token; the paper takes 2 to 2.5.")
    simpo_gamma: float = setting(
        1.0, "γ, the margin that the chosen one has to lead by; the paper takes β / 2 or so."
    )
    label_smoothing: float = setting(0.0, LABEL_SMOOTHING)

    def __post_init__(self) -> None:
        if not 0 <= self.simpo_gamma < math.inf:
            raise ConfigError(f"simpo_gamma={self.simpo_gamma}: 0 or more, half of beta is usual")
        _check_smoothing(self)
        super().__post_init__()

    @property
    def terms(self) -> dict[str, float]:
        return {"simpo": 1.0}


@dataclass
class CPOConfig(PreferenceConfig, PairTerms):
    """Settings of a CPO run: pairs, DPO's form on the policy's log-probs, with the chosen ones' likelihood."""

    method: ClassVar[str] = "cpo"

    beta: float = setting(0.1, "Scale of the difference of log-probs.")
    cpo_alpha: float = setting(1.0, "Weight of the chosen completions' negative log-likelihood, above 0.")
    label_smoothing: float = setting(0.0, LABEL_SMOOTHING)

    def __post_init__(self) -> None:
        _check_positive(self, "cpo_alpha")
        _check_smoothing(self)
        super().__post_init__()

    @property
    def terms(self) -> dict[str, float]:
        return {"cpo": 1.0, "sft": self.cpo_alpha}


@dataclass
class ORPOConfig(PreferenceConfig, PairTerms):
    """Settings of an ORPO run: the chosen completions' likelihood, and a term of odds that sets them apart.

    The likelihood is that of completions, as the paper writes it; TRL counts the prompt's tokens too.
    """

    method: ClassVar[str] = "orpo"

    beta: float = setting(0.1, "The paper's λ: weight of the odds-ratio term.")

    @property
    def terms(self) -> dict[str, float]:
        return {"sft": 1.0, "odds_ratio": self.beta}


# ---- checks


def typing_choices(config: type, name: str) -> tuple[str, ...]:
    """The choices of a field that is a Literal."""
    import typing

    return typing.get_args(typing.get_type_hints(config)[name])


def _list_choices(choices: tuple[str, ...]) -> str:
    return ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"


def _check_smoothing(config: Any) -> None:
    if not 0 <= config.label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing={config.label_smoothing}: a share in [0, 0.5)")


def _check_positive(config: Any, name: str) -> None:
    if not 0 < getattr(config, name) < math.inf:
        raise ConfigError(f"{name}={getattr(config, name)}: a number above 0")


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _is_share(value: float) -> bool:
    return 0 <= value < 1


def _read_both(config: Any, names: tuple[str, str], wanted: str, is_right: Any) -> None:
    """Two settings that are numbers, or "auto" together."""
    for name in names:
        value = getattr(config, name)
        if value == "auto":
            continue
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"{name}={value!r}: {wanted}, or 'auto'") from None
        if not is_right(number):
            raise ConfigError(f"{name}={number}: {wanted}, or 'auto'")
        setattr(config, name, number)
    if any(getattr(config, name) == "auto" for name in names):
        for name in names:
            setattr(config, name, "auto")
