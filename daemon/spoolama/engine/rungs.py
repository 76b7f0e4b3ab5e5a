"""Where on the ladder of loads a model stands, and what has been: shortages, failed loads, releases."""

from __future__ import annotations

from collections.abc import Sequence

from spoolama.backends.base import LoadSpec
from spoolama.gpu.pacing import HOUR_S, wait_before_load

__all__ = ["OFTEN", "Rungs"]

OFTEN = 3
"""Times in an hour that the same load made memory critical: then it is too large."""
_TRIES = 2
"""Shortages in an hour before the next smaller load is tried."""
_LONGEST_S = 4 * HOUR_S
"""So long at most a larger load that ran out of memory is not tried again."""


class Rungs:
    """The loads of one model, from the one asked for (`asked`) down. All times are of one monotonic clock.

    Args:
        specs: See `engine/ladder.py`; never empty.
    """

    def __init__(self, specs: Sequence[LoadSpec]) -> None:
        self._specs = tuple(specs)
        self._at = 0
        self._shortages: list[float] = []
        """When loads and answers ran out of memory on this rung."""
        self._failed: dict[int, tuple[float, int]] = {}
        """Rungs whose load ran out of memory: when last, and how often."""
        self._releases: list[tuple[float, int]] = []
        """When the model was released for want of memory, and on which rung."""

    @property
    def spec(self) -> LoadSpec:
        """The load that is in force, or comes next."""
        return self._specs[self._at]

    @property
    def asked(self) -> LoadSpec:
        """The load that was asked for."""
        return self._specs[0]

    @property
    def larger(self) -> LoadSpec | None:
        """The next larger load."""
        return self._specs[self._at - 1] if self._at else None

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller load is left to be tried."""
        return self._at + 1 < len(self._specs)

    def begin_at(self, num_ctx: int, slots: int) -> None:
        """Begin with the load that an earlier run ended with; one that is not known is ignored."""
        for place, spec in enumerate(self._specs):
            if (spec.num_ctx, spec.slots) == (num_ctx, slots):
                self._at = place

    def down(self) -> bool:
        """One rung down; False: there is none."""
        if not self.can_shrink:
            return False
        self._at += 1
        self._shortages = []
        return True

    def up(self) -> None:
        """One rung up."""
        self._at -= 1
        self._shortages = []

    def short(self, now: float) -> bool:
        """Memory ran out; whether that was often enough for a smaller load."""
        self._shortages = [*(at for at in self._shortages if now - at < HOUR_S), now]
        return len(self._shortages) >= _TRIES

    def failed(self, now: float) -> None:
        """This very load ran out of memory."""
        self._failed[self._at] = now, self._failed.get(self._at, (now, 0))[1] + 1

    def may_climb(self, now: float) -> bool:
        """Whether the next larger load did not run out of memory lately, whatever an estimate says of it."""
        at, times = self._failed.get(self._at - 1, (now, 0))
        return self._at > 0 and (not times or now - at >= min(_LONGEST_S, HOUR_S / 4 * 2.0**times))

    def released(self, now: float) -> None:
        """The model was released for want of memory."""
        self._releases.append((now, self._at))

    def releases(self, now: float) -> int:
        """How often it was in the last hour, on any rung."""
        return sum(now - at < HOUR_S for at, _ in self._releases)

    def released_often(self, now: float) -> bool:
        """Whether this very load was, often."""
        return sum(place == self._at and now - at < HOUR_S for at, place in self._releases) >= OFTEN

    def paced(self, now: float) -> float:
        """Seconds until it may be loaded again, since it was released often lately."""
        return wait_before_load([at for at, _ in self._releases], now)
