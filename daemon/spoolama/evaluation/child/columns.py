"""The columns that a sidecar names, looked up in the data's header."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from spoolama.errors import Problem
from spoolama.job.yaml_tree import Tree

__all__ = ["column_problems"]

_KEYS = ("id", "gold")
"""Keys whose value is the name of a column."""

_MOST_NAMED = 30
"""Columns that a hint lists at most."""


def column_problems(tree: Tree, name: str, columns: Sequence[str], data: str) -> list[Problem]:
    """What the sidecar names and the header does not have, each at its key.

    Args:
        tree: The sidecar as it was read, be it right or wrong elsewhere.
        name: The sidecar's name as the person knows it.
        columns: The header.
        data: The data's name as the person knows it.
    """
    found = []
    for key in _KEYS:
        wanted = tree.data.get(key)
        if not isinstance(wanted, str) or not wanted or wanted in columns:
            continue
        place = tree.places.get((key,))
        line, column = (place.line, place.column) if place else (None, None)
        close = difflib.get_close_matches(wanted, columns, 1)
        listed = ", ".join(columns[:_MOST_NAMED]) + (", …" if len(columns) > _MOST_NAMED else "")
        hint = f"did you mean {close[0]!r}?" if close else f"its columns are {listed}"
        message = f"the header of {data} has no column {wanted!r}"
        found.append(Problem(name, line, column, key, message, hint))
    return found
