"""Reads the rows of CSV and TSV files.

A record with valid quoting may span several lines. If the quoting is invalid, only the first line is a faulty
row and reading continues at the next physical line, so that an unclosed quote costs one row and not the file.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

from spoolama.errors import InputError, shortened
from spoolama.job.row import Row, RowFault
from spoolama.job.rows.reader import RowLimits, RowReader, broken, utf8
from spoolama.job.rows.stream import BrokenStream, content

_MOST_NAMED = 10
"""Maximum number of names, and of columns for each name, in a message."""


_MOST_OF_NAME = 1_000
"""Maximum characters of a column name, which the ledger repeats in each row."""


_NAME_COLUMNS = "The first line must name the columns."


class _Unclosed(Exception):
    """A quoted cell exceeds its limit."""


class CsvReader(RowReader):
    """Reads a CSV (comma) or TSV (tab) file with a header and quoting as in RFC 4180.

    Raises:
        InputError: the header is unusable.
    """

    def __init__(self, path: Path, compression: str | None, limits: RowLimits, *, delimiter: str) -> None:
        super().__init__(path, compression, limits)
        self._delimiter = delimiter
        self._comma = delimiter.encode()
        self._again: deque[bytes] = deque()  # lines read ahead
        self._line = 1  # number of the next physical line
        # The csv module has one limit per process, which must not be below ours.
        csv.field_size_limit(max(csv.field_size_limit(), limits.max_line_bytes + limits.max_quoted_bytes))
        try:
            self.columns = self._header()
        except BrokenStream as error:
            raise broken(self.name, error, 0) from None

    def _read(self) -> Generator[Row, None, None]:
        ordinal = 0
        while (line := self._next()) is not None:
            number = self._line
            raw = content(line)
            if not raw:
                self._line += 1
                continue
            lines, cells = self._record(line)
            if len(lines) > 1:
                raw = content(b"".join(lines))
            fault = cells if isinstance(cells, RowFault) else self._fault(raw, cells)
            odd = fault is not None and fault.code in ("ragged", "cell_too_large")
            if odd and len(lines) > 1 and self._is_record(lines[1]):
                # The next line is a valid record by itself, so this line has an unclosed quote.
                self._again.extendleft(reversed(lines[1:]))
                lines, raw = lines[:1], content(lines[0])
                fault = _unclosed("the line after it is a record of its own")
            self._line = number + len(lines)
            columns = self.columns
            assert columns is not None
            if fault is None:
                assert not isinstance(cells, RowFault)
                yield Row(ordinal, number, dict(zip(columns, cells, strict=True)), raw)
            else:
                yield Row(ordinal, number, None, raw[: self._limits.max_line_bytes], fault)
            ordinal += 1

    def _next(self) -> bytes | None:
        return self._again.popleft() if self._again else next(self._physical, None)

    def _record(self, first: bytes) -> tuple[list[bytes], list[str] | RowFault]:
        """Return the lines of the record that begins with `first`, and its cells or its fault."""
        if len(first) > self._limits.max_line_bytes:
            return [first], RowFault(
                "line_too_large", f"the line is longer than {self._limits.max_line_bytes} bytes"
            )
        if b'"' not in first:
            most = self._limits.max_columns
            if (number := first.count(self._comma) + 1) > most:
                return [first], RowFault("ragged", f"{number:,} cells; a file may have {most:,} columns")
            text = utf8(content(first))
            return [first], text if isinstance(text, RowFault) else text.split(self._delimiter)
        lines: list[bytes] = []
        try:
            cells = next(csv.reader(self._feed(first, lines), delimiter=self._delimiter, strict=True))
        except (_Unclosed, csv.Error) as error:
            self._again.extendleft(reversed(lines[1:]))
            if isinstance(error, _Unclosed):
                return lines[:1], _unclosed(str(error))
            # The csv module reports two errors: text after a closing quote, or end of file.
            if "unexpected end" in str(error):
                return lines[:1], RowFault("unclosed_quote", _NEVER_CLOSED)
            if len(lines) > 1:
                return lines[:1], _unclosed("the next quote in the file does not end a cell")
            return lines, RowFault(
                "bad_quotes", "text follows a closing quote; double each quote inside a quoted cell"
            )
        whole = utf8(content(b"".join(lines)))
        return lines, whole if isinstance(whole, RowFault) else cells

    def _feed(self, line: bytes | None, lines: list[bytes]) -> Iterator[str]:
        """Yield lines to the csv module and record them in `lines`."""
        limits = self._limits
        size = 0
        while line is not None:
            lines.append(line)
            size += len(line)
            if len(lines) > limits.max_quoted_lines:
                raise _Unclosed(f"no closing quote within {limits.max_quoted_lines} lines")
            if len(lines) > 1 and size > limits.max_quoted_bytes:
                raise _Unclosed(f"no closing quote within {limits.max_quoted_bytes} bytes")
            yield line.decode(errors="surrogateescape")
            line = self._next()

    def _fault(self, raw: bytes, cells: list[str]) -> RowFault | None:
        """Return the fault of a record that was split into cells; None if it is valid."""
        columns = self.columns
        assert columns is not None
        if len(cells) != len(columns):
            cell = "cell" if len(cells) == 1 else "cells"
            message = f"{len(cells)} {cell} where the header has {len(columns)} columns"
            if len(cells) > len(columns):
                what = "comma" if self._delimiter == "," else "tab"
                message += f". Put a text that contains a {what} in quotes"
            return RowFault("ragged", message)
        if b"\0" in raw:
            return RowFault("nul_byte", f"byte {raw.index(0)} of the record is NUL")
        limit = self._limits.max_cell_bytes
        if len(raw) > limit:
            for name, cell in zip(columns, cells, strict=True):
                if (size := len(cell.encode())) > limit:
                    return RowFault(
                        "cell_too_large", f"the cell in column {name} has {size} bytes; the limit is {limit}"
                    )
        return None

    def _is_record(self, line: bytes) -> bool:
        """Whether this line by itself is a valid record of several cells."""
        columns = self.columns
        assert columns is not None
        if len(columns) < 2:
            return False
        if b'"' not in line:
            return line.count(self._comma) == len(columns) - 1
        try:
            text = line.decode(errors="surrogateescape")
            return len(next(csv.reader([text], delimiter=self._delimiter, strict=True))) == len(columns)
        except csv.Error:
            return False

    def _header(self) -> list[str]:
        while (line := self._next()) is not None and not content(line):
            self._line += 1
        if line is None:
            raise InputError(
                f"{self.name} is empty: it has no header line.", fix=_NAME_COLUMNS, code="empty_file"
            )
        lines, cells = self._record(line)
        if isinstance(cells, RowFault):
            what = f"the header cannot be read: {cells.message}"
            raise self._bad_header(what, "Correct the first line; the file must be UTF-8.")
        if len(cells) > self._limits.max_columns:
            what = f"the header has {len(cells):,} columns; the limit is {self._limits.max_columns:,}"
            raise self._bad_header(what, "Remove columns that the prompt does not use.")
        names = [cell.strip() for cell in cells]
        if not any(names) or "\0" in "".join(names):
            raise self._bad_header("the header names no column", _NAME_COLUMNS)
        if len(names) == 1 and self._delimiter == "," and any(sep in names[0] for sep in ";\t|"):
            raise self._bad_header(
                "the header has no comma; its columns seem to be separated by something else",
                "Separate columns by commas, or by tabs in a file that ends in .tsv.",
            )
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names, start=1):
            if len(name) > _MOST_OF_NAME:
                raise self._bad_header(
                    f"the name of column {place} has {len(name):,} characters; "
                    f"the limit is {_MOST_OF_NAME:,}",
                    "Use a shorter name: each row is stored with its column names.",
                )
            names[place - 1] = name or f"column_{place}"
            places.setdefault(names[place - 1], []).append(place)
        if twice := {name: at for name, at in places.items() if len(at) > 1}:
            what = "; ".join(_places(name, at) for name, at in islice(twice.items(), _MOST_NAMED))
            if len(twice) > _MOST_NAMED:
                what += f"; and {len(twice) - _MOST_NAMED:,} more names"
            raise self._bad_header(
                f"several columns have the same name: {what}", "Give each column a unique name."
            )
        self._line += len(lines)
        return names

    def _bad_header(self, what: str, fix: str) -> InputError:
        return InputError(f"{self.name}, line {self._line}: {what}.", fix=fix, code="bad_header")


def _places(name: str, columns: list[int]) -> str:
    shown = ", ".join(map(str, columns[:_MOST_NAMED])) + (", …" if len(columns) > _MOST_NAMED else "")
    return f"{shortened(name, 100)!r} in columns {shown}"


_NEVER_CLOSED = "a quote is opened and never closed. Close or remove it. Reading continues at the next line"


def _unclosed(why: str) -> RowFault:
    return RowFault(
        "unclosed_quote",
        f"a quote is opened and not closed: {why}. Close or remove it. Reading continues at the next line",
    )
