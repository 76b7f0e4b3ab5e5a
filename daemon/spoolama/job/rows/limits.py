"""Defines the maximum sizes of records in data files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

__all__ = ["MAX_CELL_BYTES", "RowLimits"]

MAX_CELL_BYTES = 256 * 1024
"""About 60,000 tokens of text. Whether a row fits the job's context window is checked separately."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """Limits that bound memory and prevent that one invalid record affects others."""

    max_cell_bytes: int = MAX_CELL_BYTES
    """Maximum size of a CSV cell or JSON value; a larger one is an error of that row."""
    max_line_bytes: int = 4 * MAX_CELL_BYTES
    """Maximum length of a line; a longer one is an error of that row, and only its beginning is kept."""
    max_columns: int = 16_384
    """Maximum columns of a CSV file, the same as in Excel; in memory each cell takes about 100 bytes."""
    max_quoted_bytes: int = 2 * MAX_CELL_BYTES
    """Maximum size of a CSV record on several lines; above it, its opening quote counts as never closed."""
    max_quoted_lines: int = 10_000
    """Maximum lines of a CSV record."""

    @classmethod
    def for_cells(cls, max_cell_bytes: int) -> Self:
        """Return limits with which a cell of this size can be read together with other cells."""
        return cls(
            max_cell_bytes=max_cell_bytes,
            max_line_bytes=max(cls().max_line_bytes, 4 * max_cell_bytes),
            max_quoted_bytes=max(cls().max_quoted_bytes, 2 * max_cell_bytes),
        )
