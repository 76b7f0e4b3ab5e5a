"""The files of a published job that have a line for each row, written in one go in input order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from spoolama.job.sidecar import Sidecar
from spoolama.publish.columns import Columns
from spoolama.publish.openai_batch import batch_line
from spoolama.publish.record import Record
from spoolama.publish.retry_files import again_line, sidecar_yaml
from spoolama.publish.text import csv_line, json_line

__all__ = ["OPENAI_COLUMNS", "Outputs", "rows_name"]

OPENAI_COLUMNS = ("custom_id",)
"""What results.csv has of an OpenAI request; all else in it is nested."""

_IN_MEMORY = 1024 * 1024


def rows_name(*, openai: bool) -> str:
    """The file with a `Record` for each row: results.jsonl, or rows.jsonl where that name is OpenAI's."""
    return "rows.jsonl" if openai else "results.jsonl"


class Outputs:
    """Writes the files. Use it as a context manager: leaving it ends the files.

    A job with a sidecar gets results.jsonl and results.csv (as its `output` says), errors.jsonl with the
    failed rows and skipped.jsonl with those never tried, each with a sidecar to drop it again.
    OpenAI batch requests get results.jsonl and errors.jsonl in OpenAI's form, rows.jsonl in ours,
    results.csv, and retry.jsonl: every request without an answer, to drop again.

    Args:
        out: An existing directory.
        job: The job's name.
        sidecar: What was asked.
        columns: The columns of results.csv.
        openai: Whether the input is OpenAI batch requests.
        model: The job's model, for OpenAI lines that name none.
        with_sidecar: OpenAI: whether the job came with a sidecar, so that a retry needs one too.
    """

    def __init__(
        self,
        out: Path,
        *,
        job: str,
        sidecar: Sidecar,
        columns: Columns,
        openai: bool,
        model: str,
        with_sidecar: bool,
    ) -> None:
        self._out = out
        self._job = job
        self._sidecar = sidecar
        self._columns = columns
        self._openai = openai
        self._model = model
        self._with_sidecar = with_sidecar
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._unreadable: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._openai:
            self._open("results.jsonl")
            self._open("rows.jsonl")
        elif "jsonl" in self._sidecar.output:
            self._open("results.jsonl")
        if "csv" in self._sidecar.output:
            self._open("results.csv").write(csv_line(self._columns.header))
        self._open("errors.jsonl")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self._end()

    def add(
        self,
        record: Record,
        fields: Mapping[str, Any] | None,
        raw: bytes | None,
        details: Mapping[str, Any],
    ) -> None:
        """The next row.

        Args:
            record: How it ended.
            fields: Its fields, if it could be read.
            raw: Its bytes as they came, if not.
            details: Of a failed row: sizes and the like.
        """
        if (table := self._files.get("results.csv")) is not None:
            shown = {"custom_id": record.id} if self._openai else fields
            table.write(self._columns.line(shown, record))
        if (rows := self._files.get(rows_name(openai=self._openai))) is not None:
            rows.write(json_line(record.to_json()))
        if self._openai:
            name = "results.jsonl" if record.status == "ok" else "errors.jsonl"
            self._files[name].write(json_line(batch_line(self._job, record, model=self._model)))
        if record.status != "ok":
            again = json_line(again_line(self._job, record, fields, raw, details))
            self._again(record.status, unreadable=fields is None).write(again)

    def _again(self, status: str, *, unreadable: bool) -> IO[bytes]:
        if not self._openai:
            return self._open("errors.jsonl" if status == "failed" else "skipped.jsonl")
        retry = self._open("retry.jsonl")
        if not unreadable:
            return retry
        if self._unreadable is None:
            # Behind the others: by its first readable line a file is known as OpenAI requests.
            self._unreadable = self._stack.enter_context(
                tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the stack closes it
            )
        return self._unreadable

    def _end(self) -> None:
        if self._unreadable is not None:
            self._unreadable.seek(0)
            shutil.copyfileobj(self._unreadable, self._files["retry.jsonl"])
        if self._openai:
            if self._with_sidecar and "retry.jsonl" in self._files:
                self._write_sidecar("retry")
            return
        if self._files["errors.jsonl"].tell():
            self._write_sidecar("errors")
        if "skipped.jsonl" in self._files:
            self._write_sidecar("skipped")

    def _write_sidecar(self, stem: str) -> None:
        text = sidecar_yaml(self._sidecar, data_name=f"{stem}.jsonl")
        (self._out / f"{stem}.yaml").write_text(text, encoding="utf-8")

    def _open(self, name: str) -> IO[bytes]:
        if name not in self._files:
            self._files[name] = self._stack.enter_context((self._out / name).open("wb"))
        return self._files[name]
