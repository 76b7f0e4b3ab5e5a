"""What is known of memory at one moment: cards, this machine, the model's process, what the server lists.

Nothing here decides. None means everywhere: it could not be read, and nobody guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from spoolama.backends.base import HeldModel

__all__ = ["Card", "CardProbe", "Host", "NoCards", "NoReading", "Readings", "Runner"]


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, or one MIG instance of one."""

    index: int
    """NVML's number of the card."""
    name: str
    total_bytes: int
    used_bytes: int
    """What is not free: programs' memory and the driver's own."""
    uuid: str | None = None
    reserved_bytes: int | None = None
    """The driver's own part of `used_bytes` (480 MiB on an H100); NVML's second memory call tells it."""
    processes: Mapping[int, int | None] | None = None
    """Process id -> bytes on this card, None where its size is not told; None as a whole: not permitted."""
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    throttled: tuple[str, ...] | None = None
    """Why the clocks are lowered, in words: `power`, `heat`, ...; empty: they are not."""
    mig: str | None = None
    """Of a MIG instance, its number; `on` for a card that is cut up while its instances cannot be read."""

    @property
    def free_bytes(self) -> int:
        """What a program could still get."""
        return max(0, self.total_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class Runner:
    """A process on this machine that holds a model: `ollama runner`, `llama-server`, our own child."""

    pid: int
    name: str
    rss_bytes: int
    """Resident memory, weights that it maps included."""
    anonymous_bytes: int | None = None
    """The part that no file stands behind; llama-server's prompt cache grows here."""


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of this machine, or of the part of it that this service may use."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    bound: str | None = None
    """What bounds it, where that is less than the machine: `memory.max of the unit`."""

    @property
    def used_bytes(self) -> int:
        """What programs hold that cannot be taken back."""
        return max(0, self.total_bytes - self.available_bytes)


@dataclass(frozen=True, slots=True)
class Readings:
    """One record a second."""

    at: float
    """Monotonic seconds."""
    cards: tuple[Card, ...] | None
    """None: no card can be read, and `blind` says why."""
    blind: str | None = None
    """Why the cards cannot be read now, in words."""
    host: Host | None = None
    runners: tuple[Runner, ...] = ()
    models: tuple[HeldModel, ...] | None = None
    """What the server lists; None: it was not asked, or does not list."""


class NoReading(Exception):
    """The cards cannot be read.

    Args:
        reason: In words.
        lasting: Nothing will change while the service runs: there is no NVIDIA card or driver.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


class CardProbe(Protocol):
    """Reads the cards. May block for ever, so it is called from a thread of its own."""

    def read(self) -> tuple[Card, ...]:
        """All cards now.

        Raises:
            NoReading: there are none, or the driver does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class NoCards:
    """A machine without cards, or one whose cards say nothing of a server elsewhere."""

    reason: str = field(default="no NVIDIA GPU on this machine")

    def read(self) -> tuple[Card, ...]:
        """Nothing."""
        raise NoReading(self.reason, lasting=True)
