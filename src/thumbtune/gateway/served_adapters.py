"""Any number of LoRA adapters on one base model, chosen row by row.

PEFT does the work. Where all rows of a forward want the same weights its plain path runs, with one adapter active or
all of them off; rows of several versions go through its mixed batch, where each row names its adapter. Choosing costs
a walk over the model, so it is done where the choice changes and not at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.lora import LoraLayer

from thumbtune.errors import ModelError

_BASE = "__base__"
_MIXED = "(mixed)"


class ServedAdapters:
    """A base model and its adapters. Not thread-safe: the thread that runs the model owns it."""

    def __init__(self, model: Any, base_version: str) -> None:
        # an adapter's own folder can be served: its weights are then what the base answers with
        self.model: Any = _merge(model) if isinstance(model, PeftModel) else model
        self.model.eval()
        self._names = {base_version: _BASE}  # by version; a version may hold dots, PEFT's names may not
        self._n_loaded = 0
        self._active = _BASE

    @property
    def versions(self) -> list[str]:
        return list(self._names)

    def choose(self, versions: Sequence[str]) -> dict[str, Any]:
        """Make the rows of the coming forward go through their versions; gives the forward's further arguments."""
        names = [self._names[version] for version in versions]
        wanted = names[0] if len(set(names)) == 1 else _MIXED
        if wanted != self._active:
            self._activate(wanted)
        return {"adapter_names": names} if wanted == _MIXED else {}

    def load(self, version: str, folder: Path) -> None:
        """Put an adapter beside the others. Raises `ModelError`, and leaves all as it was."""
        if version in self._names:
            raise ModelError(f"version {version!r} is loaded already: unload it first, or give another name")
        config = _read_config(folder)
        self._n_loaded += 1
        name = f"served_{self._n_loaded}"
        try:
            self._insert(name, folder, config)
        except ModelError:
            self._remove(name)
            raise
        except Exception as error:  # whatever PEFT, safetensors or torch say of a broken file
            self._remove(name)
            raise ModelError(
                f"{folder}: this adapter does not fit the model: {_first_line(error)}"
            ) from error
        self._names[version] = name

    def unload(self, version: str) -> None:
        """Let an adapter go. The caller has no row of it left."""
        self._remove(self._names.pop(version))

    def _insert(self, name: str, folder: Path, config: Any) -> None:
        if not isinstance(self.model, PeftModel):
            self.model = PeftModelForCausalLM(self.model, config, adapter_name=name, low_cpu_mem_usage=True)
            self._active = ""
        device = next(self.model.parameters()).device
        result = self.model.load_adapter(
            str(folder), name, low_cpu_mem_usage=True, torch_device=str(_real(device))
        )
        if result.missing_keys or result.unexpected_keys:
            odd = [*result.missing_keys, *result.unexpected_keys]
            raise ModelError(
                f"{folder}: {len(odd)} weights of this adapter do not fit the model, such as {odd[0]}: "
                "it was trained on another base model"
            )
        self.model.eval()
        self._active = ""  # PEFT may have activated it

    def _remove(self, name: str) -> None:
        if not isinstance(self.model, PeftModel):
            _unwrap(self.model)  # PEFT gave up half way
            return
        if name not in self.model.peft_config:
            return
        others = [other for other in self.model.peft_config if other != name]
        if not others:
            model: Any = self.model
            self.model = model.unload()
            self._active = _BASE
            return
        self._activate(others[0])  # PEFT warns where an active adapter is deleted
        self.model.delete_adapter(name)
        self._activate(_BASE)

    def _activate(self, wanted: str) -> None:
        if isinstance(self.model, PeftModel):
            tuner: Any = self.model.base_model
            if wanted == _BASE:
                tuner.disable_adapter_layers()
            else:
                tuner.enable_adapter_layers()
            if wanted not in (_BASE, _MIXED):  # a mixed forward names its adapters itself
                self.model.set_adapter(wanted, inference_mode=True)
        self._active = wanted


def _merge(model: Any) -> Any:
    return model.merge_and_unload()


def _unwrap(model: Any) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLayer):
                setattr(module, name, child.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _read_config(folder: Path) -> Any:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # a missing folder, no JSON, a method that this PEFT does not know
        raise ModelError(f"{folder} holds no PEFT adapter: {_first_line(error)}") from error
    if not isinstance(config, LoraConfig) or config.use_dora:
        kind = "DoRA" if isinstance(config, LoraConfig) else str(config.peft_type)
        raise ModelError(
            f"{folder}: rows of a {kind} adapter cannot share a batch with others; only LoRA can be served here. "
            "Merge it into its base model and serve that"
        )
    config.inference_mode = True
    return config


def _real(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "meta" else device


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
