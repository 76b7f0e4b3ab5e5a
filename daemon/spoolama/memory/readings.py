"""Defines the memory readings of one moment: cards, this machine, model processes, the server's models.

None always means that the value could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from spoolama.backends.base import HeldModel


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, or one MIG instance of one."""

    index: int
    """NVML index of the card."""
    name: str
    total_bytes: int
    used_bytes: int
    """Total minus free: memory of programs and of the driver."""
    uuid: str | None = None
    reserved_bytes: int | None = None
    """The driver's part of `used_bytes` (480 MiB on an H100), from version 2 of NVML's memory call."""
    processes: Mapping[int, int | None] | None = None
    """Process id -> bytes on this card (None: size not reported); None as a whole: not permitted."""
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    throttled: tuple[str, ...] | None = None
    """Why the clocks are reduced: `power`, `heat`, ...; empty: they are not."""
    mig: str | None = None
    """The number of a MIG instance; `on` for a card in MIG mode whose instances cannot be read."""

    @property
    def free_bytes(self) -> int:
        """Memory that a program can still allocate."""
        return max(0, self.total_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class Runner:
    """A process on this machine that holds a model: `ollama runner`, `llama-server`, our own child."""

    pid: int
    name: str
    rss_bytes: int
    """Resident memory, including mapped weights."""
    anonymous_bytes: int | None = None
    """The part that is not backed by a file; it contains llama-server's prompt cache."""


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of this machine, or of the part of it that this service may use."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    bound: str | None = None
    """What limits the memory if that is less than the machine has: `memory.max of NAME`."""

    @property
    def used_bytes(self) -> int:
        """Memory in use that the kernel cannot reclaim."""
        return max(0, self.total_bytes - self.available_bytes)


@dataclass(frozen=True, slots=True)
class Readings:
    """One set of readings; there is one every second."""

    at: float
    """Monotonic seconds."""
    cards: tuple[Card, ...] | None
    """None: no card can be read, and `unreadable` has the reason."""
    unreadable: str | None = None
    """Why the cards cannot be read now."""
    host: Host | None = None
    runners: tuple[Runner, ...] = ()
    models: tuple[HeldModel, ...] | None = None
    """The models that the server lists; None: it was not asked, or it has no such list."""


class NoReading(Exception):
    """The cards cannot be read.

    Args:
        reason: Text for people.
        lasting: There is no NVIDIA card or driver, so nothing changes while the service runs.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


class CardProbe(Protocol):
    """Reads the cards. May block forever, so it is called from its own thread."""

    def read(self) -> tuple[Card, ...]:
        """Read all cards.

        Raises:
            NoReading: there is no card, or the driver does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class NoCards:
    """A machine without cards, or a machine other than the server's."""

    reason: str = field(default="no NVIDIA GPU on this machine")

    def read(self) -> tuple[Card, ...]:
        """Always raise `NoReading`."""
        raise NoReading(self.reason, lasting=True)
