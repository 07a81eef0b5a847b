"""Run the engine's benchmarks and write down what they gave: machine, versions, commands and tables in RESULTS.md.

Each benchmark is a command of its own, whose standard output is the record. What the file holds of other commands
stays, each with its date and commit, while machine and versions are the same; on others it starts anew. One that fails
is written down as failed, and the exit status is 1.

    python benchmarks/record.py [--only parity,kto_step] [--quick] [--out benchmarks/RESULTS.md]
    python benchmarks/record.py --command "kto_step.py --workload short --rows 16 --rounds 1"
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

HERE = Path(__file__).parent
PACKAGES = ("thumbtune", "torch", "transformers", "trl", "peft", "accelerate")
TOLD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
COMMANDS = (
    "parity.py",
    "parity.py --shape lora",
    "kto_step.py --workload mixed --shape full",
    "kto_step.py --workload mixed --shape lora",
    "kto_step.py --workload long_prompt --rows 32 --arms trl_default,trl_tuned,thumbtune",
    "kto_step.py --workload siblings --rows 32 --arms trl_default,trl_tuned,thumbtune,thumbtune_together",
    "precision.py",
    "scaling.py",
    "gateway.py all",
    "gateway.py votes --postgres",
    "serving_local.py",
    "curate.py",
)
QUICK_COMMANDS = (
    "parity.py --tiny --steps 2",
    "kto_step.py --tiny --rows 8 --epochs 1 --rounds 1 --batch 4 --workload short --precompute-batches 4",
    "precision.py --tiny --steps 2 --rows 8 --held-out 4 --shapes full",
    "scaling.py --tiny --quick --rows 8 --sweeps siblings",
    "curate.py --votes 20000",
)


class Ran(NamedTuple):
    """A command, and what came of it."""

    command: str
    output: str
    failed: bool
    minutes: float
    commit: str
    date: datetime

    def to_markdown(self) -> str:
        lines = [
            f"{_HEADING}{self.command}`",
            "",
            f"{self.date:%Y-%m-%d %H:%M} UTC, commit {self.commit}, {self.minutes:.1f} minutes."
            + (" **It failed.**" if self.failed else ""),
            "",
            self.output or "Nothing was printed.",
        ]
        return "\n".join(lines)


_HEADING = "## `python benchmarks/"


def run_command(command: str) -> Ran:
    """Run a script of this folder; progress goes to standard error as it comes."""
    print(f"python benchmarks/{command}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    script, *options = shlex.split(command)
    done = subprocess.run([sys.executable, str(HERE / script), *options], stdout=subprocess.PIPE, text=True)
    minutes = (time.perf_counter() - started) / 60
    return Ran(command, done.stdout.strip(), done.returncode != 0, minutes, read_commit(), datetime.now(UTC))


def read_commit() -> str:
    """The commit that is checked out, with "and changes" where the tree has some."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty= and changes"], cwd=HERE, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return told.stdout.strip() or "unknown"


def describe_machine() -> list[str]:
    """Processor, its flags that matter here, cores, memory; versions."""
    model, flags = _read_processor()
    told = [flag for flag in TOLD_FLAGS if flag in flags]
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"- {model}: {', '.join(told) or 'no flag of interest'}; torch takes it for {_name_capability()}",
        f"- {os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB of memory, no GPU used",
        f"- {platform.system()} {platform.machine()}, Python {platform.python_version()}, {versions}",
    ]


def _read_processor() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    return told.get("model name", platform.machine()), set(told.get("flags", "").split())


def _name_capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def add_result(one: Ran, out: Path) -> None:
    """Write one command's result into the record, in place of the one that it holds of this command."""
    title = ["# What the benchmarks gave", "", "Written by `benchmarks/record.py`. Do not edit by hand.", ""]
    head = "\n".join([*title, *describe_machine()])
    sections = {one.command: one.to_markdown()}
    if out.is_file():
        held_head, *held = out.read_text().rstrip("\n").split(f"\n\n{_HEADING}")
        if held_head == head:
            held_sections = {section.split("`", 1)[0]: _HEADING + section for section in held}
            sections = held_sections | sections
    out.write_text("\n\n".join([head, *sections.values()]) + "\n")


def choose_commands(quick: bool, only: str | None) -> list[str]:
    """The commands to run, those of some scripts alone where they are named."""
    commands = QUICK_COMMANDS if quick else COMMANDS
    wanted = only.split(",") if only else None
    return [one for one in commands if wanted is None or one.split(".py")[0] in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="names of scripts, with commas")
    parser.add_argument("--command", help="one command of your own, such as 'parity.py --steps 3'")
    parser.add_argument("--quick", action="store_true", help="minutes, to see that all of them run")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    arguments = parser.parse_args()
    commands = [arguments.command] if arguments.command else choose_commands(arguments.quick, arguments.only)
    failed = False
    for command in commands:
        ran = run_command(command)
        add_result(ran, arguments.out)
        failed |= ran.failed
    sys.exit(failed)


if __name__ == "__main__":
    main()
