"""Distributes pieces of work to several lanes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

__all__ = ["Handout"]

T = TypeVar("T")


class Handout(Generic[T]):
    """An asynchronous iterator that several tasks can share.

    Args:
        pieces: The pieces of work, in order.
    """

    def __init__(self, pieces: AsyncIterator[T]) -> None:
        self._pieces = pieces
        self._lock = asyncio.Lock()

    async def take(self) -> T | None:
        """Return the next piece; None if there are no more."""
        async with self._lock:
            return await anext(self._pieces, None)
