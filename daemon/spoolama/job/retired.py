"""Lists removed settings: refused in a new sidecar, ignored in the sidecar of a job that has started.

Without the setting a job behaves like an earlier version that had not learned anything yet.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RETIRED", "in_new_words", "leave_out_retired"]

RETIRED: dict[tuple[str, str], str] = {
    ("trim.every", "auto"): (
        "every is a number of rows, 30 if it is left out (20 with strategy reset, 1 with anchors)"
    )
}
"""Dotted key and value of each removed setting, and what to write instead."""


def leave_out_retired(sidecar: dict[str, Any]) -> None:
    """Remove these settings from a sidecar's data."""
    for key, value in RETIRED:
        *parents, name = key.split(".")
        inner: Any = sidecar
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and inner.get(name) == value:
            del inner[name]


def in_new_words(data: dict[str, Any]) -> dict[str, Any]:
    """A sidecar that an earlier version accepted, with the keys and values of this one."""
    if "on_collapse" not in data:
        return data
    value = data["on_collapse"]
    rest = {key: kept for key, kept in data.items() if key != "on_collapse"}
    return {**rest, "on_harm": "isolate" if value == "redo" else value}
