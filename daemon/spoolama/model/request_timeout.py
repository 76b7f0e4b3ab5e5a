"""Learns the timeout of a request from the duration of earlier answers."""

from __future__ import annotations

__all__ = ["RequestTimeout"]

_UNLEARNED_S = 900.0
"""Timeout in seconds before any answer: enough to load a model of 12 GB from a slow disk first."""
_LEAST_S = 60.0
_FACTOR = 10.0
_ENOUGH = 20


class RequestTimeout:
    """Learns the timeout from earlier answers: ten times the longest, at least 60 s.

    Args:
        fixed_s: A timeout set by the user; then nothing is learned.
    """

    def __init__(self, fixed_s: float | None = None) -> None:
        self._fixed_s = fixed_s
        self._seen = 0
        self._longest_s = 0.0

    def saw(self, seconds: float) -> None:
        """Record the duration of an answer."""
        self._seen += 1
        self._longest_s = max(self._longest_s, seconds)

    @property
    def bound_s(self) -> float:
        """Timeout of a request in seconds."""
        if self._fixed_s is not None:
            return self._fixed_s
        if self._seen < _ENOUGH:
            return _UNLEARNED_S
        return max(_LEAST_S, _FACTOR * self._longest_s)
