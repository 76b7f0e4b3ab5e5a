"""Computes the memory pressure level (ok, high, critical) with a pure state machine.

Each reading is one step.

- *Up*: after `rise_s` of readings at or above a limit. A short spike changes nothing.
- *Down*: one level at a time, after `fall_s` of readings below the limit minus `hysteresis`.
- *Trend*: if the readings of the last `trend_s` seconds rise so fast that they reach the critical limit
  within `horizon_s`, the level is already high.
- *Blind*: without readings the level stays for `fall_s` and then becomes ok, so that a missing reading does
  not stop a job.

A level cannot return within `rise_s` after it was left, and each step down takes `fall_s`. The level
therefore changes at most 8 times in any minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

GB = 2**30
"""Memory sizes are reported in units of 2**30 bytes, as cards are sold: a 16 GB card has 16 x 2**30 bytes."""


@dataclass(frozen=True, slots=True)
class RelativeLimits:
    """The thresholds for high and critical. A number up to 1 is a fraction of the total, above 1 it is GB."""

    high: float = 0.875
    critical: float = 0.9375
    keep_free_gb: float = 0.5
    """GB that always stay free: the critical limit is at least this far below the total."""

    def limits(self, total_bytes: int) -> MemoryLimits:
        """Return the limits in bytes for memory of this size. High is never above critical."""
        # On a card of less than 1 GB, keep at most half of it free.
        spared = max(total_bytes - int(self.keep_free_gb * GB), total_bytes // 2)
        critical = min(_bytes(self.critical, total_bytes), spared)
        return MemoryLimits(total_bytes, min(_bytes(self.high, total_bytes), critical), critical)


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """The limits of one card, or of the machine's memory, in bytes in use."""

    total_bytes: int
    high_bytes: int
    critical_bytes: int


def stricter(one: MemoryLimits, other: MemoryLimits) -> MemoryLimits:
    """Return the lower of both limits each: a job can lower the service's limits, not raise them."""
    critical = min(one.critical_bytes, other.critical_bytes)
    high = min(one.high_bytes, other.high_bytes, critical)
    return MemoryLimits(one.total_bytes, high, critical)


def in_gb(size: int) -> str:
    """Format a size for people: `14.2 GB`, `0.4 GB`."""
    return f"{size / GB:.1f} GB"


def _bytes(limit: float, total_bytes: int) -> int:
    return min(total_bytes, round(limit * total_bytes if limit <= 1 else limit * GB))


class Level(IntEnum):
    """Memory pressure."""

    OK = 0
    HIGH = 1
    """No model is loaded or enlarged; idle models that we loaded are unloaded."""
    CRITICAL = 2
    """No new rows start; the model is unloaded, and loaded again when there is enough memory."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class LevelRules:
    """Times in seconds, and the hysteresis as a fraction of total memory."""

    rise_s: float = 3.0
    fall_s: float = 20.0
    hysteresis: float = 0.02
    trend_s: float = 20.0
    horizon_s: float = 15.0
    gap_s: float = 10.0
    """If two readings are further apart than this, the earlier readings are discarded."""


@dataclass(frozen=True, slots=True)
class LevelState:
    """The state that one step passes to the next."""

    level: Level = Level.OK
    since: float = 0.0
    """Monotonic time of the last change."""
    at: float | None = None
    """Time of the last step with a reading."""
    over_high: float | None = None
    """Since when all readings are at or above the high limit or rise towards the critical limit."""
    over_critical: float | None = None
    under_high: float | None = None
    """Since when all readings are below the high limit minus the hysteresis and do not rise."""
    under_critical: float | None = None
    unreadable: float | None = None
    """Since when there is no reading."""
    history: tuple[tuple[float, int], ...] = ()
    """Time and bytes in use of each reading of the last `trend_s` seconds."""
    full_in_s: float | None = None
    """Seconds until the critical limit at the slope of `history`; None: no rise, or too few readings."""


def step(
    state: LevelState,
    used_bytes: int | None,
    limits: MemoryLimits | None,
    now: float,
    rules: LevelRules,
    *,
    trend: bool = True,
) -> LevelState:
    """Return the state after a reading, or after a missing one (`used_bytes` None).

    `trend=False` ignores the slope: while a model is being loaded, memory use rises and then stays.
    """
    if used_bytes is None or limits is None:
        return _without(state, now, rules)
    if state.at is not None and now - state.at > rules.gap_s:
        state = LevelState(state.level, state.since)
    history = (*(r for r in state.history if trend and now - r[0] <= rules.trend_s), (now, used_bytes))
    full_in_s = _until(history, limits.critical_bytes, rules)
    climbing = full_in_s is not None and full_in_s <= rules.horizon_s
    margin = int(rules.hysteresis * limits.total_bytes)
    seen = replace(
        state,
        at=now,
        unreadable=None,
        history=history,
        full_in_s=full_in_s,
        over_high=_since(state.over_high, used_bytes >= limits.high_bytes or climbing, now),
        over_critical=_since(state.over_critical, used_bytes >= limits.critical_bytes, now),
        under_high=_since(state.under_high, used_bytes < limits.high_bytes - margin and not climbing, now),
        under_critical=_since(state.under_critical, used_bytes < limits.critical_bytes - margin, now),
    )
    level = _level(seen, now, rules)
    return seen if level is seen.level else replace(seen, level=level, since=now)


def _level(state: LevelState, now: float, rules: LevelRules) -> Level:
    def lasted(since: float | None, seconds: float) -> bool:
        return since is not None and now - since >= seconds

    def gone(since: float | None) -> bool:
        # Count from the last change, so that the level falls one step at a time.
        return since is not None and now - max(since, state.since) >= rules.fall_s

    if state.level < Level.CRITICAL and lasted(state.over_critical, rules.rise_s):
        return Level.CRITICAL
    if state.level < Level.HIGH and lasted(state.over_high, rules.rise_s):
        return Level.HIGH
    if state.level is Level.CRITICAL and gone(state.under_critical):
        return Level.HIGH
    if state.level is Level.HIGH and gone(state.under_high):
        return Level.OK
    return state.level


def _without(state: LevelState, now: float, rules: LevelRules) -> LevelState:
    unreadable = now if state.unreadable is None else state.unreadable
    lost = LevelState(state.level, state.since, unreadable=unreadable)
    if state.level is not Level.OK and now - max(unreadable, state.since) >= rules.fall_s:
        return replace(lost, level=Level.OK, since=now)
    return lost


def _since(since: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if since is None else since


def _until(history: Sequence[tuple[float, int]], full: int, rules: LevelRules) -> float | None:
    """Seconds until `full` at the slope of a least-squares line through the readings.

    None if they span less than half of `trend_s`, or if a single step accounts for more than half of the
    rise: loading a model raises memory use once and is not a trend.
    """
    if len(history) < 4 or history[-1][0] - history[0][0] < rules.trend_s / 2:
        return None
    mean_t = sum(t for t, _ in history) / len(history)
    mean_u = sum(u for _, u in history) / len(history)
    spread = sum((t - mean_t) ** 2 for t, _ in history)
    slope = sum((t - mean_t) * (u - mean_u) for t, u in history) / spread
    rises = [after[1] - before[1] for before, after in pairwise(history)]
    whole = sum(rise for rise in rises if rise > 0)
    if slope <= 0 or whole <= 0 or max(rises) > whole / 2:
        return None
    return max(0.0, (full - history[-1][1]) / slope)
