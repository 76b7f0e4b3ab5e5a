"""Reads the rows of a data file in any supported format."""

from __future__ import annotations

from pathlib import Path

from spoolama.job.rows.csv_rows import CsvReader
from spoolama.job.rows.json_rows import JsonReader
from spoolama.job.rows.kind import InputKind, detect
from spoolama.job.rows.limits import MAX_CELL_BYTES, RowLimits
from spoolama.job.rows.reader import RowReader

__all__ = ["MAX_CELL_BYTES", "InputKind", "RowLimits", "RowReader", "detect", "read_rows"]


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
