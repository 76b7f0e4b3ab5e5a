"""Encodes any values as JSON and CSV lines that strict readers accept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

_SPECIAL = frozenset(',"\r\n')


def json_line(value: Any) -> bytes:
    """One line of UTF-8 JSON. NaN and infinity, which JSON lacks, become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"
    except ValueError:  # NaN, infinity or an unpaired surrogate
        text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"


def json_document(value: Any) -> bytes:
    """A file of UTF-8 JSON, indented for people."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=2)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: Any) -> Any:
    """The same value with null for every number that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def csv_cell(value: Any) -> str:
    """The text of a cell: texts unchanged, null as an empty cell, everything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json_line(value).decode().rstrip("\n")


def csv_line(cells: Iterable[str]) -> bytes:
    """One CSV record, quoted as in RFC 4180, with a single newline at its end as Unix tools expect.

    Unpaired surrogates, which JSON can contain and UTF-8 cannot, are written as escapes such as `\\ud800`.
    """
    quoted = [
        '"' + cell.replace('"', '""') + '"' if not _SPECIAL.isdisjoint(cell) else cell for cell in cells
    ]
    line = ",".join(quoted)
    return (line or '""').encode("utf-8", "backslashreplace") + b"\n"
