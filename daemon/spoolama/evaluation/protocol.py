"""Defines the protocol between service and evaluation process: JSON frames with a length prefix.

A request frame is a list of items `[kind, number of the definition, arguments, CPU seconds]`, with
`["define", number, text]` and `["forget", number]` between them. The reply frame is a list of the results of
the first items; if a batch takes long, the process replies with the results so far, and the service sends the
rest again. The frames are JSON only, so that decoding a frame cannot execute code in the service.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

HEADER = struct.Struct("!I")
MAX_REPLY_BYTES = 32 * 1024 * 1024
"""Maximum length of a reply; the process of a longer one is killed."""


class Abandoned(Exception):
    """A task did not start, because its owner cancelled it."""


class LimitExceeded(Exception):
    """A task exceeded a limit or crashed its process; the text continues a sentence that names the task."""


class TaskInterrupted(Exception):
    """The process ended several times during the task, but the task may not be the cause."""


class TaskRunner(Protocol):
    """Runs the tasks of `child/tasks.py`."""

    async def run(
        self,
        kind: str,
        definition: str,
        arguments: Sequence[Any],
        cpu_s: float,
        unwanted: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Run a task; `EvaluationProcess.run` has the details."""
        ...

    async def aclose(self) -> None:
        """Release all resources."""
        ...


def frame(body: bytes) -> bytes:
    """Return the body with its length prefix."""
    return HEADER.pack(len(body)) + body
