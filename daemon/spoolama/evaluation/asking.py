"""Builds the request for a row: shared prefix, the row's own messages, and the generation options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import getsizeof
from typing import Any, Literal

from spoolama.backends.base import LoadSpec, Message
from spoolama.evaluation.evaluator import JobEvaluator
from spoolama.job.row import RowRequest
from spoolama.job.sidecar import LOAD_TIME_OPTIONS, Sidecar

_TOKEN_BYTES = 4
"""Estimated bytes of one answer token."""


@dataclass(frozen=True, slots=True)
class RowMessages:
    """The request for one row. Rows of a conversation share `prefix`; earlier rows follow it before `own`."""

    prefix: tuple[Message, ...]
    """System message and examples, which the server's prefix cache can serve."""
    own: tuple[Message, ...]
    """The row's own messages; the last one is the user's."""
    num_predict: int
    """Maximum tokens of the answer."""
    sampling: Mapping[str, Any]
    """`temperature`, `seed`, ... with Ollama's names; only options that are set."""
    format: Mapping[str, Any] | Literal["json"] | None
    """JSON Schema (or "json") that constrains the answer."""
    think: bool | str | None
    """Whether a thinking model thinks; None: no."""
    memory: int = 0
    """Estimated bytes of request and answer in memory, without the earlier rows of a conversation."""


def memory_of(messages: Iterable[Message]) -> int:
    """Return the bytes of the texts of these messages in memory."""
    return sum(getsizeof(message.content) for message in messages)


def _format_bytes(format: Mapping[str, Any] | Literal["json"] | None) -> int:
    return len(json.dumps(format)) if isinstance(format, Mapping) else 0


class MessageBuilder:
    """Converts the fields of a row into a request, with the sidecar of a job.

    Args:
        sidecar: The job's sidecar; for rows that bring their own requests it provides defaults.
        evaluator: Renders templates.
    """

    def __init__(self, sidecar: Sidecar, evaluator: JobEvaluator) -> None:
        self._sidecar = sidecar
        self._evaluator = evaluator
        options = sidecar.options.model_dump(exclude_none=True)
        self._num_ctx: int = options.pop("num_ctx")
        self._num_predict: int = options.pop("num_predict")
        self._load_options = {key: options.pop(key) for key in LOAD_TIME_OPTIONS if key in options}
        self._sampling = options
        prefix: list[Message] = []
        if sidecar.system:
            prefix.append(Message("system", sidecar.system))
        for example in sidecar.examples:
            prefix += [Message("user", example.user), Message("assistant", example.assistant)]
        self._prefix = tuple(prefix)
        self._prefix_bytes = memory_of(self._prefix)
        self._format_bytes = _format_bytes(self._sidecar.format)

    @property
    def prefix(self) -> tuple[Message, ...]:
        """The prefix of every row, except of rows whose own request has more than one message."""
        return self._prefix

    async def ask(
        self, fields: Mapping[str, Any], line: int, request: RowRequest | None = None
    ) -> RowMessages:
        """Build the request for one row.

        Args:
            fields: The row's fields, for the sidecar's prompt.
            line: Its line number in the data file, for messages.
            request: The row's own request, if it has one; then the prompt is not rendered.

        Raises:
            RowError: `template_undefined`, `template_error`, `empty_prompt`, `evaluation_limit`.
            JobError: too many rows exceeded a limit of the evaluation process.
        """
        if request is not None:
            return self._own(request)
        own = (Message("user", await self._evaluator.render(self._sidecar.prompt or "", fields, line)),)
        memory = memory_of(own) + self._prefix_bytes + self._format_bytes
        return RowMessages(
            prefix=self._prefix,
            own=own,
            num_predict=self._num_predict,
            sampling=self._sampling,
            format=self._sidecar.format,
            think=self._sidecar.think,
            memory=memory + self._num_predict * _TOKEN_BYTES,
        )

    def _own(self, request: RowRequest) -> RowMessages:
        """Complete a row's own request with the values of the sidecar."""
        messages = tuple(Message(role, content) for role, content in request.messages)
        prefix, own = messages[:-1] or self._prefix, messages[-1:]
        num_predict = self._num_predict if request.num_predict is None else request.num_predict
        format = self._sidecar.format if request.format is None else request.format
        if format == "text":
            format = None
        return RowMessages(
            prefix=prefix,
            own=own,
            num_predict=num_predict,
            sampling={**self._sampling, **request.sampling},
            format=format,
            think=self._sidecar.think if request.think is None else request.think,
            memory=memory_of((*prefix, *own)) + _format_bytes(format) + num_predict * _TOKEN_BYTES,
        )

    def load_spec(self, model: str, slots: int) -> LoadSpec:
        """Return the load settings for a model (the row's or the sidecar's) and a number of slots."""
        return LoadSpec(
            model=model, num_ctx=self._num_ctx, load_options=dict(self._load_options), slots=slots
        )
