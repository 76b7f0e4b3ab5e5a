"""Every error that spoolama raises on purpose.

::

    SpoolamaError
    ├── ConfigError            the administrator mends it; exit status 78
    ├── SpoolError             the spool directory is not usable; exit status 78
    │   ├── SpoolHeld          another daemon has the spool; exit status 75
    │   ├── DiskFull           no room on the spool's disk: keep what there is, wait, try again
    │   └── DiskFailed         the disk did not keep what was written: never retried on the same file
    ├── EvaluationFailed       the process that evaluates templates and schemas cannot be started
    ├── LedgerVersion          only another version of spoolama can finish a job: it waits in processing/
    ├── DropGone               its uploader took a drop back while it was being claimed; nothing happened
    ├── JobError               this job cannot go on; it is published in failed/
    │   ├── ModelLost          a model of it cannot be had, or not any more
    │   ├── SidecarError       the sidecar is wrong: every problem at once
    │   ├── InputError         the data file as a whole cannot be used
    │   └── LedgerError        the ledger is damaged, or its input changed
    ├── RowError               this row cannot be answered; the others go on
    └── BackendError           a request to the model server did not give an answer
        ├── ServerAway         nobody there: refused, reset, DNS, no byte in time
        ├── ServerBusy         loading or queue full (503, 499)
        ├── ServerDied         the model's process died in the request
        │   └── OutOfMemory    ... and said that memory was short
        ├── Stalled            no answer within the bound
        ├── RequestRefused     the same for every row: model missing, wrong option, bad schema
        │   └── WrongServer    the address is not the kind of server that the settings say
        ├── ContextOverflow    the prompt is longer than the window
        ├── AnswerUnfinished   HTTP 200, yet the generation did not end
        └── UnexpectedReply    anything else

What each backend error means for the row, the server and the job stands in one table: `engine/failures.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "AnswerUnfinished",
    "BackendError",
    "ConfigError",
    "ContextOverflow",
    "DiskFailed",
    "DiskFull",
    "DropGone",
    "EvaluationFailed",
    "InputError",
    "JobError",
    "LedgerError",
    "LedgerVersion",
    "ModelLost",
    "OutOfMemory",
    "Problem",
    "RequestRefused",
    "RowError",
    "ServerAway",
    "ServerBusy",
    "ServerDied",
    "SidecarError",
    "SpoolError",
    "SpoolHeld",
    "SpoolamaError",
    "Stalled",
    "UnexpectedReply",
    "WrongServer",
    "shortened",
    "shortened_details",
]

_MOST_IN_PART = 500
_MOST_IN_DETAILS = 1_000
_MOST_OF_ROW = 2_000
_MOST_OF_JOB = 40_000
"""Characters of a message: it may quote a name, an id or a value that is as long as the file allows."""
_MOST_PROBLEMS = 50
_PROBLEMS_UNCUT = 60
"""A list up to this length is shown whole: problems of other kinds are added to one that was cut before."""


def shortened(text: str, most: int = _MOST_OF_ROW) -> str:
    """The text; of a long one the beginning and the end, with how much is left out between them.

    Args:
        text: A message for a person.
        most: Characters that are shown.
    """
    if len(text) <= most + 40:
        return text
    tail = most // 4
    return f"{text[: most - tail]}… ({len(text) - most:,} characters left out) …{text[-tail:]}"


def shortened_details(details: Mapping[str, object]) -> dict[str, object]:
    """Details of a row's error, each text in them as `shortened` has it, names of keys too.

    Args:
        details: What JSON can hold.
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
    """The root of every error that spoolama raises on purpose."""

    exit_status = 1


class ConfigError(SpoolamaError):
    """The service's configuration is wrong."""

    exit_status = 78


class SpoolError(SpoolamaError):
    """The spool directory cannot be used as it is."""

    exit_status = 78


class SpoolHeld(SpoolError):
    """Another daemon works on this spool."""

    exit_status = 75


class DiskFull(SpoolError):
    """No room on the spool's disk: what there is stays, and the step can be tried again later."""

    exit_status = 75


class DiskFailed(SpoolError):
    """The disk did not keep what was written. A later fsync of the same file would lie, so none is tried."""

    exit_status = 75


