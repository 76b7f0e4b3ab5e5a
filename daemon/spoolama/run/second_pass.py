"""Selects the long rows that the second pass can answer, and the context window that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LongRows", "sort_out"]

_STEP = 256
"""Windows are multiples of this many tokens."""


@dataclass(frozen=True, slots=True)
class LongRows:
    """The second pass of one model."""

    window: int
    """Context window in tokens that fits all rows of `fitting`."""
    fitting: tuple[int, ...]
    """Ordinals of the rows that the second pass can answer."""
    too_long: tuple[tuple[int, int], ...]
    """(Ordinal, tokens) of rows that exceed the model's trained context length."""


def sort_out(sizes: Sequence[tuple[int, int]], trained: int | None) -> LongRows:
    """Select the rows that a larger window can fit, and compute that window.

    Args:
        sizes: (Ordinal, tokens of prompt and answer together).
        trained: Trained context length of the model; None: unknown.
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
