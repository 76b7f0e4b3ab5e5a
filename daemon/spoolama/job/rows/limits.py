"""How large a record may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

__all__ = ["MAX_CELL_BYTES", "Limits"]

MAX_CELL_BYTES = 256 * 1024
"""A document of some 60,000 tokens. Whether it fits the job's window is another question, asked per row."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep memory flat and keep one broken record from taking others with it."""

    max_cell_bytes: int = MAX_CELL_BYTES
    """A larger CSV cell or JSON value is refused as that row's error."""
    max_line_bytes: int = 4 * MAX_CELL_BYTES
    """A longer line is that row's error; only its beginning is kept."""
    max_columns: int = 16_384
    """Columns of a CSV file, as many as a sheet of Excel has: in memory each cell takes some 100 bytes."""
    max_quoted_bytes: int = 2 * MAX_CELL_BYTES
    """A CSV record that spans lines may be this large; past it, its opening quote counts as never closed."""
    max_quoted_lines: int = 10_000
    """... and may span this many lines."""

    @classmethod
    def for_cells(cls, max_cell_bytes: int) -> Self:
        """Bounds under which a cell of this size can be read, whatever stands beside it."""
        return cls(
            max_cell_bytes=max_cell_bytes,
            max_line_bytes=max(cls().max_line_bytes, 4 * max_cell_bytes),
            max_quoted_bytes=max(cls().max_quoted_bytes, 2 * max_cell_bytes),
        )
