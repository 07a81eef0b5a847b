"""The model card: transformers' own, with what was trained, by which method, on what, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from thumbtune.training.methods import METHODS


class Paper(NamedTuple):
    title: str
    arxiv: str


PAPERS = {
    "kto": Paper("KTO: Model Alignment as Prospect Theoretic Optimization", "2402.01306"),
    "dpo": Paper(
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", "2305.18290"
    ),
    "ipo": Paper(
        "A General Theoretical Paradigm to Understand Learning from Human Preferences", "2310.12036"
    ),
    "simpo": Paper("SimPO: Simple Preference Optimization with a Reference-Free Reward", "2405.14734"),
    "cpo": Paper(
        "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
        "2401.08417",
    ),
    "rpo": Paper("Iterative Reasoning Preference Optimization", "2404.19733"),
    "orpo": Paper("ORPO: Monolithic Preference Optimization without Reference Model", "2403.07691"),
    "apo_zero": Paper(
        "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
        "2408.06266",
    ),
    "bco": Paper("Binary Classifier Optimization for Large Language Model Alignment", "2404.04656"),
}


def list_tags(method: str) -> list[str]:
    """Tags of a model that thumbtune trained."""
    return ["thumbtune", method]


def tag_model(model: Any, method: str) -> None:
    """Let whatever saves or pushes the model tag it."""
    if hasattr(model, "add_model_tags"):
        model.add_model_tags(list_tags(method))


def name_dataset(dataset: Any) -> str | None:
    """The name of a Hugging Face dataset that has one."""
    name = getattr(getattr(dataset, "info", None), "dataset_name", None)
    return None if name in (None, "generator", "json", "csv", "parquet", "pandas", "text") else str(name)


def finish_card(
    path: Path, *, config: Any, tags: list[str], adapted: bool, manifest: dict[str, Any] | None
) -> None:
    """Add the tags and thumbtune's section to a card that transformers or PEFT wrote."""
    from huggingface_hub import ModelCard

    import thumbtune

    card = ModelCard.load(path)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    paper = PAPERS[config.method]
    what = "A LoRA adapter" if adapted else "All weights"
    variant = f", loss `{config.loss_type}`" if hasattr(config, "loss_type") else ""
    lines = [
        "## How it was trained",
        "",
        f"{what}, with [{METHODS[config.method].name}](https://huggingface.co/papers/{paper.arxiv}) "
        f"(*{paper.title}*) by thumbtune {thumbtune.__version__}: beta {config.beta}{variant}.",
    ]
    if manifest is not None:
        data = manifest["data"]
        counts = ", ".join(f"{count} {name}" for name, count in data["classes"].items())
        lines += [
            "",
            f"Rows: {counts}. Digest of the rows: `{data['digest']}`; of the run: `{manifest['digest']}`.",
        ]
    card.text = f"{card.text.rstrip()}\n\n" + "\n".join(lines) + "\n"
    card.save(path)
