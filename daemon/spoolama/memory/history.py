"""Collects memory metrics of a job: seconds at each level, peak, mean, level changes and actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from spoolama.memory.level import Level
from spoolama.memory.readings import Readings

MOST_EVENTS = 200
"""How many changes and actions are kept in full; further ones are only counted."""


class MemoryHistory:
    """Adds up readings while a job runs; a later run of the same job continues from `before`.

    Args:
        before: The result of `to_json` at the end of an earlier run.
    """

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        known = before or {}
        self._seconds = {level: float(known.get("seconds", {}).get(str(level), 0.0)) for level in Level}
        self._unreadable_s = float(known.get("seconds_without_reading", 0.0))
        self._card_s = float(known.get("seconds_read", 0.0))
        self._card_byte_s = float(known.get("mean_bytes") or 0.0) * self._card_s
        self._peak: int | None = known.get("peak_bytes")
        self._total: int | None = known.get("total_bytes")
        self._runner_peak: int | None = known.get("runner_rss_peak_bytes")
        self._host_peak: int | None = known.get("host_peak_bytes")
        self._unreadable: str | None = known.get("unreadable")
        self._max_temperature: int | None = known.get("max_temperature_c")
        self._throttled_s = Counter[str](known.get("throttled_seconds", {}))
        self._actions = Counter[str](known.get("actions", {}))
        self._events: list[dict[str, Any]] = list(known.get("events", []))
        self._changes = int(known.get("changes", 0))

    def add(self, readings: Readings, level: Level, seconds: float) -> None:
        """Add a reading that covers this many seconds."""
        self._seconds[level] += seconds
        if readings.cards is None:
            self._unreadable_s += seconds
            self._unreadable = readings.unreadable
        else:
            used = sum(card.used_bytes for card in readings.cards)
            self._card_s += seconds
            self._card_byte_s += used * seconds
            self._peak = max(self._peak or 0, used)
            self._total = sum(card.total_bytes for card in readings.cards)
            heat = [c.temperature_c for c in readings.cards if c.temperature_c is not None]
            self._max_temperature = max(
                [*heat, *([] if self._max_temperature is None else [self._max_temperature])], default=None
            )
            for why in {why for card in readings.cards for why in card.throttled or ()}:
                self._throttled_s[why] += seconds  # type: ignore[assignment]  # a Counter may hold floats
        if readings.runners:
            rss = sum(runner.rss_bytes for runner in readings.runners)
            self._runner_peak = max(self._runner_peak or 0, rss)
        if readings.host is not None:
            self._host_peak = max(self._host_peak or 0, readings.host.used_bytes)

    def changed(self, at: float, event: Mapping[str, Any]) -> None:
        """Record a change of the level.

        Args:
            at: Seconds since the epoch.
            event: The old and the new level, and the readings at that time.
        """
        self._changes += 1
        self._keep({"at": round(at, 1), **event})

    def did(self, at: float, action: str, facts: Mapping[str, Any]) -> None:
        """Record an action."""
        self._actions[action] += 1
        self._keep({"at": round(at, 1), "action": action, **facts})

    def _keep(self, event: dict[str, Any]) -> None:
        if len(self._events) < MOST_EVENTS:
            self._events.append(event)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; null for values that were never read."""
        return {
            "seconds": {str(level): round(self._seconds[level], 1) for level in Level},
            "seconds_without_reading": round(self._unreadable_s, 1),
            "seconds_read": round(self._card_s, 1),
            "unreadable": self._unreadable,
            "peak_bytes": self._peak,
            "mean_bytes": round(self._card_byte_s / self._card_s) if self._card_s else None,
            "total_bytes": self._total,
            "runner_rss_peak_bytes": self._runner_peak,
            "host_peak_bytes": self._host_peak,
            "max_temperature_c": self._max_temperature,
            "throttled_seconds": {why: round(s, 1) for why, s in sorted(self._throttled_s.items())},
            "changes": self._changes,
            "actions": dict(sorted(self._actions.items())),
            "events": self._events,
        }
