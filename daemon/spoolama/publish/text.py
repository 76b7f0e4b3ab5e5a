"""How values are written: JSON lines and CSV lines that every reader takes, whatever stands in the values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

__all__ = ["csv_cell", "csv_line", "json_document", "json_line", "plain"]

_SPECIAL = frozenset(',"\r\n')


def json_line(value: Any) -> bytes:
    """One line of UTF-8 JSON. NaN and infinity, which JSON does not have, become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"
    except ValueError:  # not a number, or half of a surrogate pair
        text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"


def json_document(value: Any) -> bytes:
    """A file of UTF-8 JSON, indented for a person."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=2)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def plain(value: Any) -> Any:
    """The same value with null in place of every number that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def csv_cell(value: Any) -> str:
    """What a value looks like in a cell: texts as they are, null empty, everything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json_line(value).decode().rstrip("\n")


def csv_line(cells: Iterable[str]) -> bytes:
    """One record of CSV as RFC 4180 quotes it, ended by a single newline as Unix tools expect.

    Half surrogate pairs (a JSON input can hold them, UTF-8 cannot) are written as `\\udXXX`.
    """
    quoted = [
        '"' + cell.replace('"', '""') + '"' if not _SPECIAL.isdisjoint(cell) else cell for cell in cells
    ]
    line = ",".join(quoted)
    return (line or '""').encode("utf-8", "backslashreplace") + b"\n"
