"""How many rows of each class there are, and the weights that follow."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from thumbtune.preference.class_weights import recommend_class_weights
from thumbtune.training.config import KTOConfig, PreferenceConfig
from thumbtune.training.tokens import TokenizedRows

logger = logging.getLogger(__name__)


def count_classes(rows: TokenizedRows) -> dict[str, int]:
    if rows.labels is None:
        return {"pairs": len(rows)}
    n_desirable = int(sum(rows.labels))
    return {"desirable": n_desirable, "undesirable": len(rows.labels) - n_desirable}


def settle_class_weights(args: PreferenceConfig, counts: Mapping[str, int], *, of_what: str = "") -> None:
    """Replace "auto" by weights from the class balance; warn about one-sided data."""
    if not isinstance(args, KTOConfig):
        return
    if args.desirable_weight == "auto":
        args.desirable_weight, args.undesirable_weight = recommend_class_weights(
            counts["desirable"], counts["undesirable"]
        )
        args.adjustments.append(
            f"class weights 'auto': {args.desirable_weight:.4g} for {counts['desirable']} 👍, "
            f"{args.undesirable_weight:.4g} for {counts['undesirable']} 👎{of_what}"
        )
    if not counts["desirable"] or not counts["undesirable"]:
        logger.warning("all labels are of one class: KTO can only push one way, so watch length and KL")
