"""Signals as events of the loop: stop (TERM, INT) and reload (HUP).

asyncio runs these handlers between two steps of the loop, so a blocked loop delays them.
Therefore the first stop signal gives TERM and INT back to the kernel: a second one ends the process at once,
whatever the loop does. Everything on disk survives that, as it survives a power cut.
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
    """Call back in the running loop's thread when a signal comes; the old handlers return at the end.

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
