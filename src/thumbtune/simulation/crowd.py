"""Who presses in a simulation: people with a hidden taste, noise and silence, some of another mind, some with a plan.

What a person is like is a hash of the seed and their number; nothing depends on the order in which they come.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from thumbtune.data.synth.users import Sample, Taste
from thumbtune.errors import ConfigError

Kind = Literal["ordinary", "of another mind", "attacker"]


@dataclass(frozen=True, slots=True)
class Crowd:
    """`n_people` who ask and, seldom, press."""

    taste: Taste
    """What ordinary people like."""
    other_taste: Taste
    """What a growing minority likes instead: the crowd drifts."""
    n_people: int = 10_000
    seed: int = 0
    noise: float = 0.1
    """Share of presses on the wrong thumb."""
    voters: float = 0.5
    """Share of people who ever press; the others are silent."""
    attackers: float = 0.05
    """Share of people who always press, and the thumb that is wrong by the taste."""
    other_at_first: float = 0.02
    drift: float = 0.02
    """By how much the minority grows with each cycle, as a share of all people."""

    def __post_init__(self) -> None:
        if self.other_at_first + self.attackers > 1 or not 0 <= self.voters <= 1 or not 0 <= self.noise <= 1:
            raise ConfigError("a crowd's shares are between 0 and 1, attackers and minority together, too")

    def kind(self, person: int, cycle: int) -> Kind:
        """What a person is in a cycle; numbers below 0 are attackers who came by themselves."""
        if person < 0:
            return "attacker"
        place = self._draw("kind", person)
        if place < self.attackers:
            return "attacker"
        other = self.other_at_first + self.drift * cycle
        return "of another mind" if place > 1 - other else "ordinary"

    def press(self, person: int, cycle: int, sample: Sample, key: str) -> bool | None:
        """Their thumb on an answer, or None for silence."""
        kind = self.kind(person, cycle)
        if kind == "attacker":
            return not self.taste.likes(sample)
        if self._draw("voter", person) >= self.voters:
            return None
        taste = self.taste if kind == "ordinary" else self.other_taste
        return taste.likes(sample) != (self._draw(f"noise {key}", person) < self.noise)

    def _draw(self, purpose: str, person: int) -> float:
        digest = hashlib.sha256(f"{self.seed}\0{purpose}\0{person}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / 2**56
