"""Defines the reader of rows and its limits, and reads JSONL files and OpenAI batch files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spoolama.errors import InputError
from spoolama.job.row import NOTE_KEY, Row, RowFault
from spoolama.job.rows.stream import BrokenStream, EndlessLine, Lines, chunks, content
from spoolama.job.strict_json import BadJson, canonical, parse_json

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
        """Whether the file ended with a newline; always true for a complete compressed stream.

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
