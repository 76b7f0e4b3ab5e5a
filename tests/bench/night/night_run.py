"""One night: a job, a model on a shared card of 16 GB, other programs, and the results."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spoolama.backends.base import ChatRequest
from spoolama.errors import JobError
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.memory.level import RelativeLimits
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Progress, Pulse
from spoolama.run.runner import JobRunner, RunEnd
from spoolama.stopping import Stop
from support.card_server import CardServer, ModelledCard, seconds_of
from support.card_users import Users
from support.clock import VirtualClock
from support.evaluation import inline_job_evaluator
from support.inline_host import InlineHost
from support.quiet_loop import run_quietly
from support.store import MemoryStore

LANES = 4
SAMPLE_S = 0.5
"""Interval of the simulation's own readings of the card; half of the watchdog's."""
_LIST_EVERY_S = 10.0
_DWELL_S = 3.0
"""The documented value."""
SIDECAR = """
model: gemma3:12b
system: Is this review positive or negative? One word.
prompt: "{{ text }}"
prime: never
"""
ISOLATED = "mode: isolated\n"


class NightStore(MemoryStore):
    """A store that finds open rows among 170,000 without a scan."""

    _open_from = 0

    async def pending_segments(
        self, after: int, segment_rows: int, model: str | None, limit: int
    ) -> list[int]:
        while self._open_from < len(self.rows) and not self._open(self.rows[self._open_from]):
            self._open_from += 1  # rows open again only by `redo`, which this night does not use
        found: list[int] = []
        for row in self.rows[max(self._open_from, (after + 1) * segment_rows) :]:
            segment = row.ordinal // segment_rows
            if self._open(row) and (not found or found[-1] != segment):
                if len(found) == limit:
                    break
                found.append(segment)
        return found


@dataclass(frozen=True, slots=True)
class Stretch:
    """An uninterrupted time in which the card was above its critical threshold with our model on it."""

    begin_s: float
    end_s: float
    loading: bool
    """Whether the model was being loaded for part of it."""

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


@dataclass
class Night:
    """The results of a night."""

    rows: int
    seed: int
    ended: RunEnd | None = None
    error: str = ""
    """Why the job failed."""
    hours: float = 0.0
    took_s: float = 0.0
    """Real seconds that the simulation took."""
    history: dict[str, Any] = field(default_factory=dict)
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    """Second, old level and new level of each change."""
    stretches: list[Stretch] = field(default_factory=list)
    above_s: float = 0.0
    """Seconds above the critical threshold, with our model or not."""
    longest_row_s: float = 0.0
    """The longest time of an answer."""
    notes: Counter[str] = field(default_factory=Counter)
    """Actions by their name."""
    log: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    store: NightStore = field(default_factory=lambda: NightStore([]))
    server: CardServer = field(init=False)

    @property
    def loads(self) -> list[float]:
        """When the model was loaded."""
        return [at for at, _ in self.server.loads]

    @property
    def over_s(self) -> float:
        """Seconds above the critical threshold with our model on the card."""
        return sum(s.seconds for s in self.stretches)

    @property
    def longest_s(self) -> float:
        """The longest time above the critical threshold with our model on the card, without loads."""
        return max((s.seconds for s in self.stretches if not s.loading), default=0.0)

    @property
    def longest_loading_s(self) -> float:
        """The same while the model was being loaded."""
        return max((s.seconds for s in self.stretches if s.loading), default=0.0)

    @property
    def most_s(self) -> float:
        """The longest time allowed without loads: dwell, a reading, the rows in flight, the release."""
        seen = _DWELL_S + 1.0 + 2 * SAMPLE_S
        return seen + self.longest_row_s + self.server.release_s

    @property
    def changes_a_minute(self) -> int:
        """The most changes of level in any minute."""
        return self.most_in([at for at, _, _ in self.changes], 60)

    @property
    def reloads_an_hour(self) -> int:
        """The most loads in any hour, without the first one."""
        return self.most_in(self.loads[1:], 3600)

    def most_in(self, moments: Sequence[float], seconds: float) -> int:
        """Return the largest number of these moments in any time of this length."""
        ordered, most, first = sorted(moments), 0, 0
        for n, at in enumerate(ordered):
            while at - ordered[first] >= seconds:
                first += 1
            most = max(most, n - first + 1)
        return most


def rows_of(number: int, seed: int) -> list[dict[str, str]]:
    """Return reviews of about 200 characters; three in a thousand are too long for a small window."""
    rng = random.Random(f"rows {seed}")
    found = []
    for n in range(number):
        words = rng.randint(20, 60) if rng.random() >= 0.003 else rng.randint(800, 1500)
        found.append({"text": f"review {n} " + "was good " * (words // 2)})
    return found


def run_night(
    number: int,
    users: Users,
    *,
    seed: int = 0,
    side: str = ISOLATED,
    num_ctx: int = 8192,
    answer_s: Callable[[ChatRequest], float] = seconds_of,
) -> Night:
    """Run a job with this many rows, from its first load to its end."""
    clock = VirtualClock()
    night = Night(number, seed)
    card = ModelledCard(clock, users)

    def takes(request: ChatRequest) -> float:
        seconds = answer_s(request)
        night.longest_row_s = max(night.longest_row_s, seconds)
        return seconds

    night.server = CardServer(clock, card=card, answer_s=takes)
    night.store = NightStore(rows_of(number, seed))
    options = f"options: {{num_ctx: {num_ctx}, num_predict: 16, num_gpu: 99}}\n"
    began = time.perf_counter()
    try:
        night.ended = run_quietly(clock, _night(night, clock, card, SIDECAR + side + options))
    except JobError as error:
        night.error = f"{error} {error.fix}"
    night.took_s = time.perf_counter() - began
    night.hours = clock.monotonic() / 3600
    return night


async def _night(night: Night, clock: VirtualClock, card: ModelledCard, sidecar: str) -> RunEnd:
    server, stop = night.server, Stop()
    thread = CardThread(card, clock)

    def record(event: str, facts: dict[str, Any]) -> None:
        night.log.append((clock.monotonic(), event, facts))
        if event == "memory.level":
            night.changes.append((clock.monotonic(), facts["from"], facts["to"]))
        elif event == "memory.action":
            night.notes[facts["action"]] += 1

    watchdog = MemoryWatchdog(thread, InlineHost(server, clock), clock, on_change=record)

    async def read() -> None:
        while True:
            thread.read_once()
            await clock.sleep(1.0)

    async def listed() -> None:
        while True:  # as `service/memory.py` does while a job runs
            watchdog.listed(await server.in_memory())
            await clock.sleep(_LIST_EVERY_S)

    progress = Progress("night", clock, Pulse(clock))
    runner = JobRunner(
        evaluator=inline_job_evaluator(),
        sidecar=parse_sidecar(sidecar, "job.yaml"),
        store=night.store,
        backend=server,
        clock=clock,
        progress=progress,
        lanes=LANES,
        stop=stop,
        memory=watchdog,
    )
    work = [read(), watchdog.run(), listed(), _watch(night, clock, card)]
    tasks = [asyncio.create_task(each) for each in work]
    try:
        with watchdog.during() as history:
            return await runner.run()
    finally:
        night.history = history.to_json()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _watch(night: Night, clock: VirtualClock, card: ModelledCard) -> None:
    """Read the card itself, without the watchdog, and record how long it is too full with our model on it."""
    critical = RelativeLimits().limits(card.total_bytes).critical_bytes
    begin: float | None = None
    loading = False
    while True:
        now, full = clock.monotonic(), card.used_bytes >= critical
        night.above_s += SAMPLE_S if full else 0.0
        if full and card.pid is not None:
            begin = now if begin is None else begin
            loading = loading or night.server.held is None
        elif begin is not None:
            night.stretches.append(Stretch(begin, now, loading))
            begin, loading = None, False
        await clock.sleep(SAMPLE_S)
