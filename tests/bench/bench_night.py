"""A whole night on a shared card of 16 GB: 170,000 rows and a 12B model.

Simulated with a simulated clock in one process: model server and card are those of
`tests/support/card_server.py`, engine and watchdog are the real ones. The size of a load is our own estimate,
and the speed of answers is set; so the table shows what the watchdog does, not how fast a model is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from bench.night.night_run import Night, run_night  # noqa: E402 - it is run as a script
from support.card_users import night_of  # noqa: E402

_FIGURES: tuple[tuple[str, Callable[[Night], str]], ...] = (
    ("rows", lambda n: f"{n.rows:,}"),
    ("rows answered", lambda n: f"{len(n.store.results):,}"),
    ("rows failed", lambda n: f"{len(n.store.failures):,}"),
    ("rows lost", lambda n: f"{n.rows - len(n.store.results) - len(n.store.failures):,}"),
    ("hours", lambda n: f"{n.hours:.2f}"),
    ("rows/s", lambda n: f"{len(n.store.results) / n.hours / 3600:.2f}"),
    ("hours ok", lambda n: _hours(n, "ok")),
    ("hours high", lambda n: _hours(n, "high")),
    ("hours critical", lambda n: _hours(n, "critical")),
    ("seconds above 15 GB, whoever was there", lambda n: f"{n.above_s:,.0f}"),
    ("seconds above 15 GB with our model there", lambda n: f"{n.over_s:,.1f}"),
    ("longest of these, in s", lambda n: f"{n.longest_s:.1f}"),
    ("longest that it may be, in s", lambda n: f"{n.most_s:.1f}"),
    ("longest with a load under way, in s", lambda n: f"{n.longest_loading_s:.1f}"),
    ("releases for want of memory", lambda n: f"{n.notes['paused']}"),
    ("loads", lambda n: f"{len(n.loads)}"),
    ("loads that found the card full", lambda n: f"{n.server.short_of_memory}"),
    ("smaller loads", lambda n: f"{n.notes['smaller_load']}"),
    ("larger loads", lambda n: f"{n.notes['larger_load']}"),
    ("most changes of level in a minute", lambda n: f"{n.changes_a_minute}"),
    ("most reloads in an hour", lambda n: f"{n.reloads_an_hour}"),
    ("real seconds of the simulation", lambda n: f"{n.took_s:.0f}"),
)


def _hours(night: Night, level: str) -> str:
    return f"{night.history['seconds'][level] / 3600:.2f}"


def markdown(nights: Sequence[Night]) -> str:
    """Return one line for each figure and one column for each night."""
    lines = [
        "| figure | " + " | ".join(f"night {night.seed}" for night in nights) + " |",
        "|---|" + "---:|" * len(nights),
    ]
    lines += [f"| {name} | " + " | ".join(of(night) for night in nights) + " |" for name, of in _FIGURES]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[Night]:
    """Print a table of the nights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=170_000)
    parser.add_argument("--hours", type=float, default=10.0, help="until when others come")
    parser.add_argument("--often", type=float, default=1.0, help="how many times as often as usual they do")
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    nights = []
    for seed in range(given.first_seed, given.first_seed + given.nights):
        print(f"night {seed} ...", file=sys.stderr, flush=True)
        nights.append(run_night(given.rows, night_of(seed, given.hours, often=given.often), seed=seed))
        if nights[-1].error:
            print(f"night {seed}: the job failed: {nights[-1].error}", file=sys.stderr, flush=True)
    table = f"{markdown(nights)}\n"
    print(table, end="")
    if given.markdown is not None:
        given.markdown.parent.mkdir(parents=True, exist_ok=True)
        given.markdown.write_text(table)
    return nights


if __name__ == "__main__":
    main()
