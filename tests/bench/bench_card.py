"""The watchdog on a real NVIDIA card: real NVML, real allocations, the real service, a fake model server.

The server's model and other programs are processes that hold memory on the card (`card/hold.py`); only the
first 16 GB of the card are used, with `vram: {high: 14, critical: 15}`. Other programs start, fill the 16 GB,
and end. It prints the memory in use each second, and the actions of the service. Needs a card with 17 GB
free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from daemons import clean_env, daemon, fake_ollama, make_spool  # noqa: E402 - it is run as a script
from nvml_stub import FakeCard, Script  # noqa: E402
from spoolama.memory.nvml import NvmlCards  # noqa: E402

GB = 1 << 30
MODEL = {
    "name": "judge:12b",
    "parameters": 10_500_000_000,
    "size_bytes": 6 * GB,
    "context_length": 131_072,
    "load_s": 0.05,
}


class MemoryProcess:
    """A process that holds memory on the card.

    Args:
        name: Its name in /proc.
    """

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [name, str(Path(__file__).with_name("card") / "hold.py"), name],
            executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hold(self, size: int) -> bool:
        """Hold this many bytes; return whether there was room."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{size}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip() == "held"

    def end(self) -> None:
        """Free all of it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


@dataclass
class Mirror:
    """Holds the model's memory, as the fake server models it, on the real card."""

    sent: Path
    stop: threading.Event = field(default_factory=threading.Event)
    _runner: MemoryProcess | None = None

    def run(self) -> None:
        """Run until stopped."""
        while not self.stop.wait(0.05):
            text = self.sent.read_text() if self.sent.exists() else ""
            size = sum(int(line.split()[2]) for line in text.splitlines())
            if size and self._runner is None:
                self._runner = MemoryProcess("llama-server")
                self._runner.hold(size - 632_000_000)  # CUDA's own memory comes with the process
            elif not size and self._runner is not None:
                self._runner.end()
                self._runner = None
        if self._runner is not None:
            self._runner.end()


@dataclass
class MemoryUse:
    """The memory in use on the card."""

    stop: threading.Event = field(default_factory=threading.Event)
    samples: list[tuple[float, int]] = field(default_factory=list)

    def run(self) -> None:
        """Read four times a second until stopped."""
        cards, began = NvmlCards(), time.monotonic()
        while not self.stop.wait(0.25):
            card = cards.read()[0]
            self.samples.append((time.monotonic() - began, card.used_bytes - (card.reserved_bytes or 0)))

    def longest_above(self, size: int) -> float:
        """Return the longest time in seconds at or above this size."""
        longest, since = 0.0, None
        for at, used in self.samples:
            if used < size:
                since = None
                continue
            since = at if since is None else since
            longest = max(longest, at - since)
        return longest


@contextlib.contextmanager
def threads(*works: Mirror | MemoryUse) -> Iterator[None]:
    """Run these threads during the block."""
    running = [threading.Thread(target=work.run) for work in works]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for work in works:
            work.stop.set()
        for thread in running:
            thread.join()


def play(base: Path, rows: int, latency_ms: int, steps: list[tuple[float, float]]) -> MemoryUse:
    """Run a job and other programs, each with its GB and its start in seconds."""
    script = Script(base / "nvml", cards=[FakeCard(total=16 * GB, used=1 * GB)])
    script.write()
    spool = make_spool(base / "spool")
    (spool / "incoming" / "job.csv").write_text("text\n" + "".join(f"row {n}\n" for n in range(rows)))
    (spool / "incoming" / "job.yaml").write_text(
        "model: judge:12b\nprompt: '{{ text }}'\nmode: isolated\n"
        "options: {num_ctx: 2048, num_predict: 16}\nvram: {high: 14, critical: 15}\n"
    )
    mirror, usage, others = Mirror(base / "nvml.server"), MemoryUse(), MemoryProcess("neighbours")
    arguments = ["--model", json.dumps(MODEL), "--memory", str(script.path), "--latency-ms", str(latency_ms)]
    with fake_ollama(base / "calls", *arguments) as url, threads(mirror, usage):
        env = clean_env(spool, url, SPOOLAMA_LOG__LEVEL="info")
        with daemon(env, log=base / "log"):
            began = time.monotonic()
            while not (
                ended := list((spool / "done").glob("job-*")) + list((spool / "failed").glob("job-*"))
            ):
                now = time.monotonic() - began
                while steps and steps[0][0] <= now:
                    _, gb = steps.pop(0)
                    others.hold(int(gb * GB))
                    script.cards[0].used = int((gb + 1) * GB)
                    script.write()
                    print(f"{now:6.1f} s  neighbours hold {gb:.1f} GB", flush=True)
                if now > 240:
                    print("it did not end in 240 s")
                    break
                time.sleep(0.1)
    others.end()
    for line in (base / "log").read_text().splitlines():
        if "memory." in line or "job." in line:
            print(line[:400])
    for job in ended:
        metrics = json.loads((job / "metrics.json").read_text())
        for name in (
            "total",
            "completed",
            "failed",
            "skipped",
            "peak_vram_gb",
            "mean_vram_gb",
            "memory_pause_s",
        ):
            print(f"{name}: {metrics[name]}")
        print(json.dumps({"memory": metrics["memory"], "loads": metrics["loads"]}, indent=1))
        print((job / "summary.txt").read_text())
    return usage


def main() -> None:
    """Run it and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--latency-ms", type=int, default=250)
    given = parser.parse_args()
    steps = [(12.0, 4.0), (16.0, 9.0), (26.0, 2.0), (28.0, 8.5), (29.5, 2.0), (40.0, 0.0)]
    with tempfile.TemporaryDirectory() as base:
        usage = play(Path(base), given.rows, given.latency_ms, steps)
    print("seconds: GB in use on the card, the driver's own aside")
    print(", ".join(f"{at:.0f}: {used / GB:.1f}" for at, used in usage.samples[::4]))
    print(f"longest stretch above 15 GB: {usage.longest_above(15 * GB):.1f} s")


if __name__ == "__main__":
    main()
