"""Where the reference model is: at hand before step 1 at no cost, and later where it is asked for again.

Before step 1 the policy is its own reference, so most runs score it once and hold no second model
(`thumbtune.engine.reference`). Some need it afterwards too: rows that come as a stream, new rows for `evaluate`, and a
reference that moves. Then there are four places to find it, all with one interface:

- under a fresh adapter: the policy with the adapter switched off, whenever it is asked for;
- a model of its own that was given, held until the planned rows are scored;
- held weights: a copy of the weights that are trained, put in their place for as long as the reference scores;
- the policy itself, as long as it stands where it stood; after that the model is loaded once more, if it has a name.

A reference that moves (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656, soft update) is held weights that are
mixed: each tensor that is trained becomes α × policy + (1 − α) × reference, in its own precision. Under full
fine-tuning these are all weights. With an adapter they are its tensors, A and B each by themselves and whatever else
it trains: the mix of two products BA is not the product of the mixes, so the reference stays of the adapter's rank.
Buffers and frozen weights are the policy's.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from thumbtune.engine.fast_modules import sped_up
from thumbtune.engine.reference import fingerprint_weights
from thumbtune.errors import CheckpointError, ConfigError
from thumbtune.training.policy import Loading
from thumbtune.training.precision import in_float32

REFERENCE_FILE = "reference.safetensors"
"""Where a checkpoint keeps a reference that moves."""


Model = Callable[[], Any]
"""Gives a model as it is when it is asked for: training may wrap it."""


class ReferenceModel(Protocol):
    """A reference that can score rows."""

    def at_hand(self) -> AbstractContextManager[Any]:
        """The model that computes the reference's log-probs inside the block."""
        ...

    def fingerprint(self) -> str:
        """A digest of the reference's weights, as they are now."""
        ...

    def let_go(self) -> None:
        """Free what is held: everything that the plan meets has been scored."""
        ...


class AdapterOff:
    """The base under an adapter that changed nothing when it was made."""

    def __init__(self, policy: Model, whole: Model) -> None:
        self._policy, self._whole = policy, whole

    @contextmanager
    def at_hand(self) -> Iterator[Any]:
        trained = [weight for weight in self._policy().parameters() if weight.requires_grad]
        with self._policy().disable_adapter():
            for weight in trained:  # PEFT freezes them, and FSDP notes at its first forward who is trained
                weight.requires_grad_(True)
            yield self._whole()

    def fingerprint(self) -> str:
        return fingerprint_weights(self._policy(), without="lora_")

    def let_go(self) -> None:
        """There is nothing beside the policy."""


class OtherModel:
    """A model of its own, held until it is let go; after that only for as long as it is asked for again.

    One by name is loaded anew then. One that was given as a model is there if whoever gave it holds it still, on the
    CPU. It computes as the policy does, in float32 where that became float32 and by the same faster modules, and is as
    it was afterwards.
    """

    def __init__(self, model: str | Path | Any, device: torch.device, loading: Loading) -> None:
        self._name = model if isinstance(model, (str, Path)) else None
        self._model = loading.load(model) if isinstance(model, (str, Path)) else model
        self._find_given = weakref.ref(self._model)
        self._device, self._loading = device, loading
        self._is_let_go = False

    @contextmanager
    def at_hand(self) -> Iterator[Any]:
        if self._model is None:
            self._model = self._find_again()
        _move(self._model, self._device)
        faster = sped_up(self._model) if self._device.type == "cpu" else nullcontext()
        try:
            with self._in_the_policys_precision(), faster:
                yield self._model
        finally:
            if self._is_let_go:
                self.let_go()

    def fingerprint(self) -> str:
        with self._in_the_policys_precision():
            return fingerprint_weights(self._model)

    def let_go(self) -> None:
        self._model, self._is_let_go = None, True
        gc.collect()  # a model may hold itself in a circle
        if self._name is None and (held_elsewhere := self._find_given()) is not None:
            _move(held_elsewhere, "cpu")

    def _find_again(self) -> Any:
        if self._name is not None:
            return self._loading.load(self._name)
        if (model := self._find_given()) is None:
            raise ConfigError(
                "ref_model was let go once the planned rows were scored, and nothing else holds it: give these rows as "
                "eval_dataset when the trainer is made, or keep ref_model in a variable of your own, or give its name"
            )
        return model

    def _in_the_policys_precision(self) -> AbstractContextManager[None]:
        return in_float32(self._model) if self._loading.became_float32 else nullcontext()


def _move(model: Any, device: torch.device | str) -> None:
    if not getattr(model, "is_quantized", False):  # those stay where they were loaded
        model.to(device)


class OwnStart:
    """The policy as it stood before step 1: itself until then, afterwards loaded anew if it has a name."""

    def __init__(
        self,
        policy: Model,
        whole: Model,
        *,
        has_moved: Callable[[], bool],
        expected: Callable[[], str],
        load_again: Model | None,
    ) -> None:
        self._policy, self._whole = policy, whole
        self._has_moved, self._expected, self._load_again = has_moved, expected, load_again

    @contextmanager
    def at_hand(self) -> Iterator[Any]:
        if not self._has_moved():
            yield self._whole()
            return
        again = None if self._load_again is None else self._load_again()
        if again is None or fingerprint_weights(again) != self._expected():
            raise ConfigError(
                "the reference is the policy as it stood before step 1, and nothing holds it while all weights are "
                "trained: give these rows as eval_dataset when the trainer is made, or evaluate them before "
                "train(), or give the trainer a ref_model by name"
            )
        yield again.to(next(self._policy().parameters()).device)

    def fingerprint(self) -> str:
        return fingerprint_weights(self._policy())

    def let_go(self) -> None:
        """There is nothing beside the policy."""


