"""The ladder of smaller loads of one model, for when memory is short. Pure."""

from __future__ import annotations

from dataclasses import replace

from spoolama.backends.base import LoadSpec

__all__ = ["LEAST_WINDOW", "ladder"]

LEAST_WINDOW = 1024
"""Tokens: smaller windows free little, and hold hardly any row."""
_STEP = 256


def ladder(spec: LoadSpec, *, slots_too: bool, num_predict: int) -> tuple[LoadSpec, ...]:
    """Loads from the one that was asked for down to the smallest worth trying; never empty.

    Where the number of slots is ours to set, it is halved first: each slot has keys and values of its own,
    so half of the slots frees as much as half of the window, and every row still fits. Then the window is
    halved.

    Args:
        spec: The load that was asked for.
        slots_too: Whether `spec.slots` is what decides the server's slots.
        num_predict: Tokens of an answer: a window has room for it and for a prompt as long.
    """
    rungs = [spec]
    while slots_too and rungs[-1].slots > 1:
        rungs.append(replace(rungs[-1], slots=rungs[-1].slots // 2))
    least = max(LEAST_WINDOW, 2 * num_predict)
    while True:
        window = rungs[-1].num_ctx // 2 // _STEP * _STEP
        if window < least:
            return tuple(rungs)
        rungs.append(replace(rungs[-1], num_ctx=window))
