"""Defines the loads of a model that are tried when memory is short, and tracks which one is in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spoolama.backends.base import LoadSpec
from spoolama.clock import Clock

LEAST_WINDOW = 1024
"""Minimum context window in tokens: smaller ones free little memory and fit hardly any row."""
OFTEN = 3
"""A load is too large if it makes memory critical this many times in an hour."""
_STEP = 256
"""Windows of smaller loads are multiples of this many tokens."""
_HOUR_S = 3600.0
_FIRST_WAIT_S = 60.0
_TRIES = 2
"""Shortages in an hour before the next smaller load is tried."""
_LONGEST_S = 4 * _HOUR_S
"""Maximum time before a larger load that ran out of memory is tried again."""


def load_steps(spec: LoadSpec, *, slots_too: bool, num_predict: int) -> tuple[LoadSpec, ...]:
    """Return the loads from the requested one down to the smallest useful one; never empty.

    If we set the number of slots, it is halved first: each slot has its own KV cache, so half of the slots
    frees as much memory as half of the window, and every row still fits. Then the window is halved.

    Args:
        spec: The requested load.
        slots_too: Whether `spec.slots` determines the slots of the server.
        num_predict: Tokens of an answer; a window must hold it and a prompt of the same length.
    """
    steps = [spec]
    while slots_too and steps[-1].slots > 1:
        steps.append(replace(steps[-1], slots=steps[-1].slots // 2))
    least = max(LEAST_WINDOW, 2 * num_predict)
    while True:
        window = steps[-1].num_ctx // 2 // _STEP * _STEP
        if window < least:
            return tuple(steps)
        steps.append(replace(steps[-1], num_ctx=window))


class LoadSizes:
    """The loads of one model, from the requested one down, and the history of shortages and unloads.

    Args:
        steps: The result of `load_steps`; never empty.
        clock: The clock.
    """

    def __init__(self, steps: Sequence[LoadSpec], clock: Clock) -> None:
        self._steps = tuple(steps)
        self._clock = clock
        self._at = 0
        self._shortages: list[float] = []
        """When loads and answers ran out of memory with this load, in the last hour."""
        self._failed: dict[int, tuple[float, int]] = {}
        """Loads that ran out of memory, by step: last time and count."""
        self._unloads: list[tuple[float, int]] = []
        """When the model was unloaded because of memory pressure, and the step at that time."""

    @property
    def spec(self) -> LoadSpec:
        """The current or next load."""
        return self._steps[self._at]

    @property
    def requested(self) -> LoadSpec:
        """The requested load."""
        return self._steps[0]

    @property
    def larger(self) -> LoadSpec | None:
        """The next larger load."""
        return self._steps[self._at - 1] if self._at else None

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller load is possible."""
        return self._at + 1 < len(self._steps)

    def start_at(self, num_ctx: int, slots: int) -> None:
        """Start with the last load of an earlier run; ignores unknown values."""
        for place, spec in enumerate(self._steps):
            if (spec.num_ctx, spec.slots) == (num_ctx, slots):
                self._at = place

    def shrink(self) -> bool:
        """Select the next smaller load; False if there is none."""
        if not self.can_shrink:
            return False
        self._at += 1
        self._shortages = []
        return True

    def enlarge(self) -> None:
        """Select the next larger load."""
        self._at -= 1
        self._shortages = []

    def shortage(self) -> bool:
        """Record a shortage; returns whether there were enough for a smaller load."""
        now = self._clock.monotonic()
        self._shortages = [*(at for at in self._shortages if now - at < _HOUR_S), now]
        return len(self._shortages) >= _TRIES

    def load_failed(self) -> None:
        """Record that this load ran out of memory."""
        count = self._failed[self._at][1] if self._at in self._failed else 0
        self._failed[self._at] = self._clock.monotonic(), count + 1

    def may_enlarge(self) -> bool:
        """Whether the next larger load did not run out of memory recently."""
        if not self._at or self._at - 1 not in self._failed:
            return self._at > 0
        at, times = self._failed[self._at - 1]
        return self._clock.monotonic() - at >= min(_LONGEST_S, _HOUR_S / 4 * 2.0**times)

    def unloaded(self) -> None:
        """Record that the model was unloaded because of memory pressure."""
        self._unloads = [*self._last_hour(), (self._clock.monotonic(), self._at)]

    @property
    def unloads(self) -> int:
        """Number of unloads in the last hour, with any load."""
        return len(self._last_hour())

    @property
    def unloaded_often(self) -> bool:
        """Whether this load was unloaded often in the last hour."""
        return sum(place == self._at for _, place in self._last_hour()) >= OFTEN

    @property
    def wait_s(self) -> float:
        """Seconds until the model may be loaded again.

        After the first unload in the last hour this is 0; then 1 min after the unload, 2 min, 4 min and so
        on. So there are at most seven such loads in any hour.
        """
        recent = self._last_hour()
        if len(recent) < 2:
            return 0.0
        wait_s = _FIRST_WAIT_S * 2.0 ** (len(recent) - 2)
        return max(0.0, recent[-1][0] + wait_s - self._clock.monotonic())

    def _last_hour(self) -> list[tuple[float, int]]:
        now = self._clock.monotonic()
        return [(at, place) for at, place in self._unloads if now - at < _HOUR_S]
