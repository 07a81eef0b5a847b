"""Who judges at the gate, by a word on the command line."""

from __future__ import annotations

from thumbtune.data.synth.users import SimulatedUsers, parse_taste
from thumbtune.errors import ConfigError
from thumbtune.evaluation.judges import Judge, UsersJudge, load_checker


def open_judge(text: str | None) -> Judge | None:
    """`taste:brevity:24`, `check:file.py:function`, or None: then held-out votes speak alone. Raises `ConfigError`."""
    if text is None:
        return None
    kind, _, rest = text.partition(":")
    if kind == "taste" and rest:
        return UsersJudge(SimulatedUsers(parse_taste(rest)))
    if kind == "check" and rest:
        return load_checker(rest)
    raise ConfigError(f"judge '{text}': write taste:brevity:24 or check:file.py:function")
