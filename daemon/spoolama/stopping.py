"""Waits for an event or for the stop of the service, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

__all__ = ["Stop", "until"]


class Stop(Protocol):
    """Set when the service stops: rows in flight finish, no new ones begin."""

    def is_set(self) -> bool:
        """Whether the service stops."""
        ...

    async def wait(self) -> None:
        """Wait until the service stops."""
        ...


async def until(what: Awaitable[object], stop: Stop) -> None:
    """Wait for this or for the stop of the service, whichever comes first, and cancel the other."""
    waits = asyncio.ensure_future(what), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
