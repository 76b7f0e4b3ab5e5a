"""An event loop whose clock jumps when no task can run.

`VirtualClock.run` waits a real millisecond before each jump, in which threads and sockets come to rest.
Without these, the loop itself knows when it has nothing to do: it asks its selector to wait. So the clock
jumps there, a simulated night wastes no real time, and a busy machine cannot make it jump early.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from support.clock import VirtualClock

P = ParamSpec("P")
T = TypeVar("T")

_NOBODY_S = 10.0


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock instead of waiting."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return ready events; a wait for time alone moves the clock.

        Raises:
            RuntimeError: all tasks wait, and none for the clock.
        """
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self._clock.jump():
            return super().select(0)
        # At its end a loop waits for a thread; any other wait here would never end.
        ready = super().select(_NOBODY_S if timeout is None else timeout)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits, and nobody for the clock")
        return ready


class _AtOnce(ThreadPoolExecutor):
    """Runs calls for a thread inline, because a real thread takes no time on a simulated clock."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the call before it returns."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def run_quietly(clock: VirtualClock, work: Coroutine[Any, Any, T]) -> T:
    """Run this to its end in a new loop whose clock jumps whenever all tasks sleep.

    Not for work with sockets, processes or threads, for which the loop does not wait.

    Args:
        clock: The clock on which all tasks sleep.
        work: What to run.

    Raises:
        RuntimeError: all tasks wait, and none for the clock.
    """

    def loop() -> asyncio.AbstractEventLoop:
        made = asyncio.SelectorEventLoop(_JumpingSelector(clock))
        made.set_default_executor(_AtOnce(1))
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)
