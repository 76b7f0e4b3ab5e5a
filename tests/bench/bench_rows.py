"""Rows per second, CPU and memory of the service at growing sizes, with the fake server at zero latency.

It measures our own layer, from the start of the process to its end: reading, asking, answering, publishing.
The fake answers at once and runs on the same cores. `make bench` runs it; `--rows 1000,20000` chooses the
sizes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from daemons import clean_env, fake_ollama, make_spool  # noqa: E402 - it is run as a script

SIDECAR = """
model: smollm2:135m
system: You judge the sentiment of a product review. Answer with one word.
prompt: "{{ text }}"
id: id
mode: MODE
options: {num_ctx: 1024, num_predict: 16}
"""


@dataclass(frozen=True)
class Measured:
    """One run of the service."""

    rows: int
    wall_s: float
    cpu_s: float
    """User and system time of the service, without the fake."""
    peak_mb: float


def measure(base: Path, rows: int, mode: str = "isolated", lanes: int = 4) -> Measured:
    """Process one job with this many rows in its own process."""
    spool = make_spool(base / f"spool-{rows}-{mode}")
    with (spool / "incoming" / "job.csv").open("w") as file:
        file.write("id,text\n")
        for n in range(rows):
            file.write(f"c{n},review number {n} {'of a thing that works well enough ' * (n % 5 + 1)}\n")
    (spool / "incoming" / "job.yaml").write_text(SIDECAR.replace("MODE", mode))
    with fake_ollama(None, "--slots", str(lanes)) as url:
        env = clean_env(spool, url, SPOOLAMA_LANES=str(lanes))
        began = time.monotonic()
        with (base / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "spoolama", "run", "--once"], env=env, stdout=log, stderr=log
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
    assert process.returncode == 0, (base / "log").read_text()[-2000:]
    (job,) = (spool / "done").iterdir()
    with (job / "results.jsonl").open() as lines:
        assert sum(1 for _ in lines) == rows
    shutil.rmtree(spool)
    return Measured(rows, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    """Print a table and the spread of the memory peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1000,20000,100000", help="sizes, separated by commas")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each size; medians are printed")
    parser.add_argument("--mode", choices=["isolated", "conversation"], default="isolated")
    given = parser.parse_args()
    print(f"on the fake server at zero latency, {os.cpu_count()} cores shared with it, mode {given.mode}")
    print(f"{'rows':>8} {'rows/s':>8} {'CPU ms/row':>11} {'peak MB':>8} {'rows/s from-to':>17}")
    peaks = []
    with tempfile.TemporaryDirectory() as base:
        for rows in map(int, given.rows.split(",")):
            runs = [measure(Path(base), rows, given.mode) for _ in range(given.repeats)]
            rates = sorted(run.rows / run.wall_s for run in runs)
            rate = statistics.median(rates)
            cpu = statistics.median(run.cpu_s / run.rows * 1000 for run in runs)
            peaks.append(max(run.peak_mb for run in runs))
            spread = f"{rates[0]:.1f}-{rates[-1]:.1f}"
            print(f"{rows:>8} {rate:>8.1f} {cpu:>11.2f} {peaks[-1]:>8.1f} {spread:>17}", flush=True)
    print(f"peaks of memory within {max(peaks) - min(peaks):.1f} MB")


if __name__ == "__main__":
    main()
