"""Converts data files to OpenAI batch requests, batch outputs to CSV, and published jobs to batch outputs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from spoolama.errors import InputError, RowError
from spoolama.evaluation.asking import MessageBuilder, RowMessages
from spoolama.evaluation.evaluator import JobEvaluator
from spoolama.job.row import Row
from spoolama.job.rows.data_file import detect, read_rows
from spoolama.job.sidecar import Sidecar
from spoolama.job.strict_json import BadJson, parse_json
from spoolama.jobtools.published import Published, json_lines
from spoolama.publish.columns import Columns, KeyUnion, answer_keys
from spoolama.publish.encoding import csv_line, json_line
from spoolama.publish.openai_batch import batch_line, is_batch_output
from spoolama.publish.result_row import ResultRow

_SHOWN = 20
"""Problems that are reported one by one."""
_AT_ONCE = 64
"""Rows that are rendered in parallel."""
OPENAI_SAMPLING = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
"""Sampling options that a chat completion request has under the same name."""


@dataclass
class Converted:
    """The result of a conversion."""

    written: int = 0
    left_out: int = 0
    """Rows that could not be converted."""
    problems: list[str] = field(default_factory=list)
    """The first of these problems, and options that were lost."""

    def leave_out(self, problem: str) -> None:
        """Count a row that could not be converted."""
        self.left_out += 1
        if self.left_out <= _SHOWN:
            self.problems.append(problem)


async def requests_of(data: Path, sidecar: Sidecar, target: Path, evaluator: JobEvaluator) -> Converted:
    """Write an OpenAI batch request for each row that can be asked.

    Its `custom_id` is the id of the row if the sidecar has an id column, otherwise `row-1`, `row-2`, ...

    Args:
        data: CSV, TSV or JSONL.
        sidecar: The sidecar of the data.
        target: The JSONL file to write.
        evaluator: Renders the template.
    """
    kind = detect(data, data.name)
    if kind.format == "openai":
        raise InputError(f"{data.name} already consists of OpenAI batch requests.", code="nothing_to_convert")
    asker = MessageBuilder(sidecar, evaluator)
    converted = Converted()
    with closing(_Ids()) as ids, read_rows(data, kind) as rows, target.open("wb") as file:
        while batch := list(islice(rows, _AT_ONCE)):
            asks = await asyncio.gather(*(_asked(row, asker) for row in batch))
            for row, ask in zip(batch, asks, strict=True):
                where = f"row {row.ordinal + 1} (line {row.line})"
                name = _custom_id(row, sidecar.id)
                if isinstance(ask, str):
                    converted.leave_out(f"{where}: {ask}")
                elif not ids.add(name, b""):
                    converted.leave_out(f"{where}: the id {name!r} is used twice")
                else:
                    file.write(json_line(_request(name, sidecar.model, ask)))
                    converted.written += 1
    options = sidecar.options.model_dump(exclude_unset=True)
    lost = [key for key in options if key not in (*OPENAI_SAMPLING, "num_ctx", "num_predict")]
    if lost:
        converted.problems.append(f"OpenAI requests have no {', '.join(lost)}: left out of every request")
    return converted


async def _asked(row: Row, asker: MessageBuilder) -> RowMessages | str:
    """The prompt of a row, or why it has none."""
    if row.fields is None or row.fault is not None:
        return row.fault.message if row.fault else "unreadable"
    try:
        return await asker.ask(row.fields, row.line, row.request)
    except RowError as error:
        return error.message


def _custom_id(row: Row, id_column: str | None) -> str:
    value = (row.fields or {}).get(id_column) if id_column is not None else None
    return f"row-{row.ordinal + 1}" if value in (None, "") else str(value)


def _request(name: str, model: str, ask: RowMessages) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [message.wire() for message in (*ask.prefix, *ask.own)],
        "max_completion_tokens": ask.num_predict,
    }
    body |= {key: ask.sampling[key] for key in OPENAI_SAMPLING if key in ask.sampling}
    if isinstance(ask.format, Mapping):
        schema = {"name": "answer", "schema": dict(ask.format)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif ask.format == "json":
        body["response_format"] = {"type": "json_object"}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def answers_to_csv(
    answers: list[Path],
    target: Path,
    *,
    data: Path | None = None,
    sidecar: Sidecar | None = None,
) -> Converted:
    """Write the answers of batch output files as CSV.

    Args:
        answers: OpenAI batch output and error files, in any order.
        target: The CSV file to write.
        data: The data file of the requests: its columns and its order are kept.
        sidecar: Its sidecar, which has the id column and the keys of the answer.

    Raises:
        InputError: a file is not a batch output, or a request has two answers.
    """
    keys = answer_keys(sidecar.format) if sidecar is not None else []
    parsed = sidecar is not None and sidecar.format is not None
    converted = Converted()
    with closing(_Ids()) as found, target.open("wb") as file:
        for path in answers:
            for line in json_lines(path):
                _take(found, path, line)
        if data is None:
            columns = Columns(["custom_id"], keys)
            file.write(csv_line(columns.header))
            for number, (name, value) in enumerate(found.left(), start=1):
                result = _result(json.loads(value), number, number, name, parsed=parsed)
                file.write(columns.line({"custom_id": name}, result))
                converted.written += 1
            return converted
        columns = _columns(data, keys)
        file.write(csv_line(columns.header))
        with read_rows(data, detect(data, data.name)) as rows:
            for row in rows:
                name = _custom_id(row, sidecar.id if sidecar else None)
                answer = found.pop(name)
                number = row.ordinal + 1
                if answer is None:
                    missing = {"code": "no_answer", "message": "the batch has no answer for it"}
                    result = ResultRow(number, row.line, name, "failed", error=missing)
                    converted.leave_out(f"row {number} (line {row.line}): no answer for {name!r}")
                else:
                    result = _result(json.loads(answer), number, row.line, name, parsed=parsed)
                    converted.written += 1
                file.write(columns.line(row.fields, result))
        for name, _ in found.left():
            converted.leave_out(f"the answer to {name!r} belongs to no row of {data.name}")
    return converted


def _take(found: _Ids, path: Path, line: dict[str, Any]) -> None:
    if not is_batch_output(line):
        raise InputError(
            f"{path} is not the output of a batch: a line has no `custom_id` or no `response`.",
            fix="Use the output file of the batch service.",
            code="not_batch_output",
        )
    if not found.add(str(line["custom_id"]), json_line(line)):
        raise InputError(
            f"{path}: the request {line['custom_id']!r} has two answers.",
            fix="Remove one of the two lines.",
            code="answered_twice",
        )


def _columns(data: Path, keys: list[str]) -> Columns:
    with read_rows(data, detect(data, data.name)) as rows:
        if rows.columns is not None:
            return Columns(rows.columns, keys)
        union = KeyUnion()
        for row in rows:
            union.add(row.fields or {})
        return Columns(union.keys, keys, more=union.more)


def _result(line: Mapping[str, Any], number: int, at: int, name: str, *, parsed: bool) -> ResultRow:
    """The result in a line of batch output, whatever form a service gave it."""
    response, error = line.get("response"), line.get("error")
    body = response.get("body") if isinstance(response, Mapping) else None
    if not error and isinstance(body, Mapping):
        error = body.get("error")
    try:
        choice = body["choices"][0]  # type: ignore[index]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        text, finish = None, None
    if error or not isinstance(text, str):
        given = error if isinstance(error, Mapping) else {}
        code = given.get("code") or given.get("type") or "no_answer"
        shown = {"code": str(code), "message": str(given.get("message") or "the line has no answer")}
        return ResultRow(number, at, name, "failed", error=shown)
    if finish == "length":
        cut = {"code": "answer_cut", "message": "the answer was cut at max_completion_tokens"}
        return ResultRow(number, at, name, "failed", error=cut)
    answer: Any = text
    if parsed:
        try:
            answer = parse_json(text)
        except BadJson as bad:
            wrong = {"code": "answer_invalid", "message": f"not JSON: {bad.message}"}
            return ResultRow(number, at, name, "failed", error=wrong)
    return ResultRow(number, at, name, "ok", answer=answer)


def job_to_batch(job: Published, target: Path) -> Converted:
    """Write every row of a published job as a line of OpenAI batch output, in input order."""
    converted = Converted()
    with target.open("wb") as file:
        for result in job.results():
            answer = result.answer
            if result.status == "ok" and not isinstance(answer, str):
                answer = json_line(answer).decode().rstrip("\n")
            name = result.id if result.id is not None else f"row-{result.row}"
            line = batch_line(job.job, replace(result, id=name, answer=answer), model=job.sidecar.model)
            file.write(json_line(line))
            converted.written += 1
    return converted


class _Ids:
    """Stores values under unique names on disk."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE ids (name TEXT UNIQUE, value BLOB)")
        self._db.execute("BEGIN")

    def add(self, name: str, value: bytes) -> bool:
        """Add a value; returns whether the name is new."""
        return self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (name, value)).rowcount == 1

    def pop(self, name: str) -> bytes | None:
        """Remove and return the value of a name."""
        row = self._db.execute("SELECT value FROM ids WHERE name=?", (name,)).fetchone()
        self._db.execute("DELETE FROM ids WHERE name=?", (name,))
        return None if row is None else row[0]

    def left(self) -> Iterator[tuple[str, bytes]]:
        """The remaining names and values, in the order they were added."""
        yield from self._db.execute("SELECT name, value FROM ids ORDER BY rowid")

    def close(self) -> None:
        """Remove the file."""
        self._db.close()
