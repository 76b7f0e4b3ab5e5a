"""Defines the interface to the evaluation process, which tests can replace, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Abandoned", "LimitMet", "TaskLost", "TaskRunner"]


class Abandoned(Exception):
    """A task did not start, because its owner cancelled it."""


class LimitMet(Exception):
    """A task exceeded a limit or crashed its process; the text continues a sentence that names the task."""


class TaskLost(Exception):
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
