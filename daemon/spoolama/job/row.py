"""A row of input, as it was read: its place, its fields, or why it could not be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOTE_KEY", "Row", "RowFault", "digest_of", "memory_of"]

NOTE_KEY = "_spoolama"
"""The one reserved key of a JSONL row: a line of errors.jsonl says there which row of which job it was.

Whoever drops the line again leaves it there, so that `merge` can bring the answer home; it may be larger than
a cell, since it holds the bytes of a row that could not be read.
"""


def digest_of(raw: bytes) -> bytes:
    """What identifies a row's content: the first 16 bytes of its sha256."""
    return hashlib.sha256(raw).digest()[:16]


def memory_of(record: bytes) -> int:
    """Bytes that a record takes in memory once it is parsed, at most; an estimate.

    A character takes up to 4 bytes, and each value some 100 beside its text.

    Args:
        record: A line of CSV or JSON.
    """
    values = record.count(b",") + record.count(b"[") + record.count(b"{")
    return len(record) * (1 if record.isascii() else 4) + 100 * values


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row cannot be asked."""

    code: str
    """Stable name: `bad_encoding`, `bad_json`, `wrong_type`, `ragged`, `cell_too_large`, ..."""
    message: str
    """In words, with sizes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the data file."""

    ordinal: int
    """0-based place among the records of the file."""
    line: int
    """1-based line of the file (after decompression) on which the record begins."""
    fields: Mapping[str, Any] | None
    """Column or key to value; None if unreadable."""
    raw: bytes
    """The record's bytes as they stand in the file, without the line end (bounded if oversized)."""
    fault: RowFault | None = None
    """Set if the record is unreadable or refused."""
    id: str | None = None
    """The record's own name where the format brings one (`custom_id`)."""
    shape: str | None = None
    """OpenAI lines: a digest of what must be equal for rows to share a conversation; None: stands alone."""
    model: str | None = None
    """OpenAI lines: the model this line asks for; None: the job's."""
