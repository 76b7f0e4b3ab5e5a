"""Waits for an event or for the stop of the service, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from spoolama.engine.store import Stop

__all__ = ["until"]


async def until(what: Awaitable[object], stop: Stop) -> None:
    """Wait for this or for the stop of the service, whichever comes first, and cancel the other."""
    waits = asyncio.ensure_future(what), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
