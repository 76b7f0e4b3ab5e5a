"""A published job, read back from its directory: by the commands, long after its ledger is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spoolama.errors import InputError
from spoolama.job.row import Row
from spoolama.job.rows.data_file import detect, read_rows
from spoolama.job.rows.reader import MAX_CELL_BYTES, RowLimits, RowReader
from spoolama.job.sidecar import Sidecar, updated_sidecar
from spoolama.publish.outputs import rows_name
from spoolama.publish.record import Record
from spoolama.regular import open_regular
from spoolama.spool.layout import UPLOADED

__all__ = ["Published", "json_lines", "open_published", "pairs"]


@dataclass(frozen=True, slots=True)
class Published:
    """A directory of `done/` or `failed/`, or one that `merge` made."""

    path: Path
    metrics: Mapping[str, Any]
    """metrics.json."""
    sidecar: Sidecar
    """What was asked."""

    @property
    def job(self) -> str:
        """The job's name, whatever the directory is called now."""
        return str(self.metrics["job"])

    @property
    def openai(self) -> bool:
        """Whether the input was OpenAI batch requests."""
        return bool(self.metrics["input_format"] == "openai")

    @property
    def parsed(self) -> bool:
        """Whether answers are parsed JSON values."""
        return self.sidecar.format is not None and not self.openai

    def records(self) -> Iterator[Record]:
        """How each row ended, in input order.

        Raises:
            InputError: the file is not there or broken.
        """
        path = self.path / rows_name(openai=self.openai)
        if not path.exists():
            raise InputError(
                f"{self.path.name} has no {path.name}.",
                fix="It was asked for CSV only: write `output: [jsonl, csv]` in the sidecar next time.",
                code="no_results",
            )
        for number, line in enumerate(json_lines(path), start=1):
            record = Record.from_json(line)
            if record.row != number:
                raise InputError(
                    f"{path} line {number} is about row {record.row}.",
                    fix="Copy the file from done/ again; it must be as it was published.",
                    code="broken_results",
                )
            yield record

    def rows(self) -> RowReader:
        """The rows of the data file as they came; use it as a context manager."""
        name = str(self.metrics["data_name"])
        path = self.path / UPLOADED / name
        if not path.exists():
            raise InputError(
                f"{self.path.name} lacks {UPLOADED}/{name}, the data that the job was about.",
                fix=f"Put {name} back there.",
                code="no_data",
            )
        # By the bounds of the first reading: they decide what is one record and whether it is readable.
        limits = RowLimits.for_cells(self.metrics.get("max_cell_bytes") or MAX_CELL_BYTES)
        return read_rows(path, detect(path, name), limits=limits)


def pairs(job: Published) -> Iterator[tuple[Row, Record]]:
    """Each row of the data with how it ended.

    Raises:
        InputError: the data is not that of the results.
    """
    with job.rows() as rows:
        for row, record in zip_longest(rows, job.records()):
            if row is None or record is None or (row.line, row.ordinal + 1) != (record.line, record.row):
                raise InputError(
                    f"The data in {job.path.name}/{UPLOADED} is not what its results are about.",
                    fix="Copy the directory from done/ again; it must be as it was published.",
                    code="broken_results",
                )
            yield row, record


def open_published(path: Path) -> Published:
    """Open the directory of a published job.

    Raises:
        InputError: it is none.
    """
    try:
        with open_regular(path / "metrics.json") as file:
            metrics = json.load(file)
        # An earlier version may have published it.
        sidecar = Sidecar.model_validate_json(json.dumps(updated_sidecar(metrics["sidecar"])))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(
            f"{path} is not a published job: its metrics.json cannot be read ({type(error).__name__}).",
            fix="Name a directory of done/ or failed/ that has results.",
            code="not_published",
        ) from error
    return Published(path, metrics, sidecar)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; empty lines are passed over.

    Raises:
        InputError: a line is no JSON object.
    """
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number} is not JSON.", fix="Correct or remove it.") from error
            if not isinstance(value, dict):
                raise InputError(f"{path} line {number} is not a JSON object.", fix="Correct or remove it.")
            yield value
