"""Sends sidecars, templates, schemas and scores to the evaluation process, with limits of CPU time."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from spoolama.errors import JobError, Problem, RowError, SidecarError
from spoolama.evaluation.protocol import Abandoned, LimitExceeded, TaskInterrupted, TaskRunner
from spoolama.job.answer import parse_answer
from spoolama.job.row import LineRequest, RowRequest
from spoolama.job.sidecar import Sidecar
from spoolama.job.yaml_tree import MAX_BYTES, too_large
from spoolama.regular import open_regular

EVALUATION_LIMIT = "evaluation_limit"
"""Error code of a row whose template, schema or score exceeded a limit."""

_ROW_CPU_S = 2.0
_FILE_CPU_S = 10.0
_MOST_LIMITS = 3
_STOP_S = 10.0
"""For this many seconds after a request to stop, received answers are still checked. 256 checks of 2 s each
would delay the next job by minutes."""
_KEYS = {"render": "`prompt`", "line": "the requests", "check": "`format`", "score": "`trim.score`"}
"""What to simplify if tasks of a kind exceed a limit."""


class Evaluator:
    """Evaluates sidecars, and creates a `JobEvaluator` for the rows of a job.

    Args:
        runner: Runs the tasks.
    """

    def __init__(self, runner: TaskRunner) -> None:
        self._runner = runner

    async def load_sidecar(
        self, path: Path, *, openai: bool = False, cpu_s: float = _FILE_CPU_S, begun: bool = False
    ) -> Sidecar:
        """Read and check a sidecar; every problem names the file.

        Args:
            path: The file.
            openai: Whether it belongs to OpenAI batch lines, which need neither model nor prompt.
            cpu_s: CPU time limit in seconds.
            begun: Whether its job has begun. Then keys of earlier versions are accepted.

        Raises:
            SidecarError: with every problem.
            OSError: the file cannot be read.
        """
        text = await asyncio.to_thread(_text_of, path)
        return await self.parse_sidecar(text, path.name, openai=openai, cpu_s=cpu_s, begun=begun)

    async def parse_sidecar(
        self,
        text: bytes,
        name: str,
        *,
        openai: bool = False,
        cpu_s: float = _FILE_CPU_S,
        begun: bool = False,
    ) -> Sidecar:
        """Check the text of a sidecar with this file name; otherwise like `load_sidecar`."""
        arguments = [text.decode("latin-1"), name, openai, begun]
        return Sidecar.model_validate_json(await self._file("sidecar", arguments, name, cpu_s))

    async def column_problems(self, path: Path, columns: Sequence[str], data: str) -> list[Problem]:
        """Return a problem for each column that a sidecar names and the header lacks.

        Args:
            path: The sidecar; it may have other problems.
            columns: The header.
            data: The data file's name as the user knows it.

        Raises:
            SidecarError: it cannot be read.
            OSError: the file cannot be read.
        """
        text = await asyncio.to_thread(_text_of, path)
        arguments = [text.decode("latin-1"), path.name, list(columns), data]
        return [
            Problem(**problem) for problem in await self._file("columns", arguments, path.name, _FILE_CPU_S)
        ]

    def of_job(
        self,
        data: str = "",
        limits_met: int = 0,
        beat: Callable[[], None] | None = None,
        stops: Callable[[], bool] | None = None,
    ) -> JobEvaluator:
        """Create the evaluator of one job; the arguments are those of `JobEvaluator`."""
        return JobEvaluator(self._runner, data, limits_met, beat, stops)

    async def aclose(self) -> None:
        """Release all resources."""
        await self._runner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _file(self, kind: str, arguments: list[Any], name: str, cpu_s: float) -> Any:
        try:
            return _value(await self._runner.run(kind, "", arguments, cpu_s))
        except LimitExceeded as limit:
            message = f"reading this file {limit}"
        except TaskInterrupted as lost:
            message = f"this file was not read: the evaluation process ended {lost}"
        except _Defect as defect:
            message = f"reading this file failed because of a defect in spoolama: {defect}"
        raise SidecarError([Problem(name, None, None, "", message)])


class JobEvaluator:
    """Evaluates the rows of one job; ends the job when three rows have exceeded a limit.

    Args:
        runner: Runs the tasks.
        data: Name of the data file, for messages.
        limits_met: Number of rows that exceeded a limit in earlier runs of the job.
        beat: Called after each task, because a row may take seconds and the watchdog expects signs of life.
        stops: Returns whether the job shall stop. Then no further row is rendered, and after 10 s no further
            answer is checked.
    """

    def __init__(
        self,
        runner: TaskRunner,
        data: str = "",
        limits_met: int = 0,
        beat: Callable[[], None] | None = None,
        stops: Callable[[], bool] | None = None,
    ) -> None:
        self._runner = runner
        self._data = data
        self._before = limits_met
        self._beat = beat
        self._stops = stops
        self._stop_seen: float | None = None
        self._met: dict[tuple[str, int], str] = {}
        self._schema: tuple[object, str] = (None, "")

    async def render(self, template: str, fields: Mapping[str, Any], line: int) -> str:
        """Render the prompt of a row.

        Args:
            template: The sidecar's `prompt`.
            fields: The row's fields.
            line: The row's line in its file, for messages.

        Raises:
            RowError: `template_undefined`, `template_error`, `empty_prompt`, `evaluation_limit`.
            JobError: too many rows exceeded a limit.
            Abandoned: the job stops, and the task had not started.
        """
        prompt = await self._row("render", template, [fields], "the template", line)
        return str(prompt)

    async def read_line(self, fields: Mapping[str, Any], line: int) -> LineRequest:
        """Convert an OpenAI batch line to what it requests.

        Raises:
            RowError: `unsupported_request` with the parameter's name, `empty_prompt`, `evaluation_limit`.
            JobError: too many rows exceeded a limit.
        """
        request, model, shape = await self._row("line", "", [fields], "reading the request", line)
        return LineRequest(RowRequest.from_json(request), model, shape)

    async def check(
        self, format: Mapping[str, Any] | Literal["json"] | None, answer: str, line: int
    ) -> object | None:
        """Validate an answer; returns its value if JSON was requested, None for free text.

        Args:
            format: A valid JSON Schema, "json" for any JSON, or None for free text.
            answer: The text of the answer.
            line: The row's line in its file, for messages.

        Raises:
            RowError: `answer_empty`, `answer_invalid` with location and reason, `evaluation_limit`.
            JobError: too many rows exceeded a limit.
            Abandoned: the job has been stopping for 10 s, and the task had not started.
        """
        value = parse_answer(answer, json=format is not None)
        if isinstance(format, Mapping):
            what = "checking the answer against format"
            try:
                await self._row("check", self._text(format), [answer], what, line)
            except RowError as error:
                error.answer = answer
                raise
        return value

    async def score(self, expression: str, fields: Mapping[str, Any], answer: str, line: int) -> float:
        """Compute the score of a row: a higher number is more important; minus infinity if it has none.

        Raises:
            JobError: too many rows exceeded a limit.
            Abandoned: the job has been stopping for 10 s, and the task had not started.
        """
        try:
            return float(await self._row("score", expression, [fields, answer], "the score", line))
        except RowError:
            return -math.inf

    def _text(self, schema: Mapping[str, Any]) -> str:
        """The schema as JSON; most rows of a job have the same one."""
        if self._schema[0] is not schema:
            self._schema = schema, json.dumps(schema)
        return self._schema[1]

    async def _row(self, kind: str, definition: str, arguments: list[Any], what: str, line: int) -> Any:
        if (met := self._met.get((kind, line))) is not None:
            raise RowError(EVALUATION_LIMIT, met)  # it would exceed the limit again
        if self._over():
            raise self._too_many()
        # A row that has an answer is finished if that is quick; a row that was not asked yet is left.
        unwanted = self._unwanted if kind in ("render", "line") else self._unwanted_late
        try:
            return _value(await self._runner.run(kind, definition, arguments, _ROW_CPU_S, unwanted))
        except Abandoned:
            if self._over():
                raise self._too_many() from None
            raise
        except LimitExceeded as limit:
            message = self._met[kind, line] = f"{what} {limit}{self._on(line)}"
            raise RowError(EVALUATION_LIMIT, message) from None
        except TaskInterrupted as lost:
            text = f"{what} failed{self._on(line)}: the evaluation process ended {lost}"
            raise RowError("evaluation_failed", text) from None
        except _Defect as defect:
            text = f"{what} failed{self._on(line)} because of a defect in spoolama: {defect}"
            raise RowError("evaluation_failed", text) from None
        finally:
            if self._beat is not None:
                self._beat()

    def _on(self, line: int) -> str:
        return f" on line {line} of {self._data}" if self._data else f" on line {line}"

    def _rows_met(self) -> int:
        return self._before + len({line for _, line in self._met})

    def _unwanted(self) -> bool:
        return self._over() or self._stopped_for() is not None

    def _unwanted_late(self) -> bool:
        stopped_s = self._stopped_for()
        return self._over() or (stopped_s is not None and stopped_s >= _STOP_S)

    def _stopped_for(self) -> float | None:
        """Seconds since the stop was first noticed; None: the job does not stop."""
        if self._stops is None or not self._stops():
            return None
        now = asyncio.get_running_loop().time()
        if self._stop_seen is None:
            self._stop_seen = now
        return now - self._stop_seen

    def _over(self) -> bool:
        return self._rows_met() >= _MOST_LIMITS

    def _too_many(self) -> JobError:
        last = f"; the last: {list(self._met.values())[-1]}" if self._met else ""
        keys = {_KEYS[kind] for kind, _ in self._met}
        return JobError(
            f"{self._rows_met()} rows exceeded a limit of the evaluation{last}",
            fix=f"Simplify {' and '.join(sorted(keys)) or 'the sidecar'}, or shorten these rows.",
            code=EVALUATION_LIMIT,
        )


class _Defect(Exception):
    """An unexpected exception in the evaluation process."""


def _value(reply: list[Any]) -> Any:
    match reply:
        case ["ok", value]:
            return value
        case ["row", code, message, details]:
            raise RowError(code, message, details=details)
        case ["sidecar", problems]:
            raise SidecarError([Problem(**problem) for problem in problems])
        case _:
            raise _Defect(reply[-1])


def _text_of(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise SidecarError([Problem(path.name, None, None, "", too_large(size))])
        return file.read(MAX_BYTES + 1)