class LedgerVersion(SpoolamaError):
    """This version of spoolama cannot go on with a job that another one began: its ledger, or its sidecar.

    It is no JobError: the job waits in processing/ with its results and is never published in failed/.
    """


class DropGone(SpoolamaError):
    """A drop was taken back or replaced by its uploader while it was being claimed; nothing happened."""


class EvaluationFailed(SpoolamaError):
    """The process that evaluates what users wrote cannot be started; nothing is wrong with any job."""

    exit_status = 75


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file that a person wrote, and how to mend it."""

    file: str
    """The file's name as the person knows it."""
    line: int | None
    """1-based line, where known."""
    column: int | None
    """1-based column, where known."""
    key: str
    """Dotted path of the key, `options.num_ctx`; empty for the whole file."""
    message: str
    """What is wrong, in words."""
    hint: str | None = None
    """What to write instead, where it can be told."""

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
    """This job cannot go on.

    Args:
        message: What is wrong, in words.
        mend: Who must do what; shown beside the message and in error.json.
        code: A stable name for programs.
    """

    code = "job_failed"

    def __init__(self, message: str, *, mend: str = "", code: str | None = None) -> None:
        message = shortened(message, _MOST_OF_JOB)
        super().__init__(message)
        self.message = message
        self.mend = mend
        if code is not None:
            self.code = code


class ModelLost(JobError):
    """A model cannot be loaded, or not any more; rows that ask for another one may go on."""

    code = "model_lost"


class SidecarError(JobError):
    """The sidecar is wrong; `problems` has the problems found, in the order of the file.

    Of more than 60 problems it has the first 50, and one that says how many are left out.
    """

    code = "bad_sidecar"

    def __init__(self, problems: list[Problem]) -> None:
        if len(problems) > _PROBLEMS_UNCUT:
            left = problems[_MOST_PROBLEMS:]
            message = f"{len(left):,} more problems are not listed"
            problems = [*problems[:_MOST_PROBLEMS], Problem(left[0].file, left[0].line, None, "", message)]
        super().__init__(
            "\n".join(str(p) for p in problems),
            mend="Mend the sidecar and drop both files again.",
        )
        self.problems = problems


class InputError(JobError):
    """The data file as a whole cannot be used."""

    code = "bad_input"


class LedgerError(JobError):
    """The job's ledger is damaged, or the files beside it are not those it was made from."""

    code = "bad_ledger"


class RowError(SpoolamaError):
    """This row cannot be answered; the others go on.

    Args:
        code: A stable name of the class of failure, as in errors.jsonl.
        message: What is wrong, in words.
        details: Sizes and the like that a person needs to mend the row; long texts in them are shortened.
        answer: The raw answer, where there was one.
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
    """A request to the model server did not give an answer.

    Args:
        message: What the server said, or what happened on the way, short.
        status: HTTP status where there was one.
    """

    code = "unexpected"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class ServerAway(BackendError):
    """Nobody there: connection refused or reset, no such host, no byte in time."""

    code = "server_away"


class ServerBusy(BackendError):
    """The server asks to come back later: it loads a model, or its queue is full."""

    code = "server_busy"


class ServerDied(BackendError):
    """The model's own process died while it had this request, or could not be started."""

    code = "server_died"


class OutOfMemory(ServerDied):
    """The model's process ended for want of memory."""

    code = "out_of_memory"


class Stalled(BackendError):
    """No answer within the bound that was set for this request."""

    code = "stalled"


class RequestRefused(BackendError):
    """The server refuses this kind of request for good: every row would be refused alike.

    Args:
        mend: What the person has to change.
    """

    code = "request_refused"

    def __init__(self, message: str, *, status: int | None = None, mend: str = "") -> None:
        super().__init__(message, status=status)
        self.mend = mend


class WrongServer(RequestRefused):
    """The address is not the kind of server that the settings say: no job's fault."""


class ContextOverflow(BackendError):
    """The prompt is longer than the context window; nothing was evaluated.

    Args:
        prompt_tokens: The prompt's length as the server counted it, where it said so.
        num_ctx: The window in tokens, where it said so.
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
    """HTTP 200, but the reply does not say that the generation ended (`done` is missing or false)."""

    code = "answer_unfinished"


class UnexpectedReply(BackendError):
    """The server answered something that is none of the known cases."""

    code = "unexpected"
