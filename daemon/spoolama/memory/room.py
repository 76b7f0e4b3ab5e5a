"""Defines the watchdog's interface for the engine (`Memory`), and checks whether a model fits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from spoolama.memory.level import Level, MemoryLimits, in_gb
from spoolama.memory.readings import Card, Host

Where = Literal["card", "host"]


@dataclass(frozen=True, slots=True)
class RequiredMemory:
    """The memory that a load needs, as known before the load."""

    size_bytes: int
    where: Where
    words: str = ""
    """The parts of the size, as text."""


@dataclass(frozen=True, slots=True)
class Room:
    """Whether a load fits now."""

    fits: bool
    why: str
    """The reason, as text for the status and the log."""
    ever: bool = True
    """Whether it would fit if the memory were otherwise empty."""
    lacks_bytes: int = 0
    """How many bytes are missing now."""


@dataclass(frozen=True, slots=True)
class UsedMemory:
    """Memory in use at one moment; None: not known."""

    cards_bytes: int | None = None
    """On all cards that count, by all processes."""
    runners_bytes: int | None = None
    """The part of it that model processes use."""
    runners_rss_bytes: int | None = None
    """Resident memory of the model processes."""


class Memory(Protocol):
    """The interface of the memory watchdog for the engine."""

    @property
    def level(self) -> Level:
        """The memory pressure."""
        ...

    @property
    def where(self) -> Where:
        """Which memory determines the level."""
        ...

    @property
    def words(self) -> str:
        """The reason for the level, as text."""
        ...

    def room(self, need: RequiredMemory | None) -> Room:
        """Whether a load of this size fits; a load of unknown size (None) always does."""
        ...

    def most_bytes(self, where: Where) -> int | None:
        """The bytes that a load may take there if the memory is otherwise empty; None: not known."""
        ...

    def taken(self) -> UsedMemory:
        """The memory in use now."""
        ...

    def loading(self) -> AbstractContextManager[None]:
        """Context manager to hold while a model is loaded."""
        ...

    async def looked(self) -> None:
        """Wait for the next reading."""
        ...

    def did(self, action: str, **facts: object) -> None:
        """Record an action for the log, the status and the metrics."""
        ...


class UnlimitedMemory:
    """Memory without a watchdog: everything fits. For tests, and for servers whose memory is unknown."""

    level = Level.OK
    where: Where = "card"
    words = "memory is not watched"

    def room(self, need: RequiredMemory | None) -> Room:  # noqa: ARG002
        """Always fits."""
        return Room(fits=True, why=self.words)

    def most_bytes(self, where: Where) -> int | None:  # noqa: ARG002
        """Not known."""
        return None

    def taken(self) -> UsedMemory:
        """Not known."""
        return UsedMemory()

    def loading(self) -> AbstractContextManager[None]:
        """A context manager without effect."""
        return nullcontext()

    async def looked(self) -> None:
        """Wait forever: there are no readings."""
        await asyncio.Event().wait()

    def did(self, action: str, **facts: object) -> None:
        """Do nothing."""


def room_on_cards(
    need: RequiredMemory,
    cards: Sequence[Card],
    limits: Mapping[int, MemoryLimits],
    *,
    reclaimed_bytes: int = 0,
) -> Room:
    """Check whether a model fits on one card, or spread over all cards, below their critical limits.

    Args:
        need: The load.
        cards: The latest reading.
        limits: Limits by the index of the card in `cards`.
        reclaimed_bytes: Memory that the server frees by itself for a load, by unloading its other models.
    """
    free = [max(0, limits[n].critical_bytes - card.used_bytes) for n, card in enumerate(cards)]
    empty = [limits[n].critical_bytes - (card.reserved_bytes or 0) for n, card in enumerate(cards)]
    best = max(range(len(cards)), key=lambda n: free[n])
    size = need.size_bytes
    lacks = size - (usable_bytes(cards, free) + reclaimed_bytes)
    ever = usable_bytes(cards, empty) >= size
    there = f"{in_gb(free[best])} of {in_gb(cards[best].total_bytes)} may still be taken on "
    words = need.words or f"it needs {in_gb(size)}"
    return Room(lacks <= 0, f"{words}; {there}{_name(cards, best)}", ever, max(0, lacks))


def usable_bytes(cards: Sequence[Card], sizes: Sequence[int]) -> int:
    """Bytes that one model can use on all cards; with MIG on one, as CUDA gives a process one instance."""
    return max(sizes, default=0) if any(card.mig for card in cards) else sum(sizes)


def room_on_host(need: RequiredMemory, host: Host, limits: MemoryLimits) -> Room:
    """Check whether a load fits into this machine's memory below its critical limit."""
    free = max(0, limits.critical_bytes - host.used_bytes)
    there = f"{in_gb(free)} of {in_gb(host.total_bytes)} of this machine's memory may still be taken"
    words = need.words or f"it needs {in_gb(need.size_bytes)}"
    lacks = need.size_bytes - free
    return Room(lacks <= 0, f"{words}; {there}", limits.critical_bytes >= need.size_bytes, max(0, lacks))


def _name(cards: Sequence[Card], n: int) -> str:
    return "the GPU" if len(cards) == 1 else f"GPU {cards[n].index}"
