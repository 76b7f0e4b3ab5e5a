"""Every strategy on real models, compared with llama.cpp's own speed and with the first loop.

`make bench-engine` runs it. Rounds are interleaved: all configurations once, then all again, so that a
machine that slows down slows all of them. A quick look: `--rows 12 --models smollm2:135m --slots 2 --repeats
1`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from bench.engine.aims import best_lines, verdicts  # noqa: E402 - it is run as a script
from bench.engine.rounds import Given, Rounds  # noqa: E402
from bench.engine.table import DEFAULT_NAMES, NAMES, RAW, Summary, how, summaries, table, with_loops  # noqa: E402
from spoolama.backends.embedded_models import default_cache_dir  # noqa: E402

_SEGMENTS = 4
"""Conversations, so that four lanes have work."""
_LEAST_SEGMENT = 3


def report(given: Given, rounds: Rounds) -> str:
    """Return the tables and the conclusions."""
    found = with_loops(summaries(rounds.measured))
    groups: list[list[Summary]] = [list(group) for group in _groups(found)]
    lines = [
        f"xllamacpp {version('xllamacpp')}, {os.cpu_count()} cores."
        + (f" Only {rounds.stopped}; medians are over those." if rounds.stopped else ""),
        "",
        *how(given.rows, given.segment, given.threads),
        *(line for group in groups for line in table(group, rounds.reviews)),
        "### What follows",
        "",
        *best_lines(groups),
        "",
        *verdicts(groups, given.models),
    ]
    return "\n".join(lines) + "\n"


def _groups(found: Sequence[Summary]) -> Iterator[Iterator[Summary]]:
    ordered = sorted(found, key=lambda s: (s.model, s.slots))  # stable: configurations keep their order
    return (group for _, group in itertools.groupby(ordered, key=lambda s: (s.model, s.slots)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the requested files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--models", default="smollm2:135m,gemma3:270m", help="separated by commas")
    parser.add_argument("--slots", default="1,4", help="numbers of slots, separated by commas")
    parser.add_argument("--only", default=",".join(DEFAULT_NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are printed")
    parser.add_argument("--minutes", type=float, default=90, help="begin no round that would end later")
    parser.add_argument("--json", type=Path, help="write all raw numbers to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help="for models")
    args = parser.parse_args(arguments)
    only = set(args.only.split(","))
    if unknown := only - set(NAMES):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if only & {*RAW}:
        only.add("alone")  # its answers decide how much is generated
    given = Given(
        rows=args.rows,
        models=tuple(args.models.split(",")),
        slots=tuple(map(int, args.slots.split(","))),
        names=tuple(name for name in NAMES if name in only),
        repeats=args.repeats,
        minutes=args.minutes,
        segment=max(_LEAST_SEGMENT, -(-args.rows // _SEGMENTS)),
        threads=args.threads,
        cache_dir=args.cache_dir,
    )
    rounds = Rounds(given)
    asyncio.run(rounds.run())
    text = report(given, rounds)
    print(text, end="", flush=True)
    if args.markdown is not None:
        args.markdown.write_text(text)
    if args.json is not None:
        raw = {
            "xllamacpp": version("xllamacpp"),
            "cores": os.cpu_count(),
            "rows": given.rows,
            "segment": given.segment,
            "stopped": rounds.stopped,
            "measured": [
                {**asdict(run), "rate": run.rate, "steady_share": run.steady_share,
                 "again_at_trims": run.again_at_trims}
                for run in rounds.measured
            ],
        }  # fmt: skip
        args.json.write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
