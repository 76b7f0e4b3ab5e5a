"""The cost of watching memory: CPU time of one reading a second, as a share of a core.

With this machine's own driver if there is one, else with the stub of NVIDIA's library and one or four cards.
Everything else is real: pynvml, /proc, the watchdog. `make bench-watch` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from nvml_stub import FakeCard, Script  # noqa: E402 - it is run as a script
from spoolama.clock import SystemClock  # noqa: E402
from spoolama.memory.host import HostProbe  # noqa: E402
from spoolama.memory.nvml import NvmlCards  # noqa: E402
from spoolama.memory.reader_threads import CardThread, HostThread  # noqa: E402
from spoolama.memory.watchdog import MemoryWatchdog  # noqa: E402

LOOKS = 300


def cost_ms(work: Callable[[], object], times: int) -> float:
    """Return the CPU time of all threads of this process for one call, the mean of this many."""
    work()  # imports and the first scan of /proc are no running cost
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) * 1000 / times


def measure(times: int) -> dict[str, float]:
    """Return milliseconds of CPU for each part of a reading."""
    clock = SystemClock()
    thread = CardThread(NvmlCards(), clock)
    host = HostProbe(clock=clock)
    watchdog = MemoryWatchdog(thread, HostThread(host, clock), clock)

    def scan() -> None:
        host._scanned_at = None
        host.runners()

    cards = cost_ms(thread.read_once, times)
    memory = cost_ms(lambda: (host.host(), host.runners()), times)
    scanned = cost_ms(scan, max(1, times // 10))
    look = cost_ms(watchdog.look, times)
    return {"cards": cards, "memory": memory, "scan of /proc, a tenth": scanned / 10, "decisions": look}


def measured_in(env: dict[str, str], times: int) -> dict[str, float]:
    """Measure in a new process, because the loader uses the library path of the process start."""
    ended = subprocess.run(
        [sys.executable, __file__, "--here", "--looks", str(times)],
        env=os.environ | env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=LOOKS)
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    parser.add_argument("--driver", action="store_true", help="this machine's own driver alone")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.looks)))
        return
    rows: dict[str, dict[str, float]] = {}
    if given.driver:
        rows["this machine's driver"] = measured_in({}, given.looks)
    else:
        with tempfile.TemporaryDirectory() as base:
            for number in (1, 4):
                cards = [FakeCard(used=9 << 30, processes=[(os.getpid(), 8 << 30)]) for _ in range(number)]
                script = Script(Path(base) / f"script-{number}", cards)
                script.write()
                rows[f"stand-in, {number} card{'s' * (number > 1)}"] = measured_in(script.env(), given.looks)
    parts = list(next(iter(rows.values())))
    print(f"| a look a second, ms of CPU | {' | '.join(parts)} | share of a core |")
    print(f"|---|{'---:|' * (len(parts) + 1)}")
    for name, found in rows.items():
        shown = " | ".join(f"{found[part]:.2f}" for part in parts)
        print(f"| {name} | {shown} | {sum(found.values()) / 1000:.2%} |")


if __name__ == "__main__":
    main()
