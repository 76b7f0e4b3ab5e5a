"""Reads the rows of JSONL files and of OpenAI batch files."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from spoolama.job.row import NOTE_KEY, Row, RowFault
from spoolama.job.rows.limits import RowLimits
from spoolama.job.rows.lines import content
from spoolama.job.rows.reader import RowReader, utf8
from spoolama.job.strict_json import BadJson, canonical, parse_json

__all__ = ["JsonReader", "parse_line"]

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def parse_line(raw: bytes) -> dict[str, Any] | RowFault:
    """Return the object on a line, or the fault if there is none."""
    text = utf8(raw)
    if isinstance(text, RowFault):
        return text
    try:
        value = parse_json(text)
    except BadJson as error:
        at = "" if error.column is None else f" (column {error.column})"
        return RowFault("bad_json", error.message + at)
    if not isinstance(value, dict):
        return RowFault("wrong_type", f"the line is {_KINDS.get(type(value), 'null')}, not an object {{...}}")
    return value


class JsonReader(RowReader):
    """Reads a JSONL file.

    Args:
        openai: Whether the lines are OpenAI batch requests; then `custom_id` is the row's id.
    """

    def __init__(self, path: Path, compression: str | None, limits: RowLimits, *, openai: bool) -> None:
        super().__init__(path, compression, limits)
        self._openai = openai

    def _read(self) -> Generator[Row, None, None]:
        ordinal = 0
        for number, line in enumerate(self._physical, start=1):
            raw = content(line)
            if not raw.strip():
                continue
            yield self._row(ordinal, number, raw, oversized=len(line) > self._limits.max_line_bytes)
            ordinal += 1

    def _row(self, ordinal: int, number: int, raw: bytes, *, oversized: bool) -> Row:
        limits = self._limits
        if oversized:
            fault = RowFault("line_too_large", f"the line is longer than {limits.max_line_bytes} bytes")
            return Row(ordinal, number, None, raw[: limits.max_line_bytes], fault)
        fields = parse_line(raw)
        if isinstance(fields, RowFault):
            return Row(ordinal, number, None, raw, fields)
        if self._openai:
            name = fields.get("custom_id")
            return Row(ordinal, number, fields, raw, id=name if isinstance(name, str) else None)
        if len(raw) > limits.max_cell_bytes:
            for key, value in fields.items():
                if key == NOTE_KEY:
                    continue
                text = value if isinstance(value, str) else canonical(value)
                if (size := len(text.encode())) > limits.max_cell_bytes:
                    what = f"the value of {key} has {size} bytes; the limit is {limits.max_cell_bytes}"
                    return Row(ordinal, number, None, raw, RowFault("cell_too_large", what))
        return Row(ordinal, number, fields, raw)
