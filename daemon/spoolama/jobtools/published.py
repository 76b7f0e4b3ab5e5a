"""Reads a published job from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from spoolama.publish.metrics import Metrics
from spoolama.publish.outputs import rows_name
from spoolama.publish.result_row import ResultRow
from spoolama.regular import open_regular
from spoolama.spool.layout import UPLOADED

_COPY_AGAIN = "Copy the directory from done/ again, without changes."


@dataclass(frozen=True, slots=True)
class Published:
    """A directory of `done/` or `failed/`, or one that `merge` created."""

    path: Path
    metrics: Metrics
    sidecar: Sidecar

    @property
    def job(self) -> str:
        """The name of the job; the directory may have another name now."""
        return self.metrics.job

    @property
    def parsed(self) -> bool:
        """Whether answers are parsed JSON values."""
        return self.sidecar.format is not None and not self.metrics.openai

    def results(self) -> Iterator[ResultRow]:
        """The result of each row, in input order.

        Raises:
            InputError: the file does not exist or is damaged.
        """
        path = self.path / rows_name(openai=self.metrics.openai)
        if not path.exists():
            raise InputError(
                f"{self.path.name} has no {path.name}.",
                fix="The sidecar asked for CSV only. Next time write `output: [jsonl, csv]`.",
                code="no_results",
            )
        for number, line in enumerate(json_lines(path), start=1):
            result = ResultRow.from_json(line)
            if result.row != number:
                raise InputError(
                    f"{path}, line {number}: the row is {result.row}, not {number}.",
                    fix=_COPY_AGAIN,
                    code="broken_results",
                )
            yield result

    def rows(self) -> RowReader:
        """The rows of the data file; use it as a context manager.

        Raises:
            InputError: the data file does not exist.
        """
        name = str(self.metrics.data_name)
        path = self.path / UPLOADED / name
        if not path.exists():
            raise InputError(
                f"{self.path.name} has no {UPLOADED}/{name}, the data of the job.",
                fix=f"Copy {name} back into {UPLOADED}/.",
                code="no_data",
            )
        # With the limits of the job: they decide which rows can be read.
        limits = RowLimits.for_cells(self.metrics.max_cell_bytes or MAX_CELL_BYTES)
        return read_rows(path, detect(path, name), limits=limits)


def pairs(job: Published) -> Iterator[tuple[Row, ResultRow]]:
    """Each row of the data with its result.

    Raises:
        InputError: the results are not those of the data.
    """
    with job.rows() as rows:
        for row, result in zip_longest(rows, job.results()):
            if row is None or result is None or (row.line, row.ordinal + 1) != (result.line, result.row):
                raise InputError(
                    f"The data in {job.path.name}/{UPLOADED} does not match the results.",
                    fix=_COPY_AGAIN,
                    code="broken_results",
                )
            yield row, result


def open_published(path: Path) -> Published:
    """Open the directory of a published job.

    Raises:
        InputError: it is not the directory of a published job.
    """
    try:
        with open_regular(path / "metrics.json") as file:
            content = json.load(file)
        # An earlier version may have published it.
        sidecar = Sidecar.model_validate_json(json.dumps(updated_sidecar(content["sidecar"])))
        metrics = Metrics.from_json(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(
            f"{path} is not a published job: its metrics.json cannot be read ({type(error).__name__}).",
            fix="Use a directory of done/ or failed/ that has results.",
            code="not_published",
        ) from error
    return Published(path, metrics, sidecar)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; empty lines are skipped.

    Raises:
        InputError: a line is not a JSON object.
    """
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {number} is not JSON.", fix="Correct or remove it."
                ) from error
            if not isinstance(value, dict):
                raise InputError(f"{path}, line {number} is not a JSON object.", fix="Correct or remove it.")
            yield value
