"""Tracks which load of the ladder is selected, and the history of shortages, failed loads and unloads."""

from __future__ import annotations

from collections.abc import Sequence

from spoolama.backends.base import LoadSpec
from spoolama.memory.pacing import HOUR_S, wait_before_load

__all__ = ["OFTEN", "LoadSizes"]

OFTEN = 3
"""A load is too large if it makes memory critical this many times in an hour."""
_TRIES = 2
"""Shortages in an hour before the next smaller load is tried."""
_LONGEST_S = 4 * HOUR_S
"""Maximum time before a larger load that ran out of memory is tried again."""


class LoadSizes:
    """The loads of one model, from the requested one (`asked`) down. All times are monotonic seconds.

    Args:
        specs: The result of `model/ladder.py`; never empty.
    """

    def __init__(self, specs: Sequence[LoadSpec]) -> None:
        self._specs = tuple(specs)
        self._at = 0
        self._shortages: list[float] = []
        """When loads and answers ran out of memory on this rung."""
        self._failed: dict[int, tuple[float, int]] = {}
        """Rungs whose load ran out of memory: last time and count."""
        self._releases: list[tuple[float, int]] = []
        """When the model was unloaded because of memory pressure, and the rung at that time."""

    @property
    def spec(self) -> LoadSpec:
        """The current or next load."""
        return self._specs[self._at]

    @property
    def asked(self) -> LoadSpec:
        """The requested load."""
        return self._specs[0]

    @property
    def larger(self) -> LoadSpec | None:
        """The next larger load."""
        return self._specs[self._at - 1] if self._at else None

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller load is possible."""
        return self._at + 1 < len(self._specs)

    def begin_at(self, num_ctx: int, slots: int) -> None:
        """Start with the last load of an earlier run; ignores unknown values."""
        for place, spec in enumerate(self._specs):
            if (spec.num_ctx, spec.slots) == (num_ctx, slots):
                self._at = place

    def down(self) -> bool:
        """Select the next smaller load; False if there is none."""
        if not self.can_shrink:
            return False
        self._at += 1
        self._shortages = []
        return True

    def up(self) -> None:
        """Select the next larger load."""
        self._at -= 1
        self._shortages = []

    def short(self, now: float) -> bool:
        """Record a shortage; returns whether there were enough for a smaller load."""
        self._shortages = [*(at for at in self._shortages if now - at < HOUR_S), now]
        return len(self._shortages) >= _TRIES

    def failed(self, now: float) -> None:
        """Record that this load ran out of memory."""
        self._failed[self._at] = now, self._failed.get(self._at, (now, 0))[1] + 1

    def may_climb(self, now: float) -> bool:
        """Whether the next larger load did not run out of memory recently."""
        at, times = self._failed.get(self._at - 1, (now, 0))
        return self._at > 0 and (not times or now - at >= min(_LONGEST_S, HOUR_S / 4 * 2.0**times))

    def released(self, now: float) -> None:
        """Record that the model was unloaded because of memory pressure."""
        self._releases.append((now, self._at))

    def releases(self, now: float) -> int:
        """Return the number of unloads in the last hour, on any rung."""
        return sum(now - at < HOUR_S for at, _ in self._releases)

    def released_often(self, now: float) -> bool:
        """Whether this load was unloaded often in the last hour."""
        return sum(place == self._at and now - at < HOUR_S for at, place in self._releases) >= OFTEN

    def paced(self, now: float) -> float:
        """Return the seconds until the model may be loaded again after recent unloads."""
        return wait_before_load([at for at, _ in self._releases], now)
