"""A version as one model without adapters: merged safetensors, and a GGUF file where llama.cpp's converter is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from thumbtune.engine.loading import load_model_and_tokenizer
from thumbtune.errors import ConfigError, ModelError
from thumbtune.store.models import ModelVersion

CONVERTER = "convert_hf_to_gguf.py"


def export_merged(
    version: ModelVersion, out: Path, *, base: str | None = None, gguf: bool = False
) -> list[Path]:
    """Write a version into a new folder; gives what was written. Raises `ConfigError` and `ModelError`."""
    from peft import PeftModel

    converter = shutil.which(CONVERTER) if gguf else None
    if gguf and converter is None:
        raise ConfigError(f"{CONVERTER} of llama.cpp is not on the PATH: install it, or leave --gguf out")
    if version.kind == "upstream":
        raise ConfigError(
            f"{version.version} lives at {version.location}: there are no weights here to export"
        )
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} holds something: name a new folder")
    if version.kind == "base" or base is None:
        model, tokenizer = load_model_and_tokenizer(version.location)
    else:
        model, tokenizer = load_model_and_tokenizer(base)
        try:
            model = PeftModel.from_pretrained(model, version.location)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{version.location} does not fit {base}: {str(error).splitlines()[0][:300]}"
            ) from error
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    written = [out]
    if converter is not None:
        target = out / f"{version.version}.gguf"
        done = subprocess.run([converter, str(out), "--outfile", str(target)], capture_output=True, text=True)
        if done.returncode:
            raise ModelError(
                f"{CONVERTER} failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}"
            )
        written.append(target)
    return written
