"""results.csv: the input's columns, and the answer's, `status`, `error`, and `redone` where rows were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spoolama.job.row import NOTE_KEY
from spoolama.publish.record import Record
from spoolama.publish.text import csv_cell, csv_line

__all__ = ["MORE", "Columns", "KeyUnion", "answer_keys"]

MORE = "more"
"""Column for what has no column of its own: the rest of a JSONL row, as a JSON object."""

_MAX_KEYS = 500


def answer_keys(format: Mapping[str, Any] | str | None) -> list[str]:
    """Keys of the answer with a column each: the schema's top-level properties; none: one column for all."""
    if isinstance(format, Mapping) and format.get("type", "object") == "object":
        properties = format.get("properties")
        if isinstance(properties, Mapping):
            return [str(key) for key in properties]
    return []


class KeyUnion:
    """The columns of a JSONL input, whose rows each bring their own keys.

    The first pass over all rows collects the keys in the order of their first appearance, the second writes.
    That keeps memory flat and every value in the table, also keys that only a late row has.
    Past 500 different keys the rest of a row goes into one column, `more`, as JSON.
    """

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}
        self.more = False
        """Whether there were too many keys."""

    def add(self, fields: Mapping[str, Any]) -> None:
        """Note the keys of one row."""
        for key in fields:
            if key not in self._keys and key != NOTE_KEY:
                if len(self._keys) >= _MAX_KEYS:
                    self.more = True
                else:
                    self._keys[key] = None

    @property
    def keys(self) -> list[str]:
        """The keys in the order of their first appearance."""
        return list(self._keys)


class Columns:
    """The table's columns. A name that the input has already is given to ours with a number behind it.

    Args:
        inputs: The input's columns in order.
        keys: Keys of the answer with a column each, `answer.KEY`; none: one column, `answer`.
        more: Whether the last column holds what has no column of its own.
        redone: Whether a column says which rows were asked again, alone.
    """

    def __init__(
        self, inputs: Sequence[str], keys: Sequence[str], *, more: bool = False, redone: bool = False
    ) -> None:
        self._inputs = list(inputs)
        self._keys = list(keys)
        self._more = more
        self._redone = redone
        taken = set(self._inputs)
        ours = [f"answer.{key}" for key in keys] or ["answer"]
        others = ["status", "error", *(["redone"] if redone else []), *([MORE] if more else [])]
        named = [_free(name, taken) for name in [*ours, *others]]
        self.answers = named[: len(ours)]
        """Names of the answer's columns."""
        self.header = [*self._inputs, *named]
        """All names, in order."""

    def line(self, fields: Mapping[str, Any] | None, record: Record) -> bytes:
        """The row's line."""
        fields = fields or {}
        cells = [csv_cell(fields.get(name)) for name in self._inputs]
        cells += self._answer_cells(record)
        cells.append(record.status)
        cells.append(_error_cell(record))
        if self._redone:
            cells.append(csv_cell(record.redone))
        if self._more:
            inputs = set(self._inputs)
            rest = {k: v for k, v in fields.items() if k not in inputs and k != NOTE_KEY}
            cells.append(csv_cell(rest or None))
        return csv_line(cells)

    def _answer_cells(self, record: Record) -> list[str]:
        if not self._keys:
            return [csv_cell(record.answer)]
        answer = record.answer if isinstance(record.answer, Mapping) else {}
        return [csv_cell(answer.get(key)) for key in self._keys]


def _error_cell(record: Record) -> str:
    if record.error is None:
        return ""
    return f"line {record.line}: {record.error['code']}: {record.error['message']}"


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
