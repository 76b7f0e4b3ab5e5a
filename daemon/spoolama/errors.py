"""Defines every exception that spoolama raises on purpose.

::

    SpoolamaError
    ├── ConfigError            the configuration is wrong; exit status 78
    ├── SpoolError             the spool directory is not usable; exit status 78
    │   ├── SpoolHeld          another daemon has locked the spool; exit status 75
    │   ├── DiskFull           the disk of the spool is full: keep all files, wait, retry
    │   └── DiskFailed         the disk reported an I/O error: never retried on the same file
    ├── EvaluationFailed       the process that evaluates templates and schemas cannot be started
    ├── LedgerVersion          only another version of spoolama can finish a job: it waits in processing/
    ├── DropGone               the uploader removed a drop during its claim; nothing has changed
    ├── JobError               this job cannot continue; it is published in failed/
    │   ├── ModelUnavailable   a model of the job cannot be loaded, or no longer
    │   ├── SidecarError       the sidecar is wrong: reports all problems at once
    │   ├── InputError         the data file as a whole cannot be used
    │   └── LedgerError        the ledger is damaged, or its input changed
    ├── RowError               this row cannot be answered; the other rows continue
    └── BackendError           a request to the model server did not return an answer
        ├── ServerAway         no connection: refused, reset, DNS, no byte in time
        ├── ServerBusy         loading or queue full (503, 499)
        ├── ServerDied         the model's process died during the request
        │   └── OutOfMemory    ... and reported that memory was short
        ├── Stalled            no answer within the time limit
        ├── RequestRefused     the same for every row: model missing, wrong option, bad schema
        │   └── WrongServer    the server is not of the kind in the settings
        ├── ContextOverflow    the prompt is longer than the context window
        ├── AnswerUnfinished   HTTP 200, but the generation did not end
        └── UnexpectedReply    anything else

The table in `answer/failures.py` lists the effect of each backend error on the row, the server and the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MOST_IN_PART = 500
_MOST_IN_DETAILS = 1_000
_MOST_OF_ROW = 2_000
_MOST_OF_JOB = 40_000
"""Maximum characters of a message, because it may quote a very long name, id or value."""
_MOST_PROBLEMS = 50
_PROBLEMS_UNCUT = 60
"""A list up to this length is not cut, because problems may be added to a list that was cut before."""


def shortened(text: str, most: int = _MOST_OF_ROW) -> str:
    """Shorten a long text to its beginning and end, with the number of omitted characters.

    Args:
        text: A message for a person.
        most: Number of characters to keep.
    """
    if len(text) <= most + 40:
        return text
    tail = most // 4
    return f"{text[: most - tail]}… ({len(text) - most:,} characters left out) …{text[-tail:]}"


def shortened_details(details: Mapping[str, object]) -> dict[str, object]:
    """Shorten each text in the details of a row's error, including the keys.

    Args:
        details: JSON values.
    """
    return {shortened(key, _MOST_IN_DETAILS): _shortened_value(value) for key, value in details.items()}


def _shortened_value(value: object) -> object:
    if isinstance(value, str):
        return shortened(value, _MOST_IN_DETAILS)
    if isinstance(value, Mapping):
        return shortened_details(value)
    if isinstance(value, list | tuple):
        return [_shortened_value(item) for item in value]
    return value


class SpoolamaError(Exception):
    """Base class of all exceptions that spoolama raises on purpose."""

    exit_status = 1


class ConfigError(SpoolamaError):
    """The service's configuration is wrong."""

    exit_status = 78


class SpoolError(SpoolamaError):
    """The spool directory is not usable."""

    exit_status = 78


class SpoolHeld(SpoolError):
    """Another daemon has locked this spool."""

    exit_status = 75


class DiskFull(SpoolError):
    """The disk of the spool is full. All files stay, and the step can be retried later."""

    exit_status = 75


class DiskFailed(SpoolError):
    """The disk reported an I/O error. It is not retried, because a later fsync might falsely succeed."""

    exit_status = 75


class LedgerVersion(SpoolamaError):
    """This version of spoolama cannot resume a job of another version because of its ledger or sidecar.

    This is not a JobError: the job waits in processing/ with its results and is never published in failed/.
    """


class DropGone(SpoolamaError):
    """The uploader removed or replaced a drop during its claim; nothing has changed."""


