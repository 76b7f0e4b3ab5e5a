"""Checks that the columns named in a sidecar exist in the header of the data file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from spoolama.errors import Problem
from spoolama.job.yaml_tree import Tree

__all__ = ["column_problems"]

_KEYS = ("id", "gold")
"""Keys whose value is a column name."""

_MOST_NAMED = 30
"""Maximum number of columns in a hint."""


def column_problems(tree: Tree, name: str, columns: Sequence[str], data: str) -> list[Problem]:
    """Return a problem for each column that the sidecar names and the header lacks.

    Args:
        tree: The parsed sidecar; it may have other errors.
        name: The sidecar's name as the user knows it.
        columns: The header.
        data: The data file's name as the user knows it.
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
