"""How probable an answer was, from what servers report of each token."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["mean_logprob"]

ROUNDING = 1e-3
"""So far above 0 a logarithm of a probability may come out of a server's float arithmetic."""


def mean_logprob(entries: Any) -> float | None:
    """Mean natural logarithm over the tokens reported: `[{"token": ..., "logprob": ...}, ...]`.

    Ollama (`logprobs` beside `message`) and OpenAI's chat completions (`choices[0].logprobs.content`) spell
    them alike. A list with anything else in it is no measurement: None.
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
