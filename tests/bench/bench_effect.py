"""How often the audit finds harm, how often it raises a false alarm, and how early.

Whole jobs are simulated at the level of decisions, with scripted answers; nothing is timed, so the table is
the same on any machine. Harm is the difference between the agreement with isolated answers and the agreement
of these with themselves. Thresholds were chosen with seeds below 1,000; the published table has seeds from
100,000 on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from bench.effect.jobs import run_job  # noqa: E402 - it is run as a script
from bench.effect.scenarios import SCENARIOS, SMALL, of_size, small  # noqa: E402
from bench.effect.table import Counted, counted, markdown, small_table, totals  # noqa: E402
from spoolama.compare.audit import budget_of  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> list[Counted]:
    """Print a table with one line for each kind of job, their totals, and smaller jobs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="jobs of each kind")
    parser.add_argument("--first-seed", type=int, default=100_000)
    parser.add_argument("--only", default="", help="kinds of job whose name has this in it")
    parser.add_argument("--rows", default="10000,50000", help="sizes of the jobs")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    rows = []
    with ProcessPoolExecutor(given.processes) as pool:
        run = map if given.processes == 1 else pool.map
        for number in map(int, given.rows.split(",")):
            for scenario in SCENARIOS:
                if given.only in scenario.name:
                    print(f"{scenario.name}, {number:,} rows ...", file=sys.stderr, flush=True)
                    sized = of_size(scenario, number)
                    rows.append(counted(scenario=sized, outcomes=list(run(partial(run_job, sized), seeds))))
        table = f"{markdown(rows)}\n\n{totals(rows)}\n"
        if not given.only:
            jobs = [(*small(number), number) for number in SMALL]
            found = [
                (
                    job,
                    share,
                    budget_of(None, number, noisy=False).rows,
                    list(run(partial(run_job, job), seeds)),
                )
                for job, share, number in jobs
            ]
            table += f"\n{small_table(found)}\n"
    print(table, end="")
    if given.markdown is not None:
        given.markdown.parent.mkdir(parents=True, exist_ok=True)
        given.markdown.write_text(table)
    return rows


if __name__ == "__main__":
    main()
