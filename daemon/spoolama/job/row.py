"""Defines a row of the data file: its position, its fields, or why it cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOTE_KEY", "Row", "RowFault", "digest_of", "memory_of"]

NOTE_KEY = "_spoolama"
"""The only reserved key of a JSONL row. In errors.jsonl it names the row and the job of the line.

It must stay in the line when the line is uploaded again, so that `merge` can merge the answer into the job.
Its value can exceed the limit of a cell, because it contains the bytes of a row that could not be read.
"""


def digest_of(raw: bytes) -> bytes:
    """Return the digest of a row's content: the first 16 bytes of its sha256."""
    return hashlib.sha256(raw).digest()[:16]


def memory_of(record: bytes) -> int:
    """Estimate the maximum bytes of a parsed record in memory.

    A character takes up to 4 bytes, and each value about 100 bytes in addition to its text.

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
    """Text for people, with sizes."""


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
    """The record's bytes in the file, without the line end (cut off if oversized)."""
    fault: RowFault | None = None
    """Set if the record is unreadable or refused."""
    id: str | None = None
    """The record's id if the format has one (`custom_id`)."""
    shape: str | None = None
    """OpenAI lines: digest of what must be equal for rows to share a conversation; None: shares none."""
    model: str | None = None
    """OpenAI lines: the model that the line requests; None: the job's."""
