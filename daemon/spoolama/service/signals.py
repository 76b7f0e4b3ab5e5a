"""Handles the signals SIGTERM and SIGINT (stop) and SIGHUP (reload) in the event loop.

asyncio runs these handlers between two steps of the loop, so a blocked loop delays them.
Therefore the first stop signal restores the default handlers of TERM and INT: a second one ends the process
at once, even if the loop is blocked. The files on disk survive that like a power failure.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["listening"]

_STOP = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def listening(on_stop: Callable[[str], None], on_reload: Callable[[], None]) -> Iterator[None]:
    """Call back in the running loop's thread on a signal; restores the old handlers at the end.

    Args:
        on_stop: Called once, with the signal's name.
        on_reload: Called for each SIGHUP.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (*_STOP, signal.SIGHUP)}

    def stop(number: signal.Signals) -> None:
        for each in _STOP:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        on_stop(number.name)

    for number in _STOP:
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, on_reload)
    try:
        yield
    finally:
        for number in before:
            loop.remove_signal_handler(number)
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
