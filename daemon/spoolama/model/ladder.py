"""Computes the list of smaller loads of a model that are tried when memory is short."""

from __future__ import annotations

from dataclasses import replace

from spoolama.backends.base import LoadSpec

__all__ = ["LEAST_WINDOW", "ladder"]

LEAST_WINDOW = 1024
"""Minimum context window in tokens: smaller ones free little memory and fit hardly any row."""
_STEP = 256


def ladder(spec: LoadSpec, *, slots_too: bool, num_predict: int) -> tuple[LoadSpec, ...]:
    """Return the loads from the requested one down to the smallest useful one; never empty.

    If we set the number of slots, it is halved first: each slot has its own KV cache, so half of the slots
    frees as much memory as half of the window, and every row still fits. Then the window is halved.

    Args:
        spec: The requested load.
        slots_too: Whether `spec.slots` determines the slots of the server.
        num_predict: Tokens of an answer; a window must hold it and a prompt of the same length.
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
