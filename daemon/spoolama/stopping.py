"""Defines the request to stop, and waits for the first of several events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


class Stop:
    """A request to stop that several tasks can check and wait for. Once set it stays set.

    It belongs to one event loop: to set it from another thread, use `loop.call_soon_threadsafe`.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        """The reason: `stop`, `pause` or `cancel`."""

    def set(self, reason: str = "stop") -> None:
        """Request a stop; the first reason counts, but `cancel` replaces any other."""
        self.reason = reason if reason == "cancel" else self.reason or reason
        self._event.set()

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait until a stop is requested."""
        await self._event.wait()


async def first_of(*events: Awaitable[object]) -> None:
    """Wait for the first of these, and cancel the others."""
    waits = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def until(what: Awaitable[object], stop: Stop) -> None:
    """Wait for this or for a request to stop, whichever comes first, and cancel the other."""
    await first_of(what, stop.wait())
