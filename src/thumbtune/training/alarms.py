"""The alarm of a run that goes wrong without an error: the rewards of 👍 and of 👎 both keep falling."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from thumbtune.preference.metrics import both_rewards_fall

logger = logging.getLogger(__name__)


class RewardWatch:
    """Looks at the rewards of each log. What it says is logged once and kept each time."""

    def __init__(self) -> None:
        self.alarms: list[str] = []
        self._chosen: list[float] = []
        self._rejected: list[float] = []

    def look(self, summary: Mapping[str, float], step: int) -> None:
        for name, history in (("rewards/chosen", self._chosen), ("rewards/rejected", self._rejected)):
            if name in summary:
                history.append(summary[name])
        if not both_rewards_fall(self._chosen, self._rejected):
            return
        message = f"step {step}: the rewards of 👍 and of 👎 both keep falling: the learning rate is probably too high"
        if not self.alarms:
            logger.warning(message)
        self.alarms.append(message)
