"""Limits how often a model is loaded again after it was unloaded because of memory pressure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["HOUR_S", "wait_before_load"]

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
