"""What learned rows between two trims cost beside the best fixed ones, on simulated machines and real models.

Simulated: learned from the first rows of a noisy conversation with safe marks, judged without noise on the
same rows. Times are reckoned, none is measured, so the table is the same everywhere.

Real: learned from the first 64 rows, judged by the server's own times of conversations that take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from bench.engine.marks_run import MarksRun, compare_marks  # noqa: E402 - it is run as a script
from spoolama.backends.embedded_models import default_cache_dir  # noqa: E402
from spoolama.clock import SystemClock  # noqa: E402
from spoolama.context.marks import SAFE_EVERY  # noqa: E402
from support.costed import MACHINES, compare, sweep  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each machine, number of kept rows and length of rows; then those of real models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", default="5,20,50", help="rows that a trim keeps, separated by commas")
    parser.add_argument("--tokens", default="60,400", help="tokens of a row and its answer, likewise")
    parser.add_argument("--rows", type=int, default=1500, help="rows of the conversation that is judged")
    parser.add_argument("--learn-rows", type=int, default=64, help="rows that are learned from")
    parser.add_argument("--step", type=float, default=1.2, help="distance of the marks tried, as a factor")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", default="", help="real models to try as well, separated by commas")
    parser.add_argument("--real-learn-rows", type=int, default=64, help="rows that are learned from there")
    parser.add_argument("--real-keep", type=int, default=10, help="rows that a trim keeps there")
    parser.add_argument("--real-tried", default="4,10,20,40", help="rows between two trims tried there")
    parser.add_argument("--real-rows", type=int, default=120, help="rows of each conversation there")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    given = parser.parse_args(arguments)
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
    for model in filter(None, given.models.split(",")):
        print(f"\n{model}: learning and trying, some minutes ...", file=sys.stderr, flush=True)
        run = asyncio.run(
            compare_marks(
                model,
                keep=given.real_keep,
                tried=tuple(map(int, given.real_tried.split(","))),
                learn_rows=given.real_learn_rows,
                rows=given.real_rows,
                threads=given.threads,
                cache_dir=default_cache_dir(),
                clock=SystemClock(),
            )
        )
        print(*real_lines(run, given.real_keep), sep="\n", flush=True)


def real_lines(run: MarksRun, keep: int) -> list[str]:
    """The comparison in words."""
    learned, best = run.learned, run.best
    lines = ["", f"{run.model}, keep {keep}"]
    lines.append(f"{'every':>8} {'judged':>6} {'ms a row':>9} {'to best':>8} {'evaluated':>10} {'prompt':>7}")
    for tried in run.tried:
        mark = "*" if tried.every == learned.every else " "
        lines.append(
            f"{mark}{tried.every:>7} {tried.judged:>6} {tried.seconds * 1000:>9.1f}"
            f" {tried.seconds / best.seconds:>8.3f} {tried.evaluated:>10.1f} {tried.prompt:>7.0f}"
        )
    if learned.costs is None:
        return [*lines, f"nothing was learned: {learned.reason}"]
    costs = learned.costs
    lines.append(
        f"learned from {costs.samples} rows (off by {costs.error:.0%}): every {learned.every}; evaluation"
        f" {costs.a * 1e3:.1f} ms + n ({costs.b * 1e3:.3f} ms + {costs.c * 1e6:.3f} us x context), answer"
        f" o ({costs.d * 1e3:.2f} ms + {costs.e * 1e6:.3f} us x context)"
    )
    ratio = run.ratio
    if ratio is not None:
        lines.append(
            f"the learned marks cost {ratio - 1:.1%} more than the best that was tried ({best.every})"
        )
    return lines


if __name__ == "__main__":
    main()
