"""Tracks the progress of a job for systemd's status, the status files and the progress bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from spoolama.clock import Clock

_MOST_TASKS = 2
"""Tasks of lanes that are shown; the others are counted."""


class Pulse:
    """Proof of life for the systemd watchdog: progress, or a wait whose deadline was fixed when it began."""

    def __init__(self, clock: Clock, *, liveness_s: float = 30.0) -> None:
        self._clock = clock
        self._liveness_s = liveness_s
        self._last = clock.monotonic()
        self._waits: dict[int, float] = {}
        self._next_wait = 0

    def beat(self) -> None:
        """Record progress."""
        self._last = self._clock.monotonic()

    @contextmanager
    def wait(self, seconds: float) -> Iterator[None]:
        """Announce a wait of up to `seconds`; after that it proves nothing."""
        self._next_wait += 1
        key = self._next_wait
        self._waits[key] = self._clock.monotonic() + seconds
        try:
            yield
        finally:
            del self._waits[key]
            self.beat()

    def alive(self) -> bool:
        """Whether there was progress recently or an announced wait is within its deadline."""
        now = self._clock.monotonic()
        return now - self._last <= self._liveness_s or any(now <= d for d in self._waits.values())


@dataclass(slots=True)
class Count:
    """Answers in a phase whose answers are not the rows' results."""

    phase: str
    most: int
    """Maximum number of answers."""
    done: int = 0
    """Including those of earlier runs."""

    def words(self) -> str:
        """`pilot: 120 of at most 400 answers`."""
        return f"{self.phase}: {min(self.done, self.most):,} of at most {self.most:,} answers"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job's state at one moment. Only durable results are counted."""

    job: str
    total: int
    ok: int
    failed: int
    skipped: int
    in_flight: int
    phase: str
    """`reading rows`, `loading gemma3:12b`, `answering`, `pilot: 120 of at most 400 answers`,
    `answering; auditing segment 7`, `waiting for the server: …`."""
    rows_per_s: float | None
    """Over the last minutes of answering; None until measured."""
    eta_s: float | None
    """Estimated seconds for the remaining rows; None until measured."""
    failures: dict[str, int]
    """Failed rows by class."""
    waiting: bool = False
    """Whether the job waits for the server or for memory."""
    extra_requests: str = ""
    """The part of the phase that does not answer rows in their order: `auditing segment 7`."""
    harm: str = ""
    """The harm that the audit found; empty: none so far."""

    @property
    def done(self) -> int:
        """Rows that have their result."""
        return self.ok + self.failed + self.skipped


@dataclass
class Progress:
    """The job's counters, written by its run and read by everything that shows them."""

    job: str
    clock: Clock
    pulse: Pulse
    total: int = 0
    ok: int = 0
    failed: int = 0
    skipped: int = 0
    in_flight: int = 0
    phase: str = "starting"
    waiting: bool = False
    failures: dict[str, int] = field(default_factory=dict)
    harm: str = ""
    on_notice: Callable[[str, str], None] = field(default=lambda _kind, _message: None, repr=False)
    """Called with a kind and a message for the log: events of the model, or `harm`."""
    _count: Count | None = field(default=None, repr=False)
    _tasks: list[str] = field(default_factory=list, repr=False)
    _history: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=600), repr=False)
    """Time and finished rows, once per second at most."""

    def durable(self, *, ok: int = 0, failed: dict[str, int] | None = None) -> None:
        """Count rows whose results are on disk."""
        self.ok += ok
        for code, count in (failed or {}).items():
            self.failed += count
            self.failures[code] = self.failures.get(code, 0) + count
        now = self.clock.monotonic()
        if not self._history or now - self._history[-1][0] >= 1.0:
            self._history.append((now, self.ok + self.failed))
        self.pulse.beat()

    @contextmanager
    def counting(self, phase: str, most: int) -> Iterator[Count]:
        """Show a phase whose answers are not the rows' results; `compared` counts them."""
        self._count = Count(phase, most)
        try:
            yield self._count
        finally:
            self._count = None

    def compared(self) -> None:
        """Count an answer for comparison, or a failure to get one."""
        if self._count is not None:
            self._count.done += 1

    @contextmanager
    def task(self, words: str) -> Iterator[None]:
        """Show what one lane does instead of answering rows in their order."""
        self._tasks.append(words)
        try:
            yield
        finally:
            self._tasks.remove(words)

    @property
    def _extra_requests(self) -> str:
        if self._count is not None:
            return self._count.words()
        more = f" and {len(self._tasks) - _MOST_TASKS} more" if len(self._tasks) > _MOST_TASKS else ""
        return ", ".join(self._tasks[:_MOST_TASKS]) + more

    def snapshot(self) -> Snapshot:
        """Return the current state, with the rate over the last ten minutes at most."""
        rate: float | None = None
        done = self.ok + self.failed
        if self._history:
            since, then = self._history[0]
            elapsed = self.clock.monotonic() - since
            if elapsed > 0 and done > then:
                rate = (done - then) / elapsed
        left = self.total - done - self.skipped
        phase, extra = self.phase, self._extra_requests
        if extra and not self.waiting:
            phase = extra if self._count is not None else f"{phase}; {extra}"
        return Snapshot(
            job=self.job,
            total=self.total,
            ok=self.ok,
            failed=self.failed,
            skipped=self.skipped,
            in_flight=self.in_flight,
            phase=phase,
            rows_per_s=rate,
            eta_s=left / rate if rate else None,
            failures=dict(self.failures),
            waiting=self.waiting,
            extra_requests=extra,
            harm=self.harm,
        )
