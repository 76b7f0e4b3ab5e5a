"""The one door to the server: how many requests are in flight, and none while it is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from spoolama.clock import Clock
from spoolama.engine.progress import Progress
from spoolama.engine.store import Stop
from spoolama.engine.waiting import until
from spoolama.errors import BackendError, JobError, RequestRefused, ServerDied

__all__ = ["LOAD_BOUND_S", "Gate", "Pass", "Stopping"]

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
LOAD_BOUND_S = 2400.0
"""A single try may load a model of many gigabytes from a slow disk. It is longer than what the backends allow
for a load, what they ask around it, and a short generation: they give up first, and the watchdog never."""


class Stopping(Exception):
    """The service stops; the row is left for the next start."""


class Pass:
    """A place at the server."""

    def __init__(self) -> None:
        self.solo = True
        """Whether no other request was in flight while this place was held."""


class Gate:
    """Lets requests through.

    Args:
        clock: Time.
        progress: Shows that and why the job waits.
        stop: A wish to stop wakes everybody who waits here.
        limit: Requests in flight at once, at most.
        rng: For jitter.
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
        """Before the next look at a server that was away or busy; it begins anew with a row's answer."""
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._changed = asyncio.Condition()
        self._closed = False
        self._exclusive = 0
        self._held: set[Pass] = set()
        self.in_flight = 0
        self.served = 0
        """Requests that the server was seen to answer."""
        self.waited_s = 0.0
        """Seconds the job stood still because the server did not answer."""
        self.held_s = 0.0
        """Seconds it stood still because memory was short."""

    @property
    def limit(self) -> int:
        """Requests that may be in flight at once now."""
        return self._limit

    @asynccontextmanager
    async def through(self, *, exclusive: bool = False) -> AsyncIterator[Pass]:
        """Hold a place at the server; with `exclusive`, the only one.

        Raises:
            Stopping: the service stops, no place will come.
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
        place = Pass()
        self._held.add(place)
        if len(self._held) > 1:
            for held in self._held:
                held.solo = False
        try:
            yield place
        finally:
            self._held.discard(place)
            # No await between the end of the request and this: a cancelled lane must free its place.
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
        """To be run as a task: tells everybody who waits here that the service stops."""
        await self._stop.wait()
        await self._wake()

    def went_well(self) -> None:
        """A row's request was answered; after 20 of them one more may be in flight again."""
        self.served += 1
        self._delay = FIRST_DELAY_S
        self._good += 1
        if self._good >= 20 and self._limit < self._most:
            self._limit += 1
            self._good = 0

    def slow_down(self) -> None:
        """The server had too much to do."""
        self._limit = max(1, self._limit - 1)
        self._good = 0

    def open(self) -> None:
        """Another model follows one that was lost."""
        self._closed = False

    async def drained(self) -> None:
        """Wait until nothing is in flight; the door is closed, or nobody is left to come through.

        Raises:
            Stopping: the service stops.
        """
        async with self._changed:
            while self.in_flight:
                if self._stop.is_set():
                    raise Stopping
                await self._changed.wait()

    def narrow(self, limit: int) -> None:
        """From now on no more requests than this at once."""
        self._most = max(1, limit)
        self._limit = min(self._limit, self._most)

    @asynccontextmanager
    async def hold(self, phase: str) -> AsyncIterator[None]:
        """Close the door and wait until nothing is in flight; it opens at the end.

        Args:
            phase: In words, for the status.

        Raises:
            Stopping: the service stops.
        """
        async with self._changed:
            while self._closed and not self._stop.is_set():
                await self._changed.wait()
            if self._stop.is_set():
                raise Stopping
            self._closed = True
        before, began, lasting = self._progress.phase, self._clock.monotonic(), False
        self._progress.waiting, self._progress.phase = True, phase
        try:
            async with self._changed:
                while self.in_flight and not self._stop.is_set():
                    await self._changed.wait()
            if self._stop.is_set():
                raise Stopping
            yield
        except JobError:
            lasting = True  # nobody shall have the model loaded once more by a row
            raise
        finally:
            self.held_s += self._clock.monotonic() - began
            self._closed = lasting
            self._progress.waiting, self._progress.phase = False, before
            await self._wake()

    async def recover(
        self,
        reason: str,
        attempt: Callable[[], Awaitable[object]],
        *,
        patience: int = 0,
        carry: bool = False,
    ) -> None:
        """Close the door, try until `attempt` works, open it. Whoever comes second just waits at the door.

        The first try comes after a second, later ones at growing distances up to 30 s, so that there is never
        more than one a second however many lanes there are.

        Args:
            reason: In words, for the status.
            attempt: What must work.
            patience: After so many deaths of the server in `attempt` its error is raised; 0: never.
            carry: Begin with the distance at which the last such wait ended, if no row was answered since: a
                server may look well again and again, and yet answer none.

        Raises:
            RequestRefused: by `attempt`; waiting would not help.
        """
        if self._closed:
            return
        self._closed = True
        before, began, lasting = self._progress.phase, self._clock.monotonic(), False
        self._progress.waiting, self._progress.phase = True, f"waiting for the server: {reason}"
        delay, deaths = self._delay if carry else FIRST_DELAY_S, 0
        try:
            while not self._stop.is_set():
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
                    if patience and deaths >= patience:
                        raise
                    self._progress.phase = f"waiting for the server: {error.message}"
        except JobError:
            lasting = True
            raise
        finally:
            self.waited_s += self._clock.monotonic() - began
            self._closed = lasting
            self._progress.waiting, self._progress.phase = False, before
            await self._wake()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not past a wish to stop."""
        with self._progress.pulse.wait(seconds + 5):
            await until(self._clock.sleep(seconds), self._stop)
