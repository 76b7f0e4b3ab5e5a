"""Limits of memory: what an administrator or a sidecar sets, and the bytes that follow for a card."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GB", "Limits", "Marks", "in_gb", "stricter"]

GB = 2**30
"""A card of 16 GB has 16 x 2**30 bytes: memory is told in these units, as cards are sold."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Where memory counts as high, and as critical. A number up to 1 is a share of the whole, above it GB."""

    high: float = 0.875
    critical: float = 0.9375
    keep_free_gb: float = 0.5
    """GB that stay free in any case: critical is never nearer to the end than this."""

    def limits(self, total_bytes: int) -> Limits:
        """The marks in bytes, for memory of this size. High is never above critical."""
        # A card of 1 GB may not have half of it kept free.
        spared = max(total_bytes - int(self.keep_free_gb * GB), total_bytes // 2)
        critical = min(_bytes(self.critical, total_bytes), spared)
        return Limits(total_bytes, min(_bytes(self.high, total_bytes), critical), critical)


@dataclass(frozen=True, slots=True)
class Limits:
    """The marks of one card, or of the machine's memory, in bytes in use."""

    total_bytes: int
    high_bytes: int
    critical_bytes: int


def stricter(one: Limits, other: Limits) -> Limits:
    """The lower of both, mark by mark: a job may be more careful than the service, never less."""
    critical = min(one.critical_bytes, other.critical_bytes)
    high = min(one.high_bytes, other.high_bytes, critical)
    return Limits(one.total_bytes, high, critical)


def in_gb(size: int) -> str:
    """A size for people: `14.2 GB`, `0.4 GB`."""
    return f"{size / GB:.1f} GB"


def _bytes(mark: float, total_bytes: int) -> int:
    return min(total_bytes, round(mark * total_bytes if mark <= 1 else mark * GB))
