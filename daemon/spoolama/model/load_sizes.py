"""Defines the loads of a model that are tried when memory is short, and tracks which one is in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spoolama.backends.base import LoadSpec

__all__ = ["HOUR_S", "LEAST_WINDOW", "OFTEN", "LoadSizes", "ladder", "wait_before_load"]

HOUR_S = 3600.0
_FIRST_S = 60.0


def wait_before_load(releases: Sequence[float], now: float) -> float:
    """Return the seconds until the model may be loaded again.

    After the first unload in the last hour this is 0; then 1 min after the unload, 2 min, 4 min and so on. So
    there are at most seven such loads in any hour.

    Args:
        releases: Times at which the model was unloaded because of memory pressure, oldest first.
        now: The current time of the same clock.
    """
    recent = [at for at in releases if now - at < HOUR_S]
    if len(recent) < 2:
        return 0.0
    return max(0.0, recent[-1] + _FIRST_S * 2.0 ** (len(recent) - 2) - now)


LEAST_WINDOW = 1024
"""Minimum context window in tokens: smaller ones free little memory and fit hardly any row."""
_STEP = 256


def ladder(spec: LoadSpec, *, slots_too: bool, num_predict: int) -> tuple[LoadSpec, ...]:
    """Return the loads from the requested one down to the smallest useful one; never empty.

    If we set the number of slots, it is halved first: each slot has its own KV cache, so half of the slots
    frees as much memory as half of the window, and every row still fits. Then the window is halved.

    Args:
        spec: The requested load.
        slots_too: Whether `spec.slots` determines the slots of the server.
        num_predict: Tokens of an answer; a window must hold it and a prompt of the same length.
    """
    rungs = [spec]
    while slots_too and rungs[-1].slots > 1:
        rungs.append(replace(rungs[-1], slots=rungs[-1].slots // 2))
    least = max(LEAST_WINDOW, 2 * num_predict)
    while True:
        window = rungs[-1].num_ctx // 2 // _STEP * _STEP
        if window < least:
            return tuple(rungs)
        rungs.append(replace(rungs[-1], num_ctx=window))


OFTEN = 3
"""A load is too large if it makes memory critical this many times in an hour."""
_TRIES = 2
"""Shortages in an hour before the next smaller load is tried."""
_LONGEST_S = 4 * HOUR_S
"""Maximum time before a larger load that ran out of memory is tried again."""


class LoadSizes:
    """The loads of one model, from the requested one (`asked`) down. All times are monotonic seconds.

    Args:
        specs: The result of `model/load_sizes.py`; never empty.
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
