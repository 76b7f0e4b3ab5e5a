"""Whether a load fits: what it needs, held against what is free below the critical mark."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from spoolama.gpu.level import Level
from spoolama.gpu.limits import Limits, in_gb
from spoolama.gpu.readings import Card, Host

__all__ = [
    "Memory",
    "Need",
    "Room",
    "Taken",
    "Unwatched",
    "Where",
    "room_on_cards",
    "room_on_host",
    "together",
]


Where = Literal["card", "host"]


@dataclass(frozen=True, slots=True)
class Need:
    """What a load takes, as far as it is known before it."""

    size_bytes: int
    where: Where
    words: str = ""
    """Of what it is made."""


@dataclass(frozen=True, slots=True)
class Room:
    """Whether a load fits now."""

    fits: bool
    why: str
    """In words, for the status and the log."""
    ever: bool = True
    """Whether it would fit if nothing else were there."""
    lacks_bytes: int = 0
    """What is lacking now."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Memory in use at one moment; None: not known."""

    cards_bytes: int | None = None
    """On all cards that count, by everybody."""
    runners_bytes: int | None = None
    """Of it by processes that hold models."""
    runners_rss_bytes: int | None = None
    """Resident memory of these."""


class Memory(Protocol):
    """What the engine sees of the memory watchdog."""

    @property
    def level(self) -> Level:
        """How tense memory is."""
        ...

    @property
    def where(self) -> Where:
        """Which memory decides that."""
        ...

    @property
    def words(self) -> str:
        """Why, in words."""
        ...

    def room(self, need: Need | None) -> Room:
        """Whether a load of this need fits, by its size; one whose need is not known does."""
        ...

    def most_bytes(self, where: Where) -> int | None:
        """What a load may take there were nothing else in memory; None: not known."""
        ...

    def taken(self) -> Taken:
        """What is in use now."""
        ...

    def loading(self) -> AbstractContextManager[None]:
        """To be held while a model is loaded."""
        ...

    async def looked(self) -> None:
        """Wait for the next look at memory."""
        ...

    def did(self, action: str, **facts: object) -> None:
        """Something was done about memory: for the log, the status and the metrics."""
        ...


class Unwatched:
    """Nobody watches memory: everything fits. For tests, and for servers of which nothing can be known."""

    level = Level.OK
    where: Where = "card"
    words = "memory is not watched"

    def room(self, need: Need | None) -> Room:  # noqa: ARG002
        """Always."""
        return Room(fits=True, why=self.words)

    def most_bytes(self, where: Where) -> int | None:  # noqa: ARG002
        """Not known."""
        return None

    def taken(self) -> Taken:
        """Not known."""
        return Taken()

    def loading(self) -> AbstractContextManager[None]:
        """Nobody cares."""
        return nullcontext()

    async def looked(self) -> None:
        """For ever: nobody looks."""
        await asyncio.Event().wait()

    def did(self, action: str, **facts: object) -> None:
        """Nobody keeps it."""


def room_on_cards(
    need: Need, cards: Sequence[Card], limits: Mapping[int, Limits], *, reclaimed_bytes: int = 0
) -> Room:
    """Whether a model fits on one card, or spread over all of them, below their critical marks.

    Args:
        need: The load.
        cards: As read now.
        limits: By the card's place in `cards`.
        reclaimed_bytes: What the server gives back by itself for a load: its other models.
    """
    free = [max(0, limits[n].critical_bytes - card.used_bytes) for n, card in enumerate(cards)]
    empty = [limits[n].critical_bytes - (card.reserved_bytes or 0) for n, card in enumerate(cards)]
    best = max(range(len(cards)), key=lambda n: free[n])
    size = need.size_bytes
    lacks = size - (together(cards, free) + reclaimed_bytes)
    ever = together(cards, empty) >= size
    there = f"{in_gb(free[best])} of {in_gb(cards[best].total_bytes)} may still be taken on "
    words = need.words or f"it needs {in_gb(size)}"
    return Room(lacks <= 0, f"{words}; {there}{_name(cards, best)}", ever, max(0, lacks))


def together(cards: Sequence[Card], sizes: Sequence[int]) -> int:
    """What one model may have of these bytes on each card: CUDA shows a process one MIG instance alone."""
    return max(sizes, default=0) if any(card.mig for card in cards) else sum(sizes)


def room_on_host(need: Need, host: Host, limits: Limits) -> Room:
    """Whether a load fits into this machine's memory below its critical mark."""
    free = max(0, limits.critical_bytes - host.used_bytes)
    there = f"{in_gb(free)} of {in_gb(host.total_bytes)} of this machine's memory may still be taken"
    words = need.words or f"it needs {in_gb(need.size_bytes)}"
    lacks = need.size_bytes - free
    return Room(lacks <= 0, f"{words}; {there}", limits.critical_bytes >= need.size_bytes, max(0, lacks))


def _name(cards: Sequence[Card], n: int) -> str:
    return "the GPU" if len(cards) == 1 else f"GPU {cards[n].index}"
