"""The cost of the evaluation process for each row: wall time and CPU time, by concurrent requests.

make bench-evaluation

Each figure is the median of `--repeats` rounds, in which all sizes take turns. The last lines show the same
work inline, in the service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from spoolama.evaluation.process import EvaluationProcess
from spoolama.evaluation.protocol import TaskRunner
from support.evaluation import InlineRunner

TEMPLATE = "Judge this review of {{ product }}:\n{{ text }}\n{% if stars is defined %}{{ stars }}{% endif %}"
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 0}, "why": {"type": "string"}},
        "required": ["score"],
    }
)
ROW = {
    "product": "a phone case",
    "text": "It fits and looks good, but arrived late. " * 8,
    "stars": 4,
}
ANSWER = json.dumps({"score": 4, "why": "fits well, arrived late"})


async def measure(runner: TaskRunner, cpu: Callable[[], float], rows: int, lanes: int) -> tuple[float, float]:
    """Return milliseconds of wall time and CPU time for each row: one prompt rendered, one answer checked."""

    async def lane() -> None:
        for _ in range(rows // lanes):
            await runner.run("render", TEMPLATE, [ROW], 2.0)
            await runner.run("check", SCHEMA, [ANSWER], 2.0)

    began, cpu_began = time.perf_counter(), cpu()
    await asyncio.gather(*(lane() for _ in range(lanes)))
    return (time.perf_counter() - began) / rows * 1e3, (cpu() - cpu_began) / rows * 1e3


def cpu_of(pid: int | None) -> float:
    """Return the CPU seconds that a process has used."""
    if pid is None:
        return 0.0
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / 100


async def main(rows: int, repeats: int) -> None:
    process, inline = EvaluationProcess(), InlineRunner()
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        await process.run("render", TEMPLATE, [ROW], 2.0)
        for _ in range(repeats):
            for lanes in (1, 4, 16):

                def both() -> float:
                    return time.process_time() + cpu_of(process.pid)

                found.setdefault(f"process, {lanes:2} at once", []).append(
                    await measure(process, both, rows, lanes)
                )
            found.setdefault("on the spot", []).append(await measure(inline, time.process_time, rows, 1))
    finally:
        await process.aclose()
    print(f"{rows} rows, {repeats} rounds, medians; a row is one prompt rendered and one answer checked")
    for name, figures in found.items():
        wall, cpu = (statistics.median(figure) for figure in zip(*figures, strict=True))
        print(f"{name:22} {wall:6.3f} ms, {cpu:6.3f} ms of CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    asyncio.run(main(**vars(parser.parse_args())))
