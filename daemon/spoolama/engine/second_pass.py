"""Rows too long for the window: answered at the end, with the model loaded once more with a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LongRows", "sort_out"]

_STEP = 256
"""Windows are asked for in multiples of this many tokens."""


@dataclass(frozen=True, slots=True)
class LongRows:
    """The second pass of one model."""

    window: int
    """Tokens that fit all of `fitting`."""
    fitting: tuple[int, ...]
    """Ordinals of the rows that it can answer."""
    too_long: tuple[tuple[int, int], ...]
    """(Ordinal, tokens) of rows longer than the model's own window."""


def sort_out(sizes: Sequence[tuple[int, int]], trained: int | None) -> LongRows:
    """Which rows a larger window can fit, and which window that is.

    Args:
        sizes: (Ordinal, tokens of prompt and answer together).
        trained: The model's own longest window, where it is known.
    """
    fitting: list[tuple[int, int]] = []
    too_long: list[tuple[int, int]] = []
    for row in sizes:
        (fitting if trained is None or row[1] < trained else too_long).append(row)
    most = max((tokens for _, tokens in fitting), default=0)
    window = -(-(most + 1) // _STEP) * _STEP
    return LongRows(
        window=window if trained is None else min(window, trained),
        fitting=tuple(ordinal for ordinal, _ in fitting),
        too_long=tuple(too_long),
    )
