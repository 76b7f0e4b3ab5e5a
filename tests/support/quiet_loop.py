"""An event loop whose clock jumps at the very moment at which nobody has anything left to do.

`VirtualClock.run` waits a real millisecond before each jump, to let threads and sockets come to rest. Where
there are none, the loop itself knows when it has nothing to do: it asks its selector to wait. So the clock
jumps there, a simulated night takes no millisecond for nothing, and a busy machine cannot make it jump early.
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
        """What is ready; a wait for nothing but time is none.

        Raises:
            RuntimeError: everybody waits, and nobody for the clock.
        """
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self._clock.jump():
            return super().select(0)
        # The end of a loop waits for a thread; anything else that waits here has nobody to wake it.
        ready = super().select(_NOBODY_S if timeout is None else timeout)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits, and nobody for the clock")
        return ready


class _AtOnce(ThreadPoolExecutor):
    """Calls what is given to a thread right here: a real thread would take no time on a clock that jumps."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Done when it returns."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def run_quietly(clock: VirtualClock, work: Coroutine[Any, Any, T]) -> T:
    """Run this to its end in a loop of its own; the clock jumps whenever everybody sleeps.

    Not for work with sockets, processes or threads of its own: nobody waits for them.

    Args:
        clock: The clock on which everybody sleeps.
        work: What to run.

    Raises:
        RuntimeError: everybody waits, and nobody for the clock.
    """

    def loop() -> asyncio.AbstractEventLoop:
        made = asyncio.SelectorEventLoop(_JumpingSelector(clock))
        made.set_default_executor(_AtOnce(1))
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)
