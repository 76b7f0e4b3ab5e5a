"""What learned rows between two trims cost beside the best fixed ones, on simulated machines.

Learned from the first rows of a noisy conversation with safe marks, judged without noise on the same rows.
Times are reckoned, none is measured, so the table is the same everywhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "daemon"))

from spoolama.engine.marks import SAFE_EVERY
from spoolama.testing.costed import MACHINES, compare, sweep


def main() -> None:
    """Print one line for each machine, number of kept rows and length of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", default="5,20,50", help="rows that a trim keeps, separated by commas")
    parser.add_argument("--tokens", default="60,400", help="tokens of a row and its answer, likewise")
    parser.add_argument("--rows", type=int, default=1500, help="rows of the conversation that is judged")
    parser.add_argument("--learn-rows", type=int, default=64, help="rows that are learned from")
    parser.add_argument("--step", type=float, default=1.2, help="distance of the marks tried, as a factor")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"{given.rows} rows, learned from {given.learn_rows}, answers of 16 tokens, seed {given.seed}")
    safe = f"of {SAFE_EVERY}"
    print(f"{'machine':<12} {'keep':>4} {'tokens':>6} {'best':>5} {'learned':>7} {'ratio':>6} {safe:>6}")
    worst = 0.0
    for machine in MACHINES:
        for keep in map(int, given.keep.split(",")):
            for tokens in map(int, given.tokens.split(",")):
                found = compare(
                    machine,
                    keep=keep,
                    tokens=tokens,
                    tried=sweep(given.step),
                    rows=given.rows,
                    learn_rows=given.learn_rows,
                    seed=given.seed,
                )
                worst = max(worst, found.ratio)
                print(
                    f"{found.machine:<12} {keep:>4} {tokens:>6} {found.best:>5} {found.learned:>7}"
                    f" {found.ratio:>6.3f} {found.safe:>6.3f}",
                    flush=True,
                )
    print(f"learned marks cost at most {worst - 1:.1%} more than the best fixed ones")


if __name__ == "__main__":
    main()
