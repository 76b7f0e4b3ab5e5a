"""Limits the requests in flight to the server, and stops them while the server is unavailable."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from spoolama.clock import Clock
from spoolama.errors import BackendError, JobError, RequestRefused, ServerDied
from spoolama.progress import Progress
from spoolama.stopping import Stop, until

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
LOAD_BOUND_S = 2400.0
"""Timeout of one attempt to load a model, in seconds. It exceeds the backends' timeouts for a load, the
requests around it and a short generation together, so that these expire first and the watchdog never acts."""


class Stopping(Exception):
    """The service stops; the row is left for the next start."""


class Admission:
    """The permission to send one request."""

    def __init__(self) -> None:
        self.only_request = True
        """Whether no other request was in flight during this one."""


class Gate:
    """Admits requests.

    Args:
        clock: The clock.
        progress: Shows that the job waits, and why.
        stop: Set when the service stops; wakes all waiting lanes.
        limit: Maximum number of requests in flight.
        rng: Random source for jitter.
    """

    def __init__(
        self, clock: Clock, progress: Progress, stop: Stop, *, limit: int, rng: random.Random | None = None
    ) -> None:
        self._clock = clock
        self._progress = progress
        self._stop = stop
        self._most = limit
        self._limit = limit
        self._good = 0
        self._delay = FIRST_DELAY_S
        """Delay before the next attempt if the server was away or busy; an answer of a row resets it."""
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not security-relevant
        self._changed = asyncio.Condition()
        self._closed = False
        self._exclusive = 0
        self._held: set[Admission] = set()
        self.in_flight = 0
        self.served = 0
        """Number of requests that the server has answered."""
        self.waited_s = 0.0
        """Seconds that the job waited for the server."""
        self.held_s = 0.0
        """Seconds that the job waited for memory."""

    @property
    def limit(self) -> int:
        """Current maximum number of requests in flight."""
        return self._limit

    @asynccontextmanager
    async def through(self, *, exclusive: bool = False) -> AsyncIterator[Admission]:
        """Wait for permission to send a request; with `exclusive`, no other request is in flight.

        Raises:
            Stopping: the service stops.
        """
        async with self._changed:
            self._exclusive += exclusive
            try:
                while not self._free(exclusive):
                    if self._stop.is_set():
                        raise Stopping
                    await self._changed.wait()
                if self._stop.is_set():
                    raise Stopping
            except BaseException:
                self._exclusive -= exclusive
                self._changed.notify_all()
                raise
            self._count(+1)
        admission = Admission()
        self._held.add(admission)
        if len(self._held) > 1:
            for held in self._held:
                held.only_request = False
        try:
            yield admission
        finally:
            self._held.discard(admission)
            # No await before this: a cancelled lane must release its permission.
            self._count(-1)
            self._exclusive -= exclusive
            await self._wake()

    def _free(self, exclusive: bool) -> bool:
        if self._closed:
            return False
        if exclusive:
            return self.in_flight == 0
        return self._exclusive == 0 and self.in_flight < self._limit

    def _count(self, change: int) -> None:
        self.in_flight += change
        self._progress.in_flight = self.in_flight

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wake_on_stop(self) -> None:
        """Run as a task: wakes all waiting lanes when the service stops."""
        await self._stop.wait()
        await self._wake()

    def went_well(self) -> None:
        """Record an answered request; after 20 of them the limit rises by one again."""
        self.served += 1
        self._delay = FIRST_DELAY_S
        self._good += 1
        if self._good >= 20 and self._limit < self._most:
            self._limit += 1
            self._good = 0

    def slow_down(self) -> None:
        """Lower the limit, because the server is overloaded."""
        self._limit = max(1, self._limit - 1)
        self._good = 0

    def open(self) -> None:
        """Open the gate for the next model after a model was lost."""
        self._closed = False

    async def drained(self) -> None:
        """Wait until no request is in flight; the gate is closed, or no lane sends requests.

        Raises:
            Stopping: the service stops.
        """
        async with self._changed:
            while self.in_flight:
                if self._stop.is_set():
                    raise Stopping
                await self._changed.wait()

    def narrow(self, limit: int) -> None:
        """Lower the maximum number of requests in flight."""
        self._most = max(1, limit)
        self._limit = min(self._limit, self._most)

    @asynccontextmanager
    async def hold(self, phase: str) -> AsyncIterator[None]:
        """Close the gate and wait until no request is in flight; the gate opens at the end.

        Args:
            phase: Text for the status.

        Raises:
            Stopping: the service stops.
        """
        async with self._changed:
            while self._closed and not self._stop.is_set():
                await self._changed.wait()
        if self._stop.is_set():
            raise Stopping
        began = self._clock.monotonic()
        try:
            async with self._shut(phase):
                await self.drained()
                if self._stop.is_set():
                    raise Stopping
                yield
        finally:
            self.held_s += self._clock.monotonic() - began

    async def recover(
        self,
        reason: str,
        attempt: Callable[[], Awaitable[object]],
        *,
        max_deaths: int = 0,
        carry: bool = False,
    ) -> None:
        """Close the gate, retry until `attempt` succeeds, and open it. Does nothing if the gate is closed.

        The first attempt starts after 1 s, later ones with growing delays up to 30 s. So there is at most one
        attempt per second, independent of the number of lanes.

        Args:
            reason: Text for the status.
            attempt: The call that must succeed.
            max_deaths: Raise the error of `attempt` after this many deaths of the server; 0: never.
            carry: Start with the last delay of the previous wait, if no row was answered since: a server can
                repeatedly look healthy and still answer no row.

        Raises:
            RequestRefused: raised by `attempt`; waiting would not help.
        """
        if self._closed:
            return
        delay, deaths, began = self._delay if carry else FIRST_DELAY_S, 0, self._clock.monotonic()
        try:
            async with self._shut(f"waiting for the server: {reason}"):
                while True:
                    await self.pause(delay * self._rng.uniform(1.0, 1.25))
                    if self._stop.is_set():
                        return
                    delay = min(LONGEST_DELAY_S, delay * 2)
                    if carry:
                        self._delay = delay
                    try:
                        with self._progress.pulse.wait(LOAD_BOUND_S):
                            await attempt()
                        return
                    except RequestRefused:
                        raise
                    except BackendError as error:
                        deaths += isinstance(error, ServerDied)
                        if max_deaths and deaths >= max_deaths:
                            raise
                        self._progress.phase = f"waiting for the server: {error.message}"
        finally:
            self.waited_s += self._clock.monotonic() - began

    @asynccontextmanager
    async def _shut(self, phase: str) -> AsyncIterator[None]:
        """Close the gate and show this phase; after a `JobError` the gate stays closed."""
        self._closed = True
        before, stays_closed = self._progress.phase, False
        self._progress.waiting, self._progress.phase = True, phase
        try:
            yield
        except JobError:
            stays_closed = True  # no row may cause another load
            raise
        finally:
            self._closed = stays_closed
            self._progress.waiting, self._progress.phase = False, before
            await self._wake()

    async def pause(self, seconds: float) -> None:
        """Sleep until the time is over or the service stops."""
        with self._progress.pulse.wait(seconds + 5):
            await until(self._clock.sleep(seconds), self._stop)


_UNLEARNED_S = 900.0
"""Timeout in seconds before any answer: enough to load a model of 12 GB from a slow disk first."""
_LEAST_S = 60.0
_FACTOR = 10.0
_ENOUGH = 20


class RequestTimeout:
    """Learns the timeout from earlier answers: ten times the longest, at least 60 s.

    Args:
        fixed_s: A timeout set by the user; then nothing is learned.
    """

    def __init__(self, fixed_s: float | None = None) -> None:
        self._fixed_s = fixed_s
        self._seen = 0
        self._longest_s = 0.0

    def saw(self, seconds: float) -> None:
        """Record the duration of an answer."""
        self._seen += 1
        self._longest_s = max(self._longest_s, seconds)

    @property
    def bound_s(self) -> float:
        """Timeout of a request in seconds."""
        if self._fixed_s is not None:
            return self._fixed_s
        if self._seen < _ENOUGH:
            return _UNLEARNED_S
        return max(_LEAST_S, _FACTOR * self._longest_s)
