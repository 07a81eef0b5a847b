"""The model card: transformers' own, with what was trained, by which method, on what, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class Paper(NamedTuple):
    title: str
    arxiv: str


PAPERS = {
    "kto": Paper("KTO: Model Alignment as Prospect Theoretic Optimization", "2402.01306"),
    "dpo": Paper(
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", "2305.18290"
    ),
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
    lines = [
        "## How it was trained",
        "",
        f"{what}, with [{config.method.upper()}](https://huggingface.co/papers/{paper.arxiv}) "
        f"(*{paper.title}*) by thumbtune {thumbtune.__version__}: beta {config.beta}, loss `{config.loss_type}`.",
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
