"""Waiting for something, but not past a wish to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from spoolama.engine.store import Stop

__all__ = ["until"]


async def until(what: Awaitable[object], stop: Stop) -> None:
    """Wait for this or for a wish to stop, whichever comes first; the other is cancelled."""
    waits = asyncio.ensure_future(what), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
