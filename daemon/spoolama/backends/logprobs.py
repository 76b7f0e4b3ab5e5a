"""Computes the mean log probability of an answer from the server's values for each token."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["mean_logprob"]

ROUNDING = 1e-3
"""A log probability may be up to this much above 0 because of float arithmetic in the server."""


def mean_logprob(entries: Any) -> float | None:
    """Return the mean natural logarithm over the reported tokens: `[{"token": ..., "logprob": ...}, ...]`.

    Ollama (`logprobs` next to `message`) and OpenAI's chat completions (`choices[0].logprobs.content`) use
    the same format. None if the list has any other entry.
    """
    if not isinstance(entries, list) or not entries:
        return None
    found: list[float] = []
    for entry in entries:
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or not -math.inf < value <= ROUNDING:
            return None
        found.append(min(0.0, float(value)))
    return math.fsum(found) / len(found)
