"""How often a canary is judged wrongly, and how fast a worse one is caught: simulated votes, a look after every vote.

Ours is beside a fixed-sample test (two proportions, 5 %) that is looked at as often, which is what a dashboard invites
to. `oracle` is the best test that knows both rates: log(1/alpha) over the nats of a pair of votes.

    python benchmarks/canary.py [--runs 10000] [--votes 2000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from thumbtune.loop.canary import nats_of_a_block
from thumbtune.loop.evidence import log_evidence, log_harm

ALPHA = 0.05
AT_ONCE = 500
NEVER = 10**9

Integers = NDArray[np.int_]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--votes", type=int, default=2_000, help="Votes an arm.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    alike = [judge_alike(rate, given.runs, given.votes) for rate in (0.3, 0.5, 0.8, 0.95)]
    print(
        f"{given.runs:,} canaries that are no better and no worse, {given.votes:,} votes an arm, a look after each\n"
    )
    print("| up-rate of both | promoted | rolled back | fixed-n test, looked at as often: called different |")
    print("| --- | --- | --- | --- |")
    for row in alike:
        print(
            f"| {row['rate']:.0%} | {tell(row['promoted'])} | {tell(row['rolled_back'])} | {tell(row['fixed'])} |"
        )
    print("\nVotes on the canary's answers until it is rolled back or promoted\n")
    print("| champion | canary | median | 10 % to 90 % | oracle | median / oracle | decided wrongly |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    pairs = [(0.8, 0.6), (0.8, 0.7), (0.8, 0.75), (0.5, 0.4), (0.95, 0.85), (0.7, 0.8), (0.8, 0.9)]
    caught = [judge_different(*pair, given.runs, 2 * given.votes) for pair in pairs]
    for row in caught:
        print(
            f"| {row['champion']:.0%} | {row['canary']:.0%} | {row['median']:,.0f} | "
            f"{row['low']:,.0f} to {row['high']:,.0f} | {row['oracle']:,.0f} | "
            f"{row['median'] / row['oracle']:.2f} | {tell(row['wrong'])} |"
        )
    if given.json:
        given.json.write_text(json.dumps({"alike": alike, "different": caught}))


def judge_alike(rate: float, runs: int, votes: int) -> dict[str, Any]:
    counts = np.zeros(3, int)
    reached = {"ours": np.zeros(votes, int), "fixed": np.zeros(votes, int)}
    for champion, canary in draw(rate, rate, runs, votes):
        better, harm = (
            first_reached(log_evidence, champion, canary),
            first_reached(log_harm, champion, canary),
        )
        fixed = first_different(champion, canary)
        counts += [int((times < NEVER).sum()) for times in (better, harm, fixed)]
        for name, times in (("ours", np.minimum(better, harm)), ("fixed", fixed)):
            reached[name] += np.bincount(times[times < NEVER], minlength=votes)[:votes]
    names = ("promoted", "rolled_back", "fixed")
    return {
        "rate": rate,
        **{name: (int(count), runs) for name, count in zip(names, counts, strict=True)},
        "by_votes": {name: (np.cumsum(times) / runs).tolist() for name, times in reached.items()},
    }


def judge_different(champion_rate: float, canary_rate: float, runs: int, votes: int) -> dict[str, Any]:
    right_test, wrong_test = (
        (log_harm, log_evidence) if canary_rate < champion_rate else (log_evidence, log_harm)
    )
    right, wrong = [], []
    for champion, canary in draw(champion_rate, canary_rate, runs, votes):
        right.append(first_reached(right_test, champion, canary))
        wrong.append(first_reached(wrong_test, champion, canary))
    times, others = np.concatenate(right), np.concatenate(wrong)
    low, median, high = np.quantile(times + 1, [0.1, 0.5, 0.9])
    return {
        "champion": champion_rate,
        "canary": canary_rate,
        "low": low,
        "median": median,
        "high": high,
        "oracle": math.log(1 / ALPHA) / nats_of_a_block(champion_rate, canary_rate),
        "wrong": (int((others < times).sum()), len(times)),
    }


def draw(champion: float, canary: float, runs: int, votes: int) -> Iterator[tuple[Integers, Integers]]:
    """Both arms' votes as 0 and 1, of shape (runs, votes), some runs at a time."""
    rng = np.random.default_rng(0)
    for begin in range(0, runs, AT_ONCE):
        n = min(AT_ONCE, runs - begin)
        yield (rng.random((n, votes)) < champion).astype(int), (rng.random((n, votes)) < canary).astype(int)


def first_reached(test: Callable[..., Any], champion: Integers, canary: Integers) -> Integers:
    """Index of the look at which a test first reaches its limit."""
    reached = test(champion, np.ones(champion.shape[1], int), canary) >= math.log(1 / ALPHA)
    return np.where(reached.any(axis=1), reached.argmax(axis=1), NEVER)


def first_different(champion: Integers, canary: Integers) -> Integers:
    """The same of a two-sided z-test of two proportions at 5 %, from ten votes an arm on."""
    n = np.arange(1, champion.shape[1] + 1)
    a, b = np.cumsum(champion, axis=1) / n, np.cumsum(canary, axis=1) / n
    pooled = (a + b) / 2
    error = np.sqrt(np.maximum(pooled * (1 - pooled) * 2 / n, 1e-12))
    different = (np.abs(a - b) / error > norm.ppf(1 - ALPHA / 2)) & (n >= 10)
    return np.where(different.any(axis=1), different.argmax(axis=1), NEVER)


def tell(counts: tuple[int, int]) -> str:
    count, n = counts
    interval = binomtest(count, n).proportion_ci(0.95, method="wilson")
    return f"{count / n:.2%} ({interval.low:.2%} to {interval.high:.2%})"


if __name__ == "__main__":
    main()
