"""Ctrl-C during training: finish the step, save a checkpoint, stop; a second one stops at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def save_on_interrupt(trainer: Any) -> Iterator[None]:
    """Ctrl-C sets `trainer.interrupted` and stops after the step. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = _StopAfterStep(trainer)
    trainer.add_callback(callback)
    earlier = signal.signal(signal.SIGINT, callback.on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
        trainer.remove_callback(callback)


class _StopAfterStep(TrainerCallback):
    """On Ctrl-C: finish the step, save, stop."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_signal(self, signum: int, frame: Any) -> None:
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        self.trainer.interrupted = True
        logger.warning("interrupted: saving a checkpoint after this step; press Ctrl-C again to stop at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.trainer.ranks.max(
            int(self.trainer.interrupted)
        ):  # a signal may reach one process before another
            self.trainer.interrupted = True
            control.should_save = control.should_training_stop = True
        return control
