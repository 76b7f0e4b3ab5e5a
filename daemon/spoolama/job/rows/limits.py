"""How large a record may be."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep memory flat and keep one broken record from taking others with it."""

    max_cell_bytes: int = 32 * 1024
    """A larger CSV cell or JSON value is refused as that row's error: it would not fit a window."""
    max_line_bytes: int = 1024 * 1024
    """A longer line is that row's error; only its beginning is kept."""
    max_quoted_bytes: int = 256 * 1024
    """A CSV record that spans lines may be this large; past it, its opening quote counts as never closed."""
    max_quoted_lines: int = 1000
    """... and may span this many lines."""
