"""What a conversation was seen to do to the answers, for whoever must hear of it before all else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["harm_in_short", "warnings_of"]


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
    """The guard's alone, where its rows are still as the conversation left them: one advice is enough."""
    guard, audit = m.get("guard") or {}, m.get("audit") or {}
    texts = [guard.get(key), audit.get(key)]
    if texts[0] and not guard.get("replaced"):
        texts = texts[:1]
    return [text for text in texts if text]
