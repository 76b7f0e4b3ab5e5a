"""Detects the format and compression of a data file, and opens the reader for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from spoolama.errors import InputError
from spoolama.job.row import RowFault
from spoolama.job.rows.csv_rows import CsvReader
from spoolama.job.rows.reader import JsonReader, RowLimits, RowReader, broken, parse_line
from spoolama.job.rows.stream import BrokenStream, Lines, chunks, content, refuse_foreign

_FORMATS: dict[str, Literal["csv", "tsv", "jsonl"]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

_OPENAI_KEYS = {"custom_id", "method", "url", "body"}

_LOOK_AT_LINES = 100
"""Number of lines that are searched for an OpenAI batch request."""


_LOOK_AT_BYTES = 64 * 1024 * 1024
"""Number of bytes that are searched for an OpenAI batch request."""


@dataclass(frozen=True, slots=True)
class InputKind:
    """The format and compression of a data file."""

    format: Literal["csv", "tsv", "jsonl", "openai"]
    """`openai`: JSONL whose lines are OpenAI batch requests."""
    compression: Literal["gz", "zst"] | None
    """From the last extension of the name."""


def detect(path: Path, name: str) -> InputKind:
    """Detect the kind of a data file from its name and, for JSONL, from its first readable line.

    Args:
        path: The file.
        name: Its name as the user knows it.

    Raises:
        InputError: the name has no known extension, the stream is damaged, or it is not UTF-8 text.
    """
    lower = name.lower()
    compression: Literal["gz", "zst"] | None = None
    if lower.endswith(".gz"):
        compression, lower = "gz", lower[:-3]
    elif lower.endswith(".zst"):
        compression, lower = "zst", lower[:-4]
    form = next((form for ending, form in _FORMATS.items() if lower.endswith(ending)), None)
    if form is None:
        raise InputError(
            f"{name} has an unsupported file extension.",
            fix="Use .csv, .tsv, .jsonl or .ndjson, optionally followed by .gz or .zst.",
            code="unknown_format",
        )
    stream = chunks(path, compression)
    with closing(stream):
        try:
            head = next(stream, b"")
            refuse_foreign(head, name)
            if form == "jsonl" and _is_openai(head, stream):
                return InputKind("openai", compression)
        except BrokenStream as error:
            raise broken(name, error, 0) from None
    return InputKind(form, compression)


def _is_openai(head: bytes, rest: Iterator[bytes]) -> bool:
    def again() -> Iterator[bytes]:
        yield head
        looked_at = 0
        for chunk in rest:
            yield chunk
            looked_at += len(chunk)
            if looked_at > _LOOK_AT_BYTES:
                return

    limit = RowLimits().max_line_bytes
    for line in islice(Lines(again(), limit), _LOOK_AT_LINES):
        if not content(line).strip() or len(line) > limit:
            continue
        fields = parse_line(content(line))
        if not isinstance(fields, RowFault):
            return fields.keys() >= _OPENAI_KEYS
    return False


def read_rows(path: Path, kind: InputKind, *, limits: RowLimits | None = None) -> RowReader:
    """Return a reader of the rows of a data file; an invalid record is a row with a fault.

    Args:
        path: The file.
        kind: The result of `detect`.
        limits: Limits for records; None: the defaults.

    Raises:
        InputError: the header is unusable; while iterating: the compressed stream is damaged.
    """
    limits = limits or RowLimits()
    if kind.format in ("csv", "tsv"):
        return CsvReader(path, kind.compression, limits, delimiter="," if kind.format == "csv" else "\t")
    return JsonReader(path, kind.compression, limits, openai=kind.format == "openai")
