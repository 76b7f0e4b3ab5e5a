"""Bounds the memory of the service that rows take while they are asked."""

from __future__ import annotations

import contextlib
from asyncio import Event
from collections.abc import AsyncIterator

__all__ = ["RowMemory"]


class RowMemory:
    """A number of bytes that the rows in work share. A row larger than all of it is asked with no other.

    Prompt, request and reply exist several times over while a row is asked. With 256 lanes and rows of 1 MB
    that would be gigabytes; rows of usual size never wait here.

    Args:
        total: Bytes, by `StoredRow.memory`.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._freed = Event()

    @contextlib.asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Wait until there is room for a row of this size, and keep it."""
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
