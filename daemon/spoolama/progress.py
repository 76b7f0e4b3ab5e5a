"""How far a job is, for whoever shows it: systemd's status, status files, a progress bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from spoolama.clock import Clock

__all__ = ["Count", "Progress", "Pulse", "Snapshot"]


_NAMED = 2
"""Tasks of lanes that are named; the others are counted."""


class Pulse:
    """Proof of life for the watchdog: progress, or a known wait whose deadline was fixed when it began."""

    def __init__(self, clock: Clock, *, liveness_s: float = 30.0) -> None:
        self._clock = clock
        self._liveness_s = liveness_s
        self._last = clock.monotonic()
        self._waits: dict[int, float] = {}
        self._next_wait = 0

    def beat(self) -> None:
        """Something moved."""
        self._last = self._clock.monotonic()

    @contextmanager
    def wait(self, seconds: float) -> Iterator[None]:
        """A wait that may take up to `seconds`; after that it proves nothing any more."""
        self._next_wait += 1
        key = self._next_wait
        self._waits[key] = self._clock.monotonic() + seconds
        try:
            yield
        finally:
            del self._waits[key]
            self.beat()

    def alive(self) -> bool:
        """Whether there was progress lately or a known wait is inside its deadline."""
        now = self._clock.monotonic()
        return now - self._last <= self._liveness_s or any(now <= d for d in self._waits.values())


@dataclass(slots=True)
class Count:
    """Answers that are not the rows' own, in a phase that is about these."""

    phase: str
    done: int
    """With those that were given before a restart."""
    most: int
    """How many there are to be."""
    at_most: bool
    """Whether the phase may end before."""

    def words(self) -> str:
        """`pilot: 120 of at most 400 answers`."""
        most = f"at most {self.most:,}" if self.at_most else f"{self.most:,}"
        return f"{self.phase}: {min(self.done, self.most):,} of {most} answers"


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
    """In words: `reading rows`, `loading gemma3:12b`, `answering`, `pilot: 120 of at most 400 answers`,
    `answering; auditing segment 7`, `waiting for the server: …`."""
    rows_per_s: float | None
    """Over the last minutes of answering; None until measured."""
    eta_s: float | None
    """Rows left by that rate; None until measured."""
    failures: dict[str, int]
    """Failed rows by class."""
    waiting: bool = False
    """Whether the job waits for the server."""
    besides: str = ""
    """What of the phase is not the answering of rows: `auditing segment 7`; empty: nothing."""
    harm: str = ""
    """What the audit found the conversation to do to the answers; empty: no harm so far."""

    @property
    def done(self) -> int:
        """Rows that have their end."""
        return self.ok + self.failed + self.skipped


@dataclass
class Progress:
    """The job's counters, kept by the engine and read by everybody else."""

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
    """Told of what happened to the model, or of `harm`: a kind, and a sentence for the log."""
    _count: Count | None = field(default=None, repr=False)
    _tasks: list[str] = field(default_factory=list, repr=False)
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=600), repr=False)

    def durable(self, *, ok: int = 0, failed: dict[str, int] | None = None) -> None:
        """Rows that reached their end and are on disk."""
        self.ok += ok
        for code, count in (failed or {}).items():
            self.failed += count
            self.failures[code] = self.failures.get(code, 0) + count
        now = self.clock.monotonic()
        if not self._marks or now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, self.ok + self.failed))
        self.pulse.beat()

    @contextmanager
    def counting(self, phase: str, most: int, *, done: int = 0, at_most: bool = False) -> Iterator[Count]:
        """A phase whose answers are not the rows' own; `compared` counts them.

        Args:
            phase: Its name.
            most: How many answers there are to be.
            done: How many there are already.
            at_most: Whether it may end before.
        """
        self._count = Count(phase, done, most, at_most)
        try:
            yield self._count
        finally:
            self._count = None

    def compared(self) -> None:
        """An answer was given, or could not be, that is not a row's own."""
        if self._count is not None:
            self._count.done += 1

    @contextmanager
    def task(self, words: str) -> Iterator[None]:
        """Something that one lane does besides answering rows in their turn."""
        self._tasks.append(words)
        try:
            yield
        finally:
            self._tasks.remove(words)

    @property
    def besides(self) -> str:
        """What is done that is not the answering of rows in their turn, in words; empty: nothing."""
        if self._count is not None:
            return self._count.words()
        more = f" and {len(self._tasks) - _NAMED} more" if len(self._tasks) > _NAMED else ""
        return ", ".join(self._tasks[:_NAMED]) + more

    def _words(self) -> str:
        if self.waiting or not self.besides:
            return self.phase
        return self.besides if self._count is not None else f"{self.phase}; {self.besides}"

    def snapshot(self) -> Snapshot:
        """The state now, with the rate over at most the last ten minutes of marks."""
        rate: float | None = None
        done = self.ok + self.failed
        if self._marks:
            since, then = self._marks[0]
            elapsed = self.clock.monotonic() - since
            if elapsed > 0 and done > then:
                rate = (done - then) / elapsed
        left = self.total - done - self.skipped
        return Snapshot(
            job=self.job,
            total=self.total,
            ok=self.ok,
            failed=self.failed,
            skipped=self.skipped,
            in_flight=self.in_flight,
            phase=self._words(),
            rows_per_s=rate,
            eta_s=left / rate if rate else None,
            failures=dict(self.failures),
            waiting=self.waiting,
            besides=self.besides,
            harm=self.harm,
        )
