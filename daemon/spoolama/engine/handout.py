"""Hands work out to several lanes, one piece to each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

__all__ = ["Handout"]

T = TypeVar("T")


class Handout(Generic[T]):
    """An asynchronous iterator that several tasks may take from.

    Args:
        pieces: What is handed out, in this order.
    """

    def __init__(self, pieces: AsyncIterator[T]) -> None:
        self._pieces = pieces
        self._lock = asyncio.Lock()

    async def take(self) -> T | None:
        """The next piece; None when there is none left."""
        async with self._lock:
            return await anext(self._pieces, None)
