"""Writes the files of a published job that have a line for each row, in input order.

A line of errors.jsonl, skipped.jsonl or retry.jsonl can be uploaded again. It has the original fields of the
row at its top level, so that the template of the sidecar renders it as before, and the key `_spoolama`: job,
directory, number and error of the row, and the refused answer. `spoolama merge` needs this key. A row that
could not be read has no other key; `raw` is its text, for a person to correct.
"""

from __future__ import annotations

import base64
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import yaml

from spoolama.job.row import NOTE_KEY
from spoolama.job.sidecar import Sidecar
from spoolama.publish.columns import Columns
from spoolama.publish.encoding import csv_line, json_line
from spoolama.publish.openai_batch import batch_line
from spoolama.publish.result_row import NEVER_ASKED, ResultRow

OPENAI_COLUMNS = ("custom_id",)
"""The columns of an OpenAI request in results.csv; everything else in it is nested."""

_IN_MEMORY = 1024 * 1024


def rows_name(*, openai: bool) -> str:
    """The file with a `ResultRow` for each row: results.jsonl, or rows.jsonl for OpenAI requests."""
    return "rows.jsonl" if openai else "results.jsonl"


class Outputs:
    """Writes the files; use it as a context manager.

    A job with a sidecar gets results.jsonl and results.csv (as `output` says), errors.jsonl with the failed
    rows and skipped.jsonl with the rows that were never asked, each with a sidecar to upload it again.
    OpenAI batch requests get results.jsonl and errors.jsonl in OpenAI's form, rows.jsonl in ours,
    results.csv, and retry.jsonl with every request without an answer.

    Args:
        out: An existing directory.
        job: The name of the job.
        sidecar: Its sidecar.
        columns: The columns of results.csv.
        openai: Whether the input is OpenAI batch requests.
        model: The model of the job, for OpenAI lines that name none.
        with_sidecar: OpenAI: whether the job has a sidecar, so that a retry needs one too.
        directory: The job's directory, for commands.
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
        directory: str,
    ) -> None:
        self._out = out
        self._job = job
        self._sidecar = sidecar
        self._columns = columns
        self._openai = openai
        self._model = model
        self._with_sidecar = with_sidecar
        self._directory = directory
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
        result: ResultRow,
        fields: Mapping[str, Any] | None,
        raw: bytes | None,
        details: Mapping[str, Any],
    ) -> None:
        """Write the next row.

        Args:
            result: Its result.
            fields: Its fields, if it could be read.
            raw: Its bytes, if it could not be read.
            details: Of a failed row: sizes, and as `answer` the raw answer.
        """
        if (table := self._files.get("results.csv")) is not None:
            shown = {"custom_id": result.id} if self._openai else fields
            table.write(self._columns.line(shown, result))
        if (rows := self._files.get(rows_name(openai=self._openai))) is not None:
            rows.write(json_line(result.to_json()))
        if self._openai:
            name = "results.jsonl" if result.status == "ok" else "errors.jsonl"
            self._files[name].write(json_line(batch_line(self._job, result, model=self._model)))
        if result.status != "ok":
            line = json_line(_retry_line(self._job, self._directory, result, fields, raw, details))
            self._retry_file(result.status, unreadable=fields is None).write(line)

    def _retry_file(self, status: str, *, unreadable: bool) -> IO[bytes]:
        if not self._openai:
            return self._open("errors.jsonl" if status == "failed" else "skipped.jsonl")
        retry = self._open("retry.jsonl")
        if not unreadable:
            return retry
        if self._unreadable is None:
            # After the others: the first readable line identifies a file of OpenAI requests.
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
        """Write the sidecar of a retry: that of the job, without `expect`."""
        values = self._sidecar.model_dump(mode="json", exclude_unset=True, exclude={"expect"})
        body = yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100)
        text = (
            f"# To ask these rows again: correct them where needed, and upload {stem}.jsonl with this file.\n"
            f"# Then merge the answers: spoolama merge {shlex.quote(self._directory)} done/RETRY -o OUT\n"
            f"{body}"
        )
        (self._out / f"{stem}.yaml").write_text(text, encoding="utf-8")

    def _open(self, name: str) -> IO[bytes]:
        if name not in self._files:
            self._files[name] = self._stack.enter_context((self._out / name).open("wb"))
        return self._files[name]


def _retry_line(
    job: str,
    directory: str,
    result: ResultRow,
    fields: Mapping[str, Any] | None,
    raw: bytes | None,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    error = result.error or {"code": "skipped", "message": NEVER_ASKED}
    note: dict[str, Any] = {
        "job": job,
        "directory": directory,
        "row": result.row,
        "line": result.line,
        "id": result.id,
        "code": error["code"],
        "message": error["message"],
        "attempts": result.attempts,
    }
    rest = dict(details)
    answer = rest.pop("answer", None)
    if answer is not None:
        note["answer"] = answer
    if rest:
        note["details"] = rest
    if result.origin:
        note["origin"] = result.origin
    if fields is None:
        try:
            note |= {"raw": (raw or b"").decode(), "raw_encoding": "utf-8"}
        except UnicodeDecodeError:
            note |= {"raw": base64.b64encode(raw or b"").decode(), "raw_encoding": "base64"}
    own = {key: value for key, value in (fields or {}).items() if key != NOTE_KEY}
    return {**own, NOTE_KEY: note}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines in block form."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
