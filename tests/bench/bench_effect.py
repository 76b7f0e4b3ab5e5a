"""How often pilot, guard and audit find what a conversation does to answers, and how often what is not there.

Whole jobs are simulated at the level of decisions, with answers made to order; nothing is timed, so the table
is the same everywhere. Harm is what agreement with alone lacks to that of alone with itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from bench.effect.jobs import run_job  # noqa: E402 - it is run as a script
from bench.effect.scenarios import SCENARIOS  # noqa: E402
from bench.effect.table import Counted, counted, markdown, totals  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> list[Counted]:
    """Print a table with one line for each kind of job, and what they come to together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="jobs of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds of job whose name has this in it")
    parser.add_argument("--markdown", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    rows = []
    for scenario in SCENARIOS:
        if given.only in scenario.name:
            print(f"{scenario.name} ...", file=sys.stderr, flush=True)
            seeds = range(given.first_seed, given.first_seed + given.seeds)
            rows.append(counted(scenario, [run_job(scenario, seed) for seed in seeds]))
    table = f"{markdown(rows)}\n\n{totals(rows)}\n"
    print(table, end="")
    if given.markdown is not None:
        given.markdown.parent.mkdir(parents=True, exist_ok=True)
        given.markdown.write_text(table)
    return rows


if __name__ == "__main__":
    main()
