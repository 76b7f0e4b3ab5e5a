"""Rows of a data file: which kind it is, and its records one after another."""

from __future__ import annotations

from pathlib import Path

from spoolama.job.rows.csv_rows import CsvReader
from spoolama.job.rows.json_rows import JsonReader
from spoolama.job.rows.kind import InputKind, detect
from spoolama.job.rows.limits import MAX_CELL_BYTES, Limits
from spoolama.job.rows.reader import RowReader

__all__ = ["MAX_CELL_BYTES", "InputKind", "Limits", "RowReader", "detect", "read_rows"]


def read_rows(path: Path, kind: InputKind, *, limits: Limits | None = None) -> RowReader:
    """The rows of a data file; a broken record is a row with its fault, and reading goes on.

    Args:
        path: Where the file is.
        kind: What `detect` said.
        limits: Bounds on records; None: the defaults.

    Raises:
        InputError: there is no usable header; while iterating: the compressed stream is damaged.
    """
    limits = limits or Limits()
    if kind.format in ("csv", "tsv"):
        return CsvReader(path, kind.compression, limits, delimiter="," if kind.format == "csv" else "\t")
    return JsonReader(path, kind.compression, limits, openai=kind.format == "openai")
