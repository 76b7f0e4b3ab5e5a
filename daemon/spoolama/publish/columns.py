"""Defines the columns of results.csv: those of the input, the answer, `status` and `error`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spoolama.job.row import NOTE_KEY
from spoolama.publish.encoding import csv_cell, csv_line
from spoolama.publish.result_row import ResultRow

MORE = "more"
"""Column for the keys of a JSONL row without a column of their own, as a JSON object."""

_MAX_KEYS = 500


def answer_keys(format: Mapping[str, Any] | str | None) -> list[str]:
    """Keys of the answer that get a column each: the top-level properties of the schema."""
    if isinstance(format, Mapping) and format.get("type", "object") == "object":
        properties = format.get("properties")
        if isinstance(properties, Mapping):
            return [str(key) for key in properties]
    return []


class KeyUnion:
    """Collects the columns of a JSONL input, whose rows can have different keys.

    A first pass over all rows collects the keys in the order of their first appearance, a second pass writes.
    Above 500 different keys, the rest of a row goes into the column `more`.
    """

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}
        self.more = False
        """Whether there are too many keys."""

    def add(self, fields: Mapping[str, Any]) -> None:
        """Add the keys of one row."""
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
    """The columns of the table. An added column whose name the input already uses gets a number.

    Args:
        inputs: The columns of the input, in order.
        keys: Keys of the answer that get a column each, `answer.KEY`; none: one column, `answer`.
        more: Whether the last column is `more`.
        asked_again: Whether a column shows which rows were asked again in isolation.
    """

    def __init__(
        self, inputs: Sequence[str], keys: Sequence[str], *, more: bool = False, asked_again: bool = False
    ) -> None:
        self._inputs = list(inputs)
        self._keys = list(keys)
        self._more = more
        self._asked_again = asked_again
        taken = set(self._inputs)
        ours = [f"answer.{key}" for key in keys] or ["answer"]
        others = ["status", "error", *(["asked_again"] if asked_again else []), *([MORE] if more else [])]
        named = [_free(name, taken) for name in [*ours, *others]]
        self.answers = named[: len(ours)]
        """Names of the columns of the answer."""
        self.header = [*self._inputs, *named]
        """All names, in order."""

    def line(self, fields: Mapping[str, Any] | None, result: ResultRow) -> bytes:
        """The line of a row."""
        fields = fields or {}
        cells = [csv_cell(fields.get(name)) for name in self._inputs]
        cells += self._answer_cells(result)
        cells.append(result.status)
        cells.append(_error_cell(result))
        if self._asked_again:
            cells.append(csv_cell(result.asked_again))
        if self._more:
            inputs = set(self._inputs)
            rest = {k: v for k, v in fields.items() if k not in inputs and k != NOTE_KEY}
            cells.append(csv_cell(rest or None))
        return csv_line(cells)

    def _answer_cells(self, result: ResultRow) -> list[str]:
        if not self._keys:
            return [csv_cell(result.answer)]
        answer = result.answer if isinstance(result.answer, Mapping) else {}
        return [csv_cell(answer.get(key)) for key in self._keys]


def _error_cell(result: ResultRow) -> str:
    if result.error is None:
        return ""
    return f"line {result.line}: {result.error['code']}: {result.error['message']}"


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