class EvaluationFailed(SpoolamaError):
    """The evaluation process cannot be started; no job is at fault."""

    exit_status = 75


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem in a file that a person wrote, and how to fix it."""

    file: str
    """The file's name as the person knows it."""
    line: int | None
    """1-based line, if known."""
    column: int | None
    """1-based column, if known."""
    key: str
    """Dotted path of the key, `options.num_ctx`; empty for the whole file."""
    message: str
    """What is wrong."""
    hint: str | None = None
    """What to write instead, if known."""

    def __post_init__(self) -> None:
        for name in ("key", "message", "hint"):
            if (text := getattr(self, name)) is not None:
                object.__setattr__(self, name, shortened(text, _MOST_IN_PART))

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place += f":{self.line}"
            if self.column is not None:
                place += f":{self.column}"
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}:{key} {self.message}{hint}"


class JobError(SpoolamaError):
    """This job cannot continue.

    Args:
        message: What is wrong.
        fix: What to do about it; shown after the message and in error.json.
        code: A stable name for programs.
    """

    code = "job_failed"

    def __init__(self, message: str, *, fix: str = "", code: str | None = None) -> None:
        message = shortened(message, _MOST_OF_JOB)
        super().__init__(message)
        self.message = message
        self.fix = fix
        if code is not None:
            self.code = code


class ModelUnavailable(JobError):
    """A model cannot be loaded, or no longer; rows with another model may continue."""

    code = "model_unavailable"


class SidecarError(JobError):
    """The sidecar is wrong; `problems` has the problems in the order of the file.

    Of more than 60 problems it has the first 50, and one with the number of the others.
    """

    code = "bad_sidecar"

    def __init__(self, problems: list[Problem]) -> None:
        if len(problems) > _PROBLEMS_UNCUT:
            left = problems[_MOST_PROBLEMS:]
            message = f"{len(left):,} more problems are not listed"
            problems = [*problems[:_MOST_PROBLEMS], Problem(left[0].file, left[0].line, None, "", message)]
        super().__init__(
            "\n".join(str(p) for p in problems),
            fix="Fix the sidecar and upload both files again.",
        )
        self.problems = problems


class InputError(JobError):
    """The data file as a whole cannot be used."""

    code = "bad_input"


class LedgerError(JobError):
    """The job's ledger is damaged, or the job's files are not those that it was created from."""

    code = "bad_ledger"


class RowError(SpoolamaError):
    """This row cannot be answered; the other rows continue.

    Args:
        code: The stable error code, as in errors.jsonl.
        message: What is wrong.
        details: Sizes and other values that a person needs to fix the row; long texts are shortened.
        answer: The raw answer, if there is one.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: dict[str, object] | None = None,
        answer: str | None = None,
    ) -> None:
        message = shortened(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = shortened_details(details or {})
        self.answer = answer


class BackendError(SpoolamaError):
    """A request to the model server did not return an answer.

    Args:
        message: The server's error message, or a short description of the failure.
        status: HTTP status, if there is one.
    """

    code = "unexpected"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class ServerAway(BackendError):
    """The server is not reachable: connection refused or reset, no such host, no byte in time."""

    code = "server_away"


class ServerBusy(BackendError):
    """The server asks to retry later: it loads a model, or its queue is full."""

    code = "server_busy"


class ServerDied(BackendError):
    """The model's process died during this request, or could not be started."""

    code = "server_died"


class OutOfMemory(ServerDied):
    """The model's process ended because memory was short."""

    code = "out_of_memory"


class Stalled(BackendError):
    """No answer within the time limit of this request."""

    code = "stalled"


class RequestRefused(BackendError):
    """The server refuses this kind of request permanently, for every row.

    Args:
        fix: What the user has to change.
    """

    code = "request_refused"

    def __init__(self, message: str, *, status: int | None = None, fix: str = "") -> None:
        super().__init__(message, status=status)
        self.fix = fix


class WrongServer(RequestRefused):
    """The server is not of the kind in the settings; no job is at fault."""


class ContextOverflow(BackendError):
    """The prompt is longer than the context window; nothing was evaluated.

    Args:
        prompt_tokens: The prompt's length in tokens, if the server reported it.
        num_ctx: The context window in tokens, if the server reported it.
    """

    code = "context_overflow"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        prompt_tokens: int | None = None,
        num_ctx: int | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.prompt_tokens = prompt_tokens
        self.num_ctx = num_ctx


class AnswerUnfinished(BackendError):
    """HTTP 200, but the generation did not end: `done` in the reply is missing or false."""

    code = "answer_unfinished"


class UnexpectedReply(BackendError):
    """The server returned a reply that is not one of the known cases."""

    code = "unexpected"
