"""How far answers repeat: one lane, four lanes, and a run that is killed three times, on a real model.

Prompts are the same byte for byte in all three (tested). Answers may differ, because another batch may change
a token. This counts the differences at temperature 0. `make bench-repeat` runs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from daemons import clean_env, make_spool, results, run_once  # noqa: E402 - it is run as a script

ROOT = Path(__file__).parents[2]
SIDECAR = """
model: smollm2:135m
system: Judge the sentiment of a sentence from a product review. Answer with one word.
prompt: "{{ text }}"
format: {enum: [positive, negative, neutral]}
segment: 15
audit: off
trim: TRIM
options: {num_ctx: 4096, num_predict: 16, temperature: 0, seed: 7}
"""
TRIMS = {
    "isolated": "{strategy: reset, every: 1}",
    "reset": "{strategy: reset, every: 15}",
    "anchors": "{strategy: anchors, anchors: 6}",
}


def answers_of(base: Path, name: str, trim: str, rows: int, lanes: int, kills: int) -> list[str]:
    """Run the job in its own service; return its answers in order."""
    spool = make_spool(base / name)
    lines = (ROOT / "config/data/reviews.csv").read_text().splitlines()[: rows + 1]
    (spool / "incoming" / "job.csv").write_text("\n".join(lines) + "\n")
    (spool / "incoming" / "job.yaml").write_text(SIDECAR.replace("TRIM", trim))
    env = clean_env(spool, "", SPOOLAMA_LANES=str(lanes), SPOOLAMA_BACKEND__KIND="embedded")
    env.pop("SPOOLAMA_BACKEND__URL")
    for number in range(kills):
        with (base / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "spoolama", "run"], env=env, stdout=log, stderr=log
            )
            while done(spool) < rows * (number + 1) // (kills + 1):
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
    ended = run_once(env, timeout=3600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (job,) = (spool / "done").iterdir()
    return [str(row["answer"]) for row in results(job)]


def done(spool: Path) -> int:
    """Return the rows answered so far, from the ledger."""
    for ledger in (spool / "processing").glob("*/ledger.sqlite"):
        try:
            with sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True) as db:
                return int(db.execute("SELECT count(*) FROM results").fetchone()[0])
        except sqlite3.Error:
            return 0
    return 0


def main() -> None:
    """Print how many answers are the same as with one lane."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60)
    given = parser.parse_args()
    print(f"SmolLM2-135M-Instruct, embedded, {given.rows} rows, temperature 0, {os.cpu_count()} cores")
    print(f"{'strategy':<12} {'1 lane again':>13} {'4 lanes':>13} {'1 lane, 3 kills':>16}")
    for name, trim in TRIMS.items():
        with tempfile.TemporaryDirectory() as place:
            base = Path(place)
            one = answers_of(base, "one", trim, given.rows, 1, 0)
            shown = []
            for other, lanes, kills in (("again", 1, 0), ("four", 4, 0), ("killed", 1, 3)):
                found = answers_of(base, other, trim, given.rows, lanes, kills)
                shown.append(f"{sum(a == b for a, b in zip(one, found, strict=True))}/{given.rows}")
        print(f"{name:<12} {shown[0]:>13} {shown[1]:>13} {shown[2]:>16}", flush=True)


if __name__ == "__main__":
    main()
