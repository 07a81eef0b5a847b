"""Question: how does the cost of a row grow with its length, its siblings, the number of rows, the vocabulary?

Each line is one training run in a process of its own, reference pass included, after a warm-up step: by the packed
engine and by the padded one, where the config has the choice. Prints seconds per row and epoch, and peak memory. The
vocabulary is swept on random llamas of hidden size 256, the rest on the packaged model (or on such a llama, by --tiny).

    python benchmarks/scaling.py [--sweeps length,siblings,rows,vocabulary] [--rows 32] [--tiny] [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arms import LEARNING_RATES, Job, run_in_child, save_tiny_model
from kto_step import Arm, Outcome, run_arm
from result_tables import format_table
from workloads import WORKLOADS, Workload, make_rows

from thumbtune import KTOConfig
from thumbtune.engine.loading import PACKAGED_MODEL
from thumbtune.training.config import cpu_has_fast_bf16

BATCH = 8


@dataclass(frozen=True)
class Case:
    """One point of a sweep."""

    sweep: str
    value: int
    workload: Workload
    n_rows: int
    model: str


def list_cases(arguments: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """All points of the sweeps that were asked for; the models they need are made in the folder."""
    model = save_tiny_model(folder / "tiny") if arguments.tiny else PACKAGED_MODEL
    wanted, n_rows = arguments.sweeps.split(","), arguments.rows
    short, mixed = WORKLOADS["short"], WORKLOADS["mixed"]
    if "length" in wanted:
        for words in _cut((25, 50, 100, 200, 400), arguments):
            lengths = replace(mixed, prompt_words=words, completion_words=words, most_words=4 * words)
            yield Case("median words of prompt and completion", words, lengths, n_rows, model)
    if "siblings" in wanted:
        for count in _cut((1, 2, 4, 8), arguments):
            yield Case(
                "completions per prompt", count, replace(mixed, completions_per_prompt=count), n_rows, model
            )
    if "rows" in wanted:
        for count in _cut((16, 32, 64, 128), arguments):
            yield Case("rows", count, short, count, model)
    if "vocabulary" in wanted:
        for size in _cut((49_152, 98_304, 196_608), arguments):
            tiny = save_tiny_model(folder / str(size), n_vocabulary=size)
            yield Case("vocabulary, hidden 256", size, short, n_rows, tiny)


def _cut(values: tuple[int, ...], arguments: argparse.Namespace) -> tuple[int, ...]:
    return values[:2] if arguments.quick else values


def list_engines() -> list[str | None]:
    """The engines that this thumbtune has, None for the only one."""
    has_choice = "engine" in {one.name for one in dataclasses.fields(KTOConfig)}
    return ["packed", "padded"] if has_choice else [None]


def measure(case: Case, engine: str | None) -> Outcome:
    """One training run of a case."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATES["full"],
        "max_length": 8192,
        "bf16": cpu_has_fast_bf16(),
        **({"engine": engine} if engine else {}),
    }
    job = Job("thumbtune", make_rows(case.workload, case.n_rows), settings, model=case.model)
    return run_in_child(run_arm, Arm("thumbtune"), job)


def tabulate(case: Case, outcomes: dict[str | None, Outcome]) -> list[Any]:
    """A line of the table: tokens per row, then each engine's seconds per row, tokens/s and peak, then the ratio."""
    tokens = next(iter(outcomes.values())).n_tokens
    numbers = [
        number
        for run in outcomes.values()
        for number in (run.seconds / case.n_rows, tokens / run.seconds, round(run.peak_mb))
    ]
    seconds = [run.seconds for run in outcomes.values()]
    ratio = [seconds[1] / seconds[0]] if len(seconds) == 2 else []
    return [case.sweep, case.value, case.n_rows, tokens / case.n_rows, *numbers, *ratio]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sweeps", default="length,siblings,rows,vocabulary")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tiny", action="store_true", help="a random llama of two layers for every sweep")
    parser.add_argument("--quick", action="store_true", help="two points of each sweep")
    return parser.parse_args()


def main() -> None:
    arguments, engines, lines = read_arguments(), list_engines(), []
    with tempfile.TemporaryDirectory() as folder:
        for case in list_cases(arguments, Path(folder)):
            outcomes = {engine: measure(case, engine) for engine in engines}
            lines.append(tabulate(case, outcomes))
            print(*lines[-1], file=sys.stderr, flush=True)
    header = ["sweep", "value", "rows", "tokens/row"]
    for engine in engines:
        header += [f"{what}, {engine or 'thumbtune'}" for what in ("s/row", "tokens/s", "peak MB")]
    ratio = ["times as fast as padded"] if len(engines) == 2 else []
    print(format_table([*header, *ratio], lines))


if __name__ == "__main__":
    main()
