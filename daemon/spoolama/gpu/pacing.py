"""How often a model may be released and loaded again for want of memory. Pure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["HOUR_S", "wait_before_load"]

HOUR_S = 3600.0
_FIRST_S = 60.0


def wait_before_load(releases: Sequence[float], now: float) -> float:
    """Seconds until the model may be loaded again.

    The first time at once, then a minute after the release, two minutes, four and so on, counted over the
    last hour. So there are at most seven such loads in any hour, whatever memory does.

    Args:
        releases: When it was released for want of memory, latest last.
        now: The same clock.
    """
    recent = [at for at in releases if now - at < HOUR_S]
    if len(recent) < 2:
        return 0.0
    return max(0.0, recent[-1] + _FIRST_S * 2.0 ** (len(recent) - 2) - now)
