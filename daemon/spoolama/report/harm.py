"""What a conversation was seen to do to the answers, for whoever must hear of it before all else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ADVICE", "harm_in_short", "warnings_of"]

ADVICE = " What to do: "
"""Begins the last part of a warning."""


def warnings_of(m: Mapping[str, Any]) -> list[str]:
    """What guard and audit found wrong with the answers, and what to do.

    Args:
        m: metrics.json.
    """
    return _both(m, "warning")


def harm_in_short(m: Mapping[str, Any]) -> str | None:
    """The same in a few words, for status and log; None: they found nothing.

    Args:
        m: metrics.json.
    """
    found = _both(m, "warning_in_short")
    return f"Warning: {'; '.join(found)}; see summary.txt" if found else None


def _both(m: Mapping[str, Any], key: str) -> list[str]:
    """The audit's first: it is about all rows, the guard's about some segments.

    Where those stand as the conversation left them, the guard would advise `redo`, which mends them alone: so
    its advice is left out beside the audit's.
    """
    guard, audit = m.get("guard") or {}, m.get("audit") or {}
    of_guard, of_audit = guard.get(key), audit.get(key)
    if of_guard and of_audit and not guard.get("replaced"):
        of_guard = of_guard.partition(ADVICE)[0]
    return [text for text in (of_audit, of_guard) if text]
