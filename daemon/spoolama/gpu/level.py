"""How tense memory is: ok, high or critical. A pure state machine, one step for each reading.

- *Up* after `rise_s` of readings at or above a mark: a spike that is gone again changes nothing.
- *Down* one level at a time, after `fall_s` of readings below the mark less `hysteresis`.
- *Trend*: where the readings of the last `trend_s` seconds climb such that the critical mark is reached
  within `horizon_s`, memory counts as high already.
- *Blind*: without readings the level stays for `fall_s`, then is ok: what is not seen stops no job.

So a level that was left is not come back to within `rise_s`, and each way down takes `fall_s`: there are at
most 8 changes in any minute, whatever the readings are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

from spoolama.gpu.limits import Limits

__all__ = ["Level", "Rules", "State", "step"]


class Level(IntEnum):
    """How tense memory is."""

    OK = 0
    HIGH = 1
    """Nothing is loaded or enlarged, idle models that we loaded are released."""
    CRITICAL = 2
    """No new rows; the model is released and comes back when there is room."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds, and the hysteresis as a share of all memory."""

    rise_s: float = 3.0
    fall_s: float = 20.0
    hysteresis: float = 0.02
    trend_s: float = 20.0
    horizon_s: float = 15.0
    gap_s: float = 10.0
    """Readings further apart than this prove nothing of the time between."""


@dataclass(frozen=True, slots=True)
class State:
    """What the next step needs to know of all readings before."""

    level: Level = Level.OK
    since: float = 0.0
    """Monotonic time of the last change."""
    at: float | None = None
    """Time of the last step with a reading."""
    over_high: float | None = None
    """Since when all readings were at or above the high mark, or climbing towards the critical one."""
    over_critical: float | None = None
    under_high: float | None = None
    """Since when all readings were below the high mark less the hysteresis, and not climbing."""
    under_critical: float | None = None
    blind: float | None = None
    """Since when there is no reading."""
    marks: tuple[tuple[float, int], ...] = ()
    """Times and bytes in use of the last seconds."""
    full_in_s: float | None = None
    """Seconds until the critical mark at the slope of these; None: it does not climb, or is too short."""


def step(
    state: State,
    used_bytes: int | None,
    limits: Limits | None,
    now: float,
    rules: Rules,
    *,
    trend: bool = True,
) -> State:
    """The state after a reading, or after the lack of one; without `trend` a climb means nothing.

    A model that is being loaded climbs, and then stays.
    """
    if used_bytes is None or limits is None:
        return _without(state, now, rules)
    if state.at is not None and now - state.at > rules.gap_s:
        state = State(state.level, state.since)
    marks = (*(m for m in state.marks if trend and now - m[0] <= rules.trend_s), (now, used_bytes))
    full_in_s = _until(marks, limits.critical_bytes, rules)
    climbing = full_in_s is not None and full_in_s <= rules.horizon_s
    margin = int(rules.hysteresis * limits.total_bytes)
    seen = replace(
        state,
        at=now,
        blind=None,
        marks=marks,
        full_in_s=full_in_s,
        over_high=_since(state.over_high, used_bytes >= limits.high_bytes or climbing, now),
        over_critical=_since(state.over_critical, used_bytes >= limits.critical_bytes, now),
        under_high=_since(state.under_high, used_bytes < limits.high_bytes - margin and not climbing, now),
        under_critical=_since(state.under_critical, used_bytes < limits.critical_bytes - margin, now),
    )
    level = _level(seen, now, rules)
    return seen if level is seen.level else replace(seen, level=level, since=now)


def _level(state: State, now: float, rules: Rules) -> Level:
    def lasted(since: float | None, seconds: float) -> bool:
        return since is not None and now - since >= seconds

    def gone(since: float | None) -> bool:
        # Counted anew from the last change: down goes one level at a time.
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


def _without(state: State, now: float, rules: Rules) -> State:
    blind = now if state.blind is None else state.blind
    lost = State(state.level, state.since, blind=blind)
    if state.level is not Level.OK and now - max(blind, state.since) >= rules.fall_s:
        return replace(lost, level=Level.OK, since=now)
    return lost


def _since(since: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if since is None else since


def _until(marks: Sequence[tuple[float, int]], full: int, rules: Rules) -> float | None:
    """Seconds until `full` at the slope of a least-squares line through the marks.

    Only where they span half of `trend_s`, and the later half lies above all of the earlier one on average
    by more than a jump would: a load raises memory once, and is no trend.
    """
    if len(marks) < 4 or marks[-1][0] - marks[0][0] < rules.trend_s / 2:
        return None
    mean_t = sum(t for t, _ in marks) / len(marks)
    mean_u = sum(u for _, u in marks) / len(marks)
    spread = sum((t - mean_t) ** 2 for t, _ in marks)
    slope = sum((t - mean_t) * (u - mean_u) for t, u in marks) / spread
    rises = [after[1] - before[1] for before, after in pairwise(marks)]
    whole = sum(rise for rise in rises if rise > 0)
    if slope <= 0 or whole <= 0 or max(rises) > whole / 2:
        return None
    return max(0.0, (full - marks[-1][1]) / slope)
