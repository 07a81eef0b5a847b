"""The processes of one run: who this one is, and the few things they do together.

Alone, which is the usual case, everything here is a plain call. Guaranteed: `decide` gives every rank what the main
process found, errors too; `part` cuts work so that its sum over ranks is what one process computes, forward by
forward; inside of `in_step` no rank of a sharded model runs a forward that the others sit out, for they would wait
for its part of the weights for ever. What would break it: a collective call that some ranks skip.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run. `Ranks()` is alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    """Where tensors lie that the processes exchange."""

    @classmethod
    def find(cls, device: torch.device) -> Ranks:
        """The processes that torch.distributed knows of."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(device=device)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """(first, step): this rank takes every `step`-th piece of some work, from `first` on."""
        return self.rank, self.size

    def decide(self, function: Callable[[], T]) -> T:
        """What the function gives on the main process, which alone calls it; its error is raised on every rank."""
        if self.size == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = function()
            except Exception as error:
                answer[1] = _make_portable(error)
        distributed.broadcast_object_list(answer, src=0, device=self.device)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def fail_together(self, error: Exception | None) -> None:
        """Raise the first rank's error on every rank, if there is one."""
        for found in self.gather(error and _make_portable(error)):
            if found is not None:
                raise found if error is None else error

    def gather(self, content: T) -> list[T]:
        """Every rank's content, in their order."""
        if self.size == 1:
            return [content]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, content)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, where `values` lies."""
        if self.size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(values.device)

    def max(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        return int(largest)

    def leave(self) -> None:
        """Part, once all are here: torch asks that a process closes its group before it ends."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()

    @contextlib.contextmanager
    def in_step(self, model: Any, idle: Callable[[], Any]) -> Iterator[None]:
        """As many forwards of a sharded model on every rank: who has no more inside the block calls `idle`.

        `idle` runs one forward, without gradient. Before each forward the ranks tell each other who still has one.
        """
        if self.size == 1 or not is_sharded(model):
            yield
            return
        hook = model.register_forward_pre_hook(lambda *_: self._count_running(True), prepend=True)
        try:
            yield
        finally:
            hook.remove()
        with torch.no_grad():
            while self._count_running(False):
                idle()

    def _count_running(self, runs: bool) -> int | None:
        running = int(self.sum(torch.tensor(int(runs))))
        return None if runs else running  # a hook that gives something replaces the model's input


def _make_portable(error: Exception) -> Exception:
    """The error, or one with its words where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def is_sharded(model: Any) -> bool:
    """Whether each rank holds a part of the weights only, which the modules' own forwards put together."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule) or any(hasattr(p, "ds_id") for p in model.parameters())


def call_as_forward(module: Any, function: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
    """Call a function in place of a module's forward: a sharded weight is whole there alone."""
    module.forward = function
    try:
        return module(argument)
    finally:
        del module.forward


def local_part(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter: all of it, unless it is sharded."""
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def whole_value(value: Any) -> Any:
    """A number that FSDP spread over the ranks, put together; anything else as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
