"""The script of the stub library, written from Python objects."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from nvml_stub.build import build

Sizes = list[tuple[int, int | None]]
"""Process ids and bytes, None where NVML gives no size; one id may occur twice."""


@dataclass
class FakeCard:
    """A card or a MIG instance of one, in NVML's units: bytes, degrees Celsius, milliwatts."""

    total: int = 16 << 30
    used: int = 0
    """Without `reserved`, as in the second version of the memory call."""
    reserved: int = 0
    name: str = "NVIDIA L4"
    uuid: str = "GPU-1"
    temp: int = 40
    power: int = 50_000
    limit: int = 72_000
    throttle: int = 0
    processes: Sizes = field(default_factory=list)
    drawing: Sizes = field(default_factory=list)
    instances: dict[int, FakeCard] | None = None
    """If not None, MIG is on with these instances by number."""

    def lines(self, place: str) -> list[str]:
        """Return the lines of the script for it."""
        memory = f"total {self.total} used {self.used} reserved {self.reserved}"
        rest = f"temp {self.temp} power {self.power} limit {self.limit} throttle {self.throttle}"
        text_lines = [
            f"card {place} {memory} {rest}",
            f"name {place} {self.name}",
            f"uuid {place} {self.uuid}",
        ]
        for word, sizes in (("proc", self.processes), ("draw", self.drawing)):
            text_lines += [f"{word} {place} {pid} {'-' if size is None else size}" for pid, size in sizes]
        if self.instances is not None:
            text_lines.append(f"migmode {place} 1")
            for number, instance in self.instances.items():
                text_lines += instance.lines(f"{place}/{number}")
        return text_lines


@dataclass
class Script:
    """What the library reports; call `write` after each change.

    A process started with `env()` reads it at each call of NVML, so changes take effect at once.
    """

    path: Path
    cards: list[FakeCard] = field(default_factory=lambda: [FakeCard()])
    errors: dict[str, int] = field(default_factory=dict)
    """`FUNCTION`, `FUNCTION CARD` or `*` -> code of nvml.h; a name without `_v2` means all its versions."""
    hanging: list[str] = field(default_factory=list)
    """Functions that block until they are removed from this list, 60 s at most."""
    epoch: int = 1
    """A changed number means that the driver was reloaded and the library must be initialised again."""
    driver: str = "580.159.04"
    host: tuple[int, int] | None = None
    """Bytes of main memory in total and in use by others, for the fake server (`card_model`),
    not for NVML.
    """

    def write(self) -> None:
        """Apply the script from the next call on."""
        lines = [f"driver {self.driver}", f"epoch {self.epoch}", f"cards {len(self.cards)}"]
        if self.host is not None:
            lines.append(f"host all total {self.host[0]} used {self.host[1]}")
        for index, card in enumerate(self.cards):
            lines += card.lines(str(index))
        for where, code in self.errors.items():
            function, _, card_number = where.partition(" ")
            lines.append(f"error {function} {code} {card_number}")
        lines += [f"hang {function}" for function in self.hanging]
        part = self.path.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        # The library checks for a new time, and the file system's clock has a resolution of milliseconds.
        now = time.time_ns()
        os.utime(part, ns=(now, now))
        part.rename(self.path)

    def wait_until_a_call_hangs(self, timeout_s: float = 30) -> None:
        """Return once a caller is blocked in a function of `hanging`; fail if none calls it in time."""
        sign = self.path.with_name(self.path.name + ".hanging")
        deadline = time.monotonic() + timeout_s
        while not sign.exists():
            assert time.monotonic() < deadline, f"nobody called {self.hanging} in {timeout_s} s"
            time.sleep(0.01)

    def env(self) -> dict[str, str]:
        """Return the variables for a process that loads the library and this script, written or not."""
        found = str(build())
        if before := os.environ.get("LD_LIBRARY_PATH"):
            found += f":{before}"
        return {"LD_LIBRARY_PATH": found, "NVML_STUB_SCRIPT": str(self.path)}
