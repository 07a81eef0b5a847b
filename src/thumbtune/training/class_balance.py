"""How many rows of each class there are, how often they contradict each other, and what follows for the loss."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from thumbtune.preference.class_weights import recommend_class_weights
from thumbtune.preference.label_noise import estimate_flip_rate
from thumbtune.training.config import PreferenceConfig
from thumbtune.training.method_configs import ThumbConfig
from thumbtune.training.token_storage import TokenizedRows, number_spans

logger = logging.getLogger(__name__)


def count_classes(rows: TokenizedRows) -> dict[str, int]:
    if rows.labels is None:
        return {"pairs": len(rows)}
    n_desirable = int(sum(rows.labels))
    return {"desirable": n_desirable, "undesirable": len(rows.labels) - n_desirable}


def settle_class_weights(args: PreferenceConfig, counts: Mapping[str, int], *, of_what: str = "") -> None:
    """Replace "auto" by weights from the class balance; warn about one-sided data."""
    if not isinstance(args, ThumbConfig):
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
        logger.warning("all labels are of one class: the loss can only push one way, so watch length and KL")


def settle_flip_rates(args: PreferenceConfig, rows: TokenizedRows) -> None:
    """Replace "auto" by a rate from completions that were voted on more than once."""
    if not isinstance(args, ThumbConfig) or args.desirable_flip_rate != "auto":
        return
    n_agreeing, n_disagreeing = count_repeated_votes(rows)
    rate = estimate_flip_rate(n_agreeing, n_disagreeing)
    args.desirable_flip_rate = args.undesirable_flip_rate = rate
    args.adjustments.append(
        f"flip rates 'auto': {rate:.3g}, from {n_disagreeing} of {n_agreeing + n_disagreeing} pairs of votes on one "
        "completion that disagree"
    )


def count_repeated_votes(rows: TokenizedRows) -> tuple[int, int]:
    """Pairs of rows with the same prompt and completion: how many have one label, and how many both."""
    assert rows.labels is not None
    completions = number_spans(rows.ids, rows.starts[:, 0, 1], rows.lengths[:, 0, 1])
    votes: dict[tuple[int, int], Counter[bool]] = {}
    for *key, label in zip(rows.prompt_keys.tolist(), completions.tolist(), rows.labels, strict=True):
        votes.setdefault((key[0], key[1]), Counter())[label] += 1
    n_agreeing = sum(n * (n - 1) // 2 for counts in votes.values() for n in counts.values())
    return n_agreeing, sum(counts[True] * counts[False] for counts in votes.values())
