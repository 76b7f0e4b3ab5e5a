"""Converts the memory limits that an administrator or a sidecar sets into bytes for a card."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GB", "Marks", "MemoryLimits", "in_gb", "stricter"]

GB = 2**30
"""Memory sizes are reported in units of 2**30 bytes, as cards are sold: a 16 GB card has 16 x 2**30 bytes."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The thresholds for high and critical. A number up to 1 is a fraction of the total, above 1 it is GB."""

    high: float = 0.875
    critical: float = 0.9375
    keep_free_gb: float = 0.5
    """GB that always stay free: the critical mark is at least this far below the total."""

    def limits(self, total_bytes: int) -> MemoryLimits:
        """Return the marks in bytes for memory of this size. High is never above critical."""
        # On a card of less than 1 GB, keep at most half of it free.
        spared = max(total_bytes - int(self.keep_free_gb * GB), total_bytes // 2)
        critical = min(_bytes(self.critical, total_bytes), spared)
        return MemoryLimits(total_bytes, min(_bytes(self.high, total_bytes), critical), critical)


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """The marks of one card, or of the machine's memory, in bytes in use."""

    total_bytes: int
    high_bytes: int
    critical_bytes: int


def stricter(one: MemoryLimits, other: MemoryLimits) -> MemoryLimits:
    """Return the lower of both limits for each mark: a job can lower the service's limits, not raise them."""
    critical = min(one.critical_bytes, other.critical_bytes)
    high = min(one.high_bytes, other.high_bytes, critical)
    return MemoryLimits(one.total_bytes, high, critical)


def in_gb(size: int) -> str:
    """Format a size for people: `14.2 GB`, `0.4 GB`."""
    return f"{size / GB:.1f} GB"


def _bytes(mark: float, total_bytes: int) -> int:
    return min(total_bytes, round(mark * total_bytes if mark <= 1 else mark * GB))
