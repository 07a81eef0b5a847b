"""Fields of TRL's configs that thumbtune has not: what each is answered with.

A config that `answers` takes such a name as an argument. The value that changes nothing is dropped, so that a script
which spells out a default runs as it is; any other value is a `ConfigError` that says why and what to do instead.
What is honoured is a field of the config itself. The whole table is `docs/reference/trl-fields.md`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from thumbtune.errors import ConfigError

Config = TypeVar("Config", bound=type)


class ForeignField(NamedTuple):
    """A field that another trainer has."""

    neutral: Any
    """The value that asks for nothing."""
    reason: str
    """Why any other value is refused, and what to do."""


DPO_FIELDS: dict[str, ForeignField] = {
    "truncation_mode": ForeignField(
        "keep_start",
        "a row that is too long loses its end, as with 'keep_start'; to keep the end of a long prompt set "
        "max_prompt_length, with truncation='keep_end'",
    ),
    "padding_free": ForeignField(False, "engine='packed' puts a microbatch in one row without padding"),
    "ld_alpha": ForeignField(None, "length desensitization is not part of the sigmoid loss: leave it out"),
    "f_divergence_type": ForeignField(
        "reverse_kl", "the DPO loss is that of the reverse KL, as published: leave it out"
    ),
    "f_alpha_divergence_coef": ForeignField(
        0.5, "it shapes f_divergence_type='alpha_divergence', which is not there: leave it out"
    ),
    "use_weighting": ForeignField(False, "pairs are not weighted by their probability: leave it out"),
    "discopop_tau": ForeignField(0.05, "it shapes loss_type='discopop', which is not there: leave it out"),
    "pad_token": ForeignField(
        None, "set tokenizer.pad_token, and give the tokenizer as processing_class to the trainer"
    ),
}
"""Of TRL 1.16's `DPOConfig`."""


def refuse_unless_neutral(fields: Mapping[str, ForeignField], name: str, value: Any) -> None:
    """Raise `ConfigError` where a value of a foreign field asks for something."""
    field = fields[name]
    if value != field.neutral:
        raise ConfigError(f"{name}={value!r} is not there: {field.reason}")


def answers(fields: Mapping[str, ForeignField]) -> Callable[[Config], Config]:
    """Let a config answer to foreign fields among its arguments, instead of a bare `TypeError`."""

    def decorate(config: Config) -> Config:
        init = config.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def answer_first(self: Any, *args: Any, **settings: Any) -> None:
            for name in fields.keys() & settings.keys():
                refuse_unless_neutral(fields, name, settings.pop(name))
            init(self, *args, **settings)

        config.__init__ = answer_first  # type: ignore[misc]
        config.foreign_fields = fields  # type: ignore[attr-defined]
        return config

    return decorate
