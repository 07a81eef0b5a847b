"""How long it takes to freeze ten million votes, in how much memory; and whether DuckDB and Spark agree.

    python benchmarks/curate.py                          # 10,000,000 votes on 2,000,000 completions by 100,000 people
    python benchmarks/curate.py --votes 1000000
    python benchmarks/curate.py --spark-rows 200000      # the same votes on both backends: equal digests?

The staged votes are made by DuckDB from a seed: answers of some 200 bytes, five presses to an answer, changes of mind,
retractions, hints, prompts asked by many, answers given twice or nearly so, and a hundred people who press like robots.
Each freeze runs in a process of its own, whose peak memory is what the kernel says of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

VOTES = """
COPY (
  WITH made AS (
    SELECT
      i AS vote_id,
      -- one in 25 presses comes again from the same person on the same answer
      CASE WHEN i % 25 = 0 THEN i - 1 ELSE i END AS act,
      i
    FROM range(1, {n_votes} + 1) r(i)
  ), placed AS (
    SELECT *,
      CASE WHEN act % 100 = 7 THEN act % 100_000_007 ELSE hash(act) END % {n_completions} AS c,
      hash(act * 7 + 1) % 1_000 AS chance
    FROM made
  ), pressed AS (
    SELECT *,
      CASE
        WHEN chance < 10 THEN hash(act * 13) % 100            -- robots
        WHEN chance < 300 THEN c % {n_users}                  -- whoever asked
        ELSE hash(act * 11 + 3) % {n_users}
      END AS u
    FROM placed
  )
  SELECT
    vote_id,
    'chatcmpl-' || substr(md5(c::VARCHAR), 1, 24) AS completion_id,
    md5('u' || u) AS user_key,
    CASE WHEN chance BETWEEN 400 AND 440 THEN 'copy' ELSE 'explicit' END AS kind,
    CASE WHEN i % 25 = 0 AND i % 75 = 0 THEN NULL
         ELSE (hash(c * 5 + 2) % 10 < 7) <> (hash(i * 3) % 10 = 0) END AS label,
    CASE WHEN chance BETWEEN 400 AND 440 THEN 0.5 ELSE 1.0 END::DOUBLE AS strength,
    NULL::VARCHAR AS reason,
    1_760_000_000_000_000 + CASE
      WHEN chance < 10 THEN (act // 500_000) * 3_600_000_000 + hash(act) % 60_000_000
      ELSE hash(act * 17) % 7_776_000_000_000 END + (i - act) * 1_000 AS created_us,
    md5('t' || c // 3) AS conversation_key,
    md5('u' || c % {n_users}) AS asked_by,
    'adapter-' || c % 3 AS model_version,
    CASE WHEN c % 50 = 1 THEN 'length' WHEN c % 70 = 1 THEN 'cancelled' ELSE 'stop' END AS finish_reason,
    c % 200 = 3 AS erased,
    c % 200 <> 3 AS has_text,
    sha256('p' || CASE WHEN c % 10 < 4 THEN c % 50_000 ELSE c END) AS prompt_digest,
    sha256('a' || CASE WHEN c % 10 < 2 THEN c % 50_000 ELSE c END) AS completion_digest,
    '' AS correction_digest
  FROM pressed
) TO '{folder}/votes.parquet' (FORMAT parquet)
"""

TEXTS = """
COPY (
  WITH told AS (
    SELECT c,
      CASE WHEN c % 10 < 4 THEN c % 50_000 ELSE c END AS p,
      CASE WHEN c % 10 < 2 THEN c % 50_000 ELSE c END AS a
    FROM range({n_completions}) r(c)
    WHERE c % 200 <> 3
  ), worded AS (
    SELECT c,
      -- one prompt and answer in thirty repeat others but for the prompt's first word and the answer's last
      list_aggregate(list_transform(range(12), lambda x:
        'w' || hash((CASE WHEN p % 31 = 7 AND x > 0 THEN p % 3100 ELSE p END) * 64 + x) % 9000),
        'string_agg', ' ') AS asked,
      list_aggregate(list_transform(range(34), lambda x:
        'w' || hash((CASE WHEN a % 31 = 7 AND x < 33 THEN a % 3100 ELSE a END) * 64 + x + 20) % 9000),
        'string_agg', ' ') AS said
    FROM told
  )
  SELECT
    'chatcmpl-' || substr(md5(c::VARCHAR), 1, 24) AS completion_id,
    '[{{"role":"user","content":"' || asked || '"}}]' AS messages,
    '{{"role":"assistant","content":"' || said || '"}}' AS completion,
    NULL::VARCHAR AS tools,
    NULL::VARCHAR AS corrections
  FROM worded
) TO '{folder}/texts.parquet' (FORMAT parquet)
"""


def make_staged(folder: Path, n_votes: int) -> None:
    """Write staged votes as `thumbtune.loop.staging` does."""
    import duckdb

    from thumbtune.loop.staging import Staged

    folder.mkdir(parents=True)
    n_completions = n_votes // 5
    sizes = {"n_votes": n_votes, "n_completions": n_completions, "n_users": n_votes // 100, "folder": folder}
    with duckdb.connect() as connection:
        connection.execute(VOTES.format(**sizes))
        connection.execute(TEXTS.format(**sizes))
        found = connection.execute(f"SELECT max(created_us) FROM '{folder}/votes.parquet'").fetchone()
    assert found is not None
    staged = Staged(folder, time.time_ns() // 1000, n_votes, n_completions, found[0], 0.0)
    (folder / "staged.json").write_text(json.dumps(asdict(staged) | {"folder": None}))


FREEZE = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from thumbtune.loop.curate import CurationRules
from thumbtune.loop.snapshot import freeze
from thumbtune.loop.staging import read_staged
staged, folder, backend, memory_limit = sys.argv[1:]
start = time.perf_counter()
snapshot = freeze(read_staged(Path(staged)), CurationRules(), Path(folder), backend=backend, memory_limit=memory_limit)
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
print(json.dumps(asdict(snapshot) | {"folder": None, "total": time.perf_counter() - start, "peak_gib": peak}))
"""


def measure_freeze(staged: Path, folder: Path, backend: str, memory_limit: str) -> dict:
    """What a freeze in a fresh process took."""
    command = [sys.executable, "-c", FREEZE, str(staged), str(folder), backend, memory_limit]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_measured(measured: dict, n_votes: int) -> None:
    seconds = measured["seconds"]
    print(f"\n{n_votes:,} votes on {measured['backend']}, {os.cpu_count()} cores")
    for step, took in seconds.items():
        print(f"  {step:<18}{took:8.1f} s")
    apart = seconds.get("near duplicates", 0.0)
    print(
        f"  {'all':<18}{measured['total']:8.1f} s, without near duplicates {measured['total'] - apart:.1f} s"
    )
    print(f"  peak memory       {measured['peak_gib']:8.2f} GiB")
    print(f"  rows {measured['n_rows']:,} to train on, {measured['n_held_out']:,} held out")
    print(f"  digest {measured['digest'][:16]}, hold-out {(measured['held_out_digest'] or '-')[:16]}")
    for outcome, n in measured["outcomes"].items():
        print(f"    {n:>12,}  {outcome}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=10_000_000)
    parser.add_argument("--spark-rows", type=int, help="Compare the backends on so many votes instead.")
    parser.add_argument("--memory-limit", default="2GB")
    parser.add_argument("--folder", type=Path, help="Where to work; a temporary folder by default.")
    options = parser.parse_args()
    n_votes = options.spark_rows or options.votes
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        make_staged(folder / "staged", n_votes)
        print(f"made {n_votes:,} votes in {time.perf_counter() - start:.0f} s")
        digests = []
        for backend in ("duckdb", "spark") if options.spark_rows else ("duckdb",):
            measured = measure_freeze(folder / "staged", folder / backend, backend, options.memory_limit)
            print_measured(measured, n_votes)
            digests.append((measured["digest"], measured["held_out_digest"], measured["outcomes"]))
        if options.spark_rows:
            print("\nequal on both backends" if digests[0] == digests[1] else "\nNOT equal")


if __name__ == "__main__":
    main()
