"""The estimate of a load compared with the embedded engine: two real models, many windows and slots.

Each size is one load in its own process, as the service starts it, and nothing is generated. The engine's log
gives its buffers, and the kernel the resident memory. A table in Markdown is printed; `--windows`, `--slots`
and `--models` choose the sizes. Windows longer than the trained one are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from spoolama.backends.base import LoadSpec  # noqa: E402 - it is run as a script
from spoolama.backends.embedded import EmbeddedBackend  # noqa: E402
from spoolama.backends.embedded_models import default_cache_dir, find_weights  # noqa: E402
from spoolama.backends.model_shape import ModelShape  # noqa: E402
from spoolama.clock import SystemClock  # noqa: E402
from spoolama.memory.estimate import Estimate, estimate  # noqa: E402

MODELS = "smollm2:135m,gemma3:270m"
WINDOWS = "2048,4096,8192,16384,32768"
SLOTS = "1,2,3,4"
VERBOSE = 4
"""llama.cpp's verbosity at which it logs its buffers."""
MIB = 1 << 20
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")


@dataclass(frozen=True)
class Allocated:
    """What one load took, in bytes."""

    weights: int
    kv: int
    compute: int
    """Outputs included."""
    resident: int
    """Of the whole process, before any computation."""

    @property
    def logged(self) -> int:
        """Return the sum of all buffers in the engine's log."""
        return self.weights + self.kv + self.compute


@dataclass(frozen=True)
class Compared:
    """A load and its estimate."""

    spec: LoadSpec
    whole: bool
    """Whether sliding layers kept the whole window."""
    found: Allocated
    guess: Estimate

    @property
    def kv_error(self) -> float:
        """Of keys and values, as a share."""
        return self.guess.kv_bytes / self.found.kv - 1

    @property
    def buffers_error(self) -> float:
        """Of all buffers that the engine logs."""
        return (self.guess.total_bytes - self.guess.overhead_bytes) / self.found.logged - 1

    @property
    def process_error(self) -> float:
        """Of the whole process while it computes; before that its compute buffers are not resident."""
        return self.guess.total_bytes / (self.found.resident + self.found.compute) - 1


def compare(spec: LoadSpec, *, whole: bool | None = None, cache_dir: Path | None = None) -> Compared:
    """Load the model once; `whole` sets whether sliding layers keep the whole window."""
    place = cache_dir or default_cache_dir()
    shape = asyncio.run(EmbeddedBackend(clock=SystemClock(), cache_dir=place).shape(spec))
    assert shape is not None
    guess = estimate(shape, spec.num_ctx, spec.slots, swa_full=whole, on_card=False)
    if whole is None:
        whole = guess == estimate(shape, spec.num_ctx, spec.slots, swa_full=True, on_card=False)
    whole = whole and any(shape.slides)
    return Compared(spec, whole, allocated(spec, find_weights(spec.model, place).path, whole=whole), guess)


def allocated(spec: LoadSpec, weights: Path, *, whole: bool) -> Allocated:
    """Return what a child of the embedded backend allocates for a load; the child is then ended."""
    given = {
        "path": str(weights),
        "num_ctx": spec.num_ctx,
        "slots": spec.slots,
        "threads": 2,
        "api_key": "none",
        "params": {"verbosity": VERBOSE, **({"swa_full": True} if whole else {})},
    }
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "spoolama.backends.embedded_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).parents[2] / "daemon")},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with child:
            try:
                child.stdin.write(json.dumps(given) + "\n")
                child.stdin.flush()
                answer = json.loads(child.stdout.readline())
                assert "url" in answer, answer
                resident = _resident(child.pid)
            finally:
                child.kill()
        log.seek(0)
        sizes = [(what, round(float(size) * MIB)) for _, what, size in _BUFFER.findall(log.read())]

    def total(*kinds: str) -> int:
        return sum(size for what, size in sizes if what in kinds)

    return Allocated(total("model"), total("KV", "RS"), total("compute", "output"), resident)


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def table(found: Iterator[Compared]) -> Iterator[str]:
    """Print Markdown line by line as loads end, and the largest errors."""
    yield "| model | window | slots | kept | KV MiB | estimate | off | all MiB | estimate | off | process |"
    yield "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|"
    worst = [0.0, 0.0, 0.0]
    for one in found:
        errors = one.kv_error, one.buffers_error, one.process_error
        worst = [max(old, abs(new)) for old, new in zip(worst, errors, strict=True)]
        guess = one.guess.total_bytes - one.guess.overhead_bytes
        cells = [
            one.spec.model,
            one.spec.num_ctx,
            one.spec.slots,
            "whole" if one.whole else "as made",
            f"{one.found.kv / MIB:.0f}",
            f"{one.guess.kv_bytes / MIB:.0f}",
            f"{errors[0]:+.1%}",
            f"{one.found.logged / MIB:.0f}",
            f"{guess / MIB:.0f}",
            f"{errors[1]:+.1%}",
            f"{errors[2]:+.1%}",
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"
    yield ""
    yield f"Most off: keys and values {worst[0]:.1%}, buffers {worst[1]:.1%}, process {worst[2]:.1%}."


def _shape(name: str) -> ModelShape:
    shape = asyncio.run(EmbeddedBackend(clock=SystemClock()).shape(LoadSpec(name, 256)))
    assert shape is not None
    return shape


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--windows", default=WINDOWS)
    parser.add_argument("--slots", default=SLOTS)
    given = parser.parse_args()
    specs = [
        LoadSpec(name, window, slots=slots)
        for name in given.models.split(",")
        for window in map(int, given.windows.split(","))
        if window <= (_shape(name).trained_ctx or window)
        for slots in map(int, given.slots.split(","))
    ]
    for line in table(compare(spec) for spec in specs):
        print(line, flush=True)


if __name__ == "__main__":
    main()
