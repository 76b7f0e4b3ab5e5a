"""Lists removed settings: refused in a new sidecar, ignored in the sidecar of a job that has started.

Without the setting a job behaves like an earlier version that had not learned anything yet.
"""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["RETIRED", "in_todays_words"]

RETIRED: dict[tuple[str, str], str] = {
    ("trim.every", "auto"): (
        "every is a number of rows, 30 if it is left out (20 with strategy reset, 1 with anchors)"
    )
}
"""Dotted key and value of each removed setting, and what to write instead."""


def in_todays_words(sidecar: dict[str, Any]) -> dict[str, Any]:
    """The data of a sidecar that an earlier version accepted, with the keys and values of this one."""
    today = copy.deepcopy(sidecar)
    for key, value in RETIRED:
        *parents, name = key.split(".")
        inner: Any = today
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and inner.get(name) == value:
            del inner[name]
    if "on_collapse" in today:
        value = today.pop("on_collapse")
        today["on_harm"] = "isolate" if value == "redo" else value
    return today
