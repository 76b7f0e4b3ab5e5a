"""Provides the base class and helpers of all row readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Self

from spoolama.errors import InputError
from spoolama.job.row import Row, RowFault
from spoolama.job.rows.limits import RowLimits
from spoolama.job.rows.lines import Lines
from spoolama.job.rows.stream import BrokenStream, EndlessLine, chunks

__all__ = ["RowReader", "broken", "utf8"]


class RowReader(ABC):
    """Iterates over the rows of a data file; memory use does not depend on the file size.

    It can be iterated once. Closing it early closes the file.
    """

    def __init__(self, path: Path, compression: str | None, limits: RowLimits) -> None:
        self.name = path.name
        self.columns: list[str] | None = None
        """CSV and TSV: the column names in the header, available before the first row."""
        self._compressed = compression is not None
        self._limits = limits
        self._chunks = chunks(path, compression)
        self._lines = Lines(self._chunks, limits.max_line_bytes)
        self._physical = iter(self._lines)
        self._count = 0
        self._rows = self._read()

    @property
    def ended_with_newline(self) -> bool:
        """Whether the file ended with a line end; always true for a complete compressed stream.

        Valid after the last row.
        """
        return self._compressed or self._lines.ended_with_newline

    @abstractmethod
    def _read(self) -> Generator[Row, None, None]:
        """Yield the rows; may raise `BrokenStream`."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        try:
            row = next(self._rows)
        except BrokenStream as error:
            raise broken(self.name, error, self._count) from None
        self._count += 1
        return row

    def close(self) -> None:
        """Close the file."""
        self._rows.close()
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def broken(name: str, error: BrokenStream, rows: int) -> InputError:
    """Return the job's error for a stream that cannot be read further."""
    after = f" after {rows} row{'' if rows == 1 else 's'}" if rows else ""
    if isinstance(error, EndlessLine):
        return InputError(
            f"{name} has no rows{after}: {error}.",
            fix="Put each row on its own line. Check the content of the file and upload it again.",
            code="endless_line",
        )
    return InputError(
        f"{name} cannot be decompressed{after}: {error}.",
        fix="Compress and upload the file again; the upload may have been incomplete.",
        code="damaged_stream",
    )


def utf8(raw: bytes) -> str | RowFault:
    """Return the text of a record, or the fault if it is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        return RowFault(
            "bad_encoding",
            f"byte {error.start} of the record (0x{byte:02x}) is not UTF-8; save the file as UTF-8",
        )
