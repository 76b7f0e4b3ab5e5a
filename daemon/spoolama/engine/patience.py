"""How long an answer may take before the server counts as stalled."""

from __future__ import annotations

__all__ = ["Patience"]

_UNLEARNED_S = 900.0
"""Before anything is known: long enough for a model of 12 GB to be loaded from a slow disk on the way."""
_LEAST_S = 60.0
_FACTOR = 10.0
_ENOUGH = 20


class Patience:
    """Learns the bound from the answers seen: ten times the longest, at least a minute.

    Args:
        fixed_s: A bound set by the user; then nothing is learned.
    """

    def __init__(self, fixed_s: float | None = None) -> None:
        self._fixed_s = fixed_s
        self._seen = 0
        self._longest_s = 0.0

    def saw(self, seconds: float) -> None:
        """An answer took this long."""
        self._seen += 1
        self._longest_s = max(self._longest_s, seconds)

    @property
    def bound_s(self) -> float:
        """Seconds after which a request is given up."""
        if self._fixed_s is not None:
            return self._fixed_s
        if self._seen < _ENOUGH:
            return _UNLEARNED_S
        return max(_LEAST_S, _FACTOR * self._longest_s)
