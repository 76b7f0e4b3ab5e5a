"""Limits the memory of the service that rows and prompts take while they are asked."""

from __future__ import annotations

import contextlib
from asyncio import Event
from collections.abc import AsyncIterator

__all__ = ["ByteBudget"]


class ByteBudget:
    """A byte limit that large texts share. A text that exceeds the limit is admitted only by itself.

    Row, prompt, request and reply exist in several copies while a row is asked. With 256 lanes and rows of
    1 MB that would be gigabytes.

    Args:
        total: Maximum bytes held at once.
        free: Texts up to this size never wait and are not counted.
    """

    def __init__(self, total: int, free: int) -> None:
        self._total, self._free = total, free
        self._used = 0
        self._freed = Event()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Wait until a text of this many bytes fits, and reserve the bytes."""
        if size <= self._free:
            yield
            return
        size = min(size, self._total)
        while self._used + size > self._total:
            self._freed.clear()
            await self._freed.wait()
        self._used += size
        try:
            yield
        finally:
            self._used -= size
            self._freed.set()
