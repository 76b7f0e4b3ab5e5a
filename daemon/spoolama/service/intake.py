"""Reads a job's data file into its ledger as a stream, and checks and names each row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from spoolama.errors import InputError, RowError
from spoolama.evaluation.evaluator import Evaluator, JobEvaluator
from spoolama.job.row import Row, RowFault, memory_of
from spoolama.job.rows.data_file import InputKind, read_rows
from spoolama.job.rows.reader import RowLimits, RowReader
from spoolama.job.sidecar import Sidecar
from spoolama.progress import Progress
from spoolama.spool.claim import JobDir
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_rows import NewRow
from spoolama.stopping import Stop

_BATCH_ROWS = 1000
_BATCH_BYTES = 1024 * 1024
"""A batch ends with the row that exceeds this, so that not too many long rows are in memory at once."""


async def take_in(
    job: JobDir,
    kind: InputKind,
    sidecar: Sidecar,
    ledger: JobLedger,
    evaluator: Evaluator,
    progress: Progress,
    *,
    limits: RowLimits,
    newline_required: bool,
    stop: Stop | None = None,
) -> bool:
    """Read every row into the ledger, and record which rows cannot be sent to the model.

    Returns:
        Whether all rows are in the ledger; False after `stop`: the next call starts from the beginning.

    Raises:
        InputError: the file as a whole cannot be used: no rows, truncated, missing column, not as expected.
    """
    await ledger.begin_intake()
    reader = read_rows(job.data, kind, limits=limits)
    await _check_columns(job, sidecar, reader.columns, evaluator)
    namer = _Namer(sidecar, kind)
    lines = _lines(job, kind, evaluator, progress)
    count = 0
    async for batch in _batches(reader, lines):
        await ledger.take_in([namer.name(row) for row in batch])
        count += len(batch)
        progress.total = count
        progress.phase = f"reading rows: {count:,}"
        progress.pulse.beat()
        if stop is not None and stop.is_set():
            return False
    _check_whole(job, sidecar, reader, count, newline_required=newline_required)
    if lines is not None:
        await ledger.isolate_other_shapes()
    await ledger.note(
        intake_done=True,
        own_requests=lines is not None,
        input_format=kind.format,
        columns=reader.columns,
        max_cell_bytes=limits.max_cell_bytes,
        id_column="custom_id" if kind.format == "openai" else sidecar.id,
    )
    return True


async def add_requests(
    job: JobDir,
    kind: InputKind,
    ledger: JobLedger,
    evaluator: Evaluator,
    progress: Progress,
    *,
    limits: RowLimits,
) -> None:
    """Store the requests of OpenAI lines in a ledger of format 3 or older, which has only the lines."""
    reader = read_rows(job.data, kind, limits=limits)
    async for batch in _batches(reader, _lines(job, kind, evaluator, progress)):
        await ledger.add_requests({row.ordinal: row.request for row in batch if row.request is not None})
        progress.pulse.beat()
    await ledger.note(own_requests=True)


def _lines(job: JobDir, kind: InputKind, evaluator: Evaluator, progress: Progress) -> JobEvaluator | None:
    """What reads the requests of OpenAI lines; None for other rows."""
    return evaluator.of_job(job.dropped_as, beat=progress.pulse.beat) if kind.format == "openai" else None


async def _batches(reader: RowReader, lines: JobEvaluator | None) -> AsyncIterator[list[Row]]:
    """The rows in batches; OpenAI lines with their requests."""
    rows = iter(reader)
    while batch := await asyncio.to_thread(_batch, rows):
        yield batch if lines is None else await asyncio.gather(*(_read_line(row, lines) for row in batch))


async def _read_line(row: Row, lines: JobEvaluator) -> Row:
    """The row with its request, model and shape, or with its error."""
    if row.fields is None or row.fault is not None:
        return row
    try:
        found = await lines.read_line(row.fields, row.line)
    except RowError as error:
        return replace(row, fault=RowFault(error.code, error.message))
    return replace(row, request=found.request, model=found.model, shape=found.shape)


def _batch(rows: Iterator[Row]) -> list[Row]:
    batch: list[Row] = []
    size = 0
    for row in islice(rows, _BATCH_ROWS):
        batch.append(row)
        size += memory_of(row.raw)
        if size > _BATCH_BYTES:
            break
    return batch


_NO_MODEL = RowFault("unsupported_request", "model: neither the line nor a sidecar names a model")


class _Namer:
    """Sets the id of each row: from the id column, from the OpenAI request, or the row number."""

    def __init__(self, sidecar: Sidecar, kind: InputKind) -> None:
        self._openai = kind.format == "openai"
        self._model = sidecar.model
        self._models = sidecar.models
        self._column = None if self._openai else sidecar.id

    def name(self, row: Row) -> NewRow:
        if self._openai:
            model = self._models.get(row.model, row.model) if row.model is not None else None
            if model is None and not self._model and row.fault is None:
                row = replace(row, fault=_NO_MODEL)
            return NewRow(replace(row, model=model), row.id, unique=row.id is not None)
        if self._column is None or row.fields is None:
            return NewRow(row, str(row.ordinal + 1) if self._column is None else None, unique=False)
        value = row.fields.get(self._column)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            what = (
                "is missing"
                if value is None or value == ""
                else f"is {type(value).__name__}, not text or number"
            )
            fault = RowFault("missing_id", f"the id {self._column!r} {what}")
            return NewRow(replace(row, fault=row.fault or fault), None, unique=False)
        return NewRow(row, str(value), unique=True)


async def _check_columns(
    job: JobDir, sidecar: Sidecar, columns: Sequence[str] | None, evaluator: Evaluator
) -> None:
    """Check that the header has every column that the sidecar names."""
    if columns is None or job.sidecar is None or {sidecar.id, sidecar.gold} <= {None, *columns}:
        return
    problems = await evaluator.column_problems(job.sidecar, columns, job.data.name)
    raise InputError(
        "\n".join(str(problem) for problem in problems),
        fix=f"Fix the sidecar, or the header of {job.data.name}, and upload both files again.",
        code="no_such_column",
    )


def _check_whole(
    job: JobDir, sidecar: Sidecar, reader: RowReader, count: int, *, newline_required: bool
) -> None:
    expected = sidecar.expect.rows if sidecar.expect else None
    if expected is not None and expected != count:
        raise InputError(
            f"{job.data.name} has {count:,} rows, but the sidecar expects {expected:,}",
            fix="If the upload was incomplete, upload the file again. Otherwise correct expect.rows.",
            code="not_as_expected",
        )
    if count == 0:
        raise InputError(
            f"{job.data.name} has no rows", fix="If the upload was incomplete, upload the file again."
        )
    known = sidecar.expect is not None and (expected is not None or sidecar.expect.sha256 is not None)
    if newline_required and not reader.ended_with_newline and not known:
        raise InputError(
            f"{job.data.name} does not end with a newline, so it may be truncated (after row {count:,})",
            fix="Upload the file again, or end its last line with a newline, or add "
            "expect: {rows: …} to the sidecar.",
            code="perhaps_truncated",
        )
