"""What evaluates what users wrote: the process, or a test's stand-in that does it on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Abandoned", "LimitMet", "TaskLost", "TaskRunner"]


class Abandoned(Exception):
    """A task was not begun, since its owner no longer wants it."""


class LimitMet(Exception):
    """A task took more than it may, or crashed its process; the text goes behind what it was."""


class TaskLost(Exception):
    """The process was ended several times while it had the task, which is not known to be at fault."""


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
        """Give everything back."""
        ...