class HeldWeights:
    """A copy of weights, put in the place of the policy's for as long as it scores. Can be mixed and saved."""

    def __init__(self, policy: nn.Module, start: nn.Module | None = None) -> None:
        """Start from the policy's trained weights as they are, or from all weights of a model of the same shape."""
        self._policy = policy
        source = policy if start is None else start
        self._held = {
            name: nn.Parameter(weight.detach().clone(), requires_grad=False)
            for name, weight in source.named_parameters()
            if start is not None or weight.requires_grad
        }
        self._check_shapes()
        names = {id(weight): name for name, weight in policy.named_parameters()}
        self._places = [  # a tied weight stands in several
            (module, key, names[id(weight)])
            for module in policy.modules()
            for key, weight in module._parameters.items()
            if weight is not None and names[id(weight)] in self._held
        ]

    def _check_shapes(self) -> None:
        policy = dict(self._policy.named_parameters())
        for name, weight in self._held.items():
            if name not in policy or policy[name].shape != weight.shape:
                raise ConfigError(
                    f"sync_ref_model mixes ref_model and policy weight by weight, and {name} is not in both: give a "
                    "ref_model of the policy's own architecture, without an adapter on either, or leave it out"
                )
            weight.data = weight.data.to(policy[name])

    @contextmanager
    def at_hand(self) -> Iterator[Any]:
        own = [module._parameters[key] for module, key, _ in self._places]
        for module, key, name in self._places:
            module._parameters[key] = self._held[name]
        try:
            yield self._policy
        finally:
            for (module, key, _), weight in zip(self._places, own, strict=True):
                module._parameters[key] = weight

    def fingerprint(self) -> str:
        with self.at_hand() as model:
            return fingerprint_weights(model)

    def let_go(self) -> None:
        """It is needed to the end."""

    @torch.no_grad()
    def mix(self, alpha: float) -> None:
        """Each held tensor becomes α × the policy's + (1 − α) × itself."""
        policy = dict(self._policy.named_parameters())
        for name, held in self._held.items():
            held.mul_(1 - alpha).add_(policy[name].detach(), alpha=alpha)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        tensors = {name: weight.detach().cpu().contiguous() for name, weight in self._held.items()}
        save_file(tensors, folder / REFERENCE_FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Stand where a checkpoint's reference stood. Raises `CheckpointError` where it has none."""
        from safetensors.torch import load_file

        path = folder / REFERENCE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no {REFERENCE_FILE}: it was saved without sync_ref_model. Continue without it, "
                "or start anew"
            )
        saved: dict[str, Tensor] = load_file(path)
        for name, held in self._held.items():
            held.copy_(saved[name])


class MoveReference(TrainerCallback):
    """Mixes the policy into the reference every so many steps, before anything is saved."""

    def __init__(self, reference: HeldWeights) -> None:
        self._reference = reference

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.ref_model_sync_steps == 0:
            self._reference.mix(args.ref_model_mixup_alpha)


class NoReference:
    """Of a method that has none."""

    def at_hand(self) -> AbstractContextManager[Any]:
        raise AssertionError("a method without a reference asked for it")

    def fingerprint(self) -> str:
        return "none"

    def let_go(self) -> None:
        """There is nothing."""


def choose_reference(
    trainer: Any, ref_model: Any, *, adapter_is_fresh: bool, named: str | Path | None, loading: Loading
) -> Any:
    """The reference of a trainer that has its model, loaded from `named` if it had a name.

    Raises `ConfigError` for one that cannot be.
    """
    policy, args = trainer.model, trainer.args
    if not trainer._uses_reference:
        if ref_model is not None:
            raise ConfigError(
                f"ref_model is given, and {trainer.method.name} as set has no reference: leave it out"
            )
        return NoReference()
    is_moving, is_needed_later = args.sync_ref_model, trainer.stream is not None
    if ref_model is policy:
        raise ConfigError(
            "ref_model is the model that is trained: leave it out, its start is the reference then"
        )
    if is_moving and ref_model is not None and hasattr(policy, "peft_config"):
        raise ConfigError(
            "sync_ref_model with an adapter moves a copy of the adapter: leave ref_model out, or merge the adapter"
        )
    holds_weights = is_moving or (is_needed_later and ref_model is None and not adapter_is_fresh)
    if holds_weights and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ConfigError(
            "FSDP and DeepSpeed share the weights out, so no copy of them is held as a reference: train an adapter, "
            "give a ref_model, or leave out sync_ref_model"
        )
    if holds_weights:
        start = loading.load(ref_model) if isinstance(ref_model, (str, Path)) else ref_model
        held = HeldWeights(policy, start)
        if is_moving:
            trainer.add_callback(MoveReference(held))
        return held
    if ref_model is not None:
        return OtherModel(ref_model, args.device, loading)

    def get_policy() -> Any:
        return trainer.model

    def get_whole() -> Any:
        return trainer._whole_model

    if adapter_is_fresh:
        return AdapterOff(get_policy, get_whole)
    return OwnStart(
        get_policy,
        get_whole,
        has_moved=lambda: trainer.state.global_step > 0,
        expected=trainer._fingerprint_reference,
        load_again=None if named is None else partial(loading.load, named),
    )
