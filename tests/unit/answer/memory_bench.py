"""Run a job with a simulated clock and scripted memory, for the tests of model residency and
memory pressure.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.memory.level import GB, Level
from spoolama.memory.room import RequiredMemory, Room, UsedMemory, Where
from spoolama.progress import Progress, Pulse
from spoolama.run.runner import JobRunner, RunEnd
from spoolama.stopping import Stop
from support.backend import ScriptedBackend
from support.card_server import GEMMA3_12B
from support.clock import VirtualClock
from support.evaluation import inline_job_evaluator
from support.quiet_loop import run_quietly
from support.store import MemoryStore

OK, HIGH, CRITICAL = Level.OK, Level.HIGH, Level.CRITICAL

SIDECAR = """
model: m
system: Judge.
prompt: "{{ text }}"
mode: isolated
prime: never
options: {num_ctx: 8192, num_predict: 16}
"""
"""Loads of 8,192, 4,096, 2,048 and 1,024 tokens; with two slots some 9.9, 9.4, 8.7 and 8.3 GB."""


@dataclass
class ScriptedMemory:
    """A `Memory` that reports scripted values and counts what loads take.

    Attributes:
        free_gb: What a load may take.
        others_gb: What other programs use on the card.
        sizes_told: Whether the sizes of single processes are known.
        before_look: Called before each reading, for scripts that depend on what happened.
    """

    clock: VirtualClock
    backend: ScriptedBackend
    level: Level = OK
    where: Where = "card"
    words: str = "as scripted"
    free_gb: float = 15.0
    most_gb: float = 15.0
    others_gb: float = 1.0
    sizes_known: bool = True
    model_gb: float = 9.0
    before_look: Callable[[], None] = field(default=lambda: None)
    actions: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    _read: tuple[float, float] = (1.0, 0.0)
    _looked: asyncio.Event = field(default_factory=asyncio.Event)

    def room(self, need: RequiredMemory | None) -> Room:
        if need is None:
            return Room(fits=True, why="not known")
        words = f"{need.words}; {self.free_gb:.1f} GB may still be taken"
        lacks = need.size_bytes - round(self.free_gb * GB)
        return Room(lacks <= 0, words, need.size_bytes <= self.most_gb * GB, max(0, lacks))

    def most_bytes(self, where: Where) -> int | None:
        return round(self.most_gb * GB)

    def taken(self) -> UsedMemory:
        """As of the last reading."""
        others, ours = (round(gb * GB) for gb in self._read)
        return UsedMemory(others + ours, ours if ours and self.sizes_known else None)

    def loading(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def looked(self) -> None:
        await self._looked.wait()

    def did(self, action: str, **facts: object) -> None:
        self.actions.append((self.clock.monotonic(), action, facts))

    def look(self) -> None:
        self.before_look()
        self._read = (self.others_gb, self.model_gb if self.backend.held is not None else 0.0)
        self._looked.set()
        self._looked = asyncio.Event()

    def times_of(self, action: str) -> list[float]:
        return [at for at, name, _ in self.actions if name == action]


Script = Iterable[tuple[float, Callable[[], object]]]


class MemoryBench:
    """One job; `run` takes a script of events.

    Args:
        texts: Its rows.
        sidecar: Its sidecar.
        backend: Arguments for the `ScriptedBackend`.
    """

    def __init__(self, texts: Sequence[str], sidecar: str = SIDECAR, **backend: Any) -> None:
        self.clock = VirtualClock()
        self.sidecar = parse_sidecar(sidecar, "job.yaml")
        options: dict[str, Any] = {"uses_gpus": True, "shape_": GEMMA3_12B, "latency_s": 1.0} | backend
        self.backend = ScriptedBackend(self.clock, **options)
        self.store = MemoryStore([{"text": text} for text in texts])
        self.memory = ScriptedMemory(self.clock, self.backend)
        self.progress = Progress("job", self.clock, Pulse(self.clock))
        self.stop = Stop()
        self.shown: list[tuple[float, str, bool]] = []
        """Second, phase and whether the job waits, for each reading."""

    def set(self, **values: Any) -> Callable[[], None]:
        """Return a script step that sets these values of the memory."""

        def now() -> None:
            for name, value in values.items():
                setattr(self.memory, name, value)

        return now

    def run(self, script: Script = (), lanes: int = 2) -> RunEnd:
        return run_quietly(self.clock, self._run(sorted(script, key=lambda s: s[0]), lanes))

    async def _run(self, script: list[tuple[float, Callable[[], object]]], lanes: int) -> RunEnd:
        self.stop = Stop()
        runner = JobRunner(
            evaluator=inline_job_evaluator(),
            sidecar=self.sidecar,
            store=self.store,
            backend=self.backend,
            clock=self.clock,
            progress=self.progress,
            lanes=lanes,
            stop=self.stop,
            memory=self.memory,
        )

        async def looks() -> None:
            while True:
                while script and script[0][0] <= self.clock.monotonic():
                    script.pop(0)[1]()
                self.memory.look()
                self.shown.append((self.clock.monotonic(), self.progress.phase, self.progress.waiting))
                await self.clock.sleep(1.0)

        task = asyncio.create_task(looks())
        try:
            return await runner.run()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def windows(self) -> list[int]:
        """The context windows of the attempted loads, in order."""
        return [spec.num_ctx for _, spec in self.backend.loads]

    @property
    def loaded_at(self) -> list[float]:
        return [at for at, _ in self.backend.loads]

    def phases(self, begin: str) -> list[float]:
        """The seconds at which the status showed this phase while the job waited."""
        return [at for at, phase, waiting in self.shown if waiting and phase.startswith(begin)]

    @property
    def all_ok(self) -> bool:
        """Whether every row is answered; the ledger accepts only one answer per row."""
        return [row.state for row in self.store.rows] == ["ok"] * len(self.store.rows)


def short_rows(number: int) -> list[str]:
    return [f"row {n}" for n in range(number)]
