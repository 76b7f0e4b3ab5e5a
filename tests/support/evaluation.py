"""Inline evaluation without a process, for tests with a simulated clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spoolama.evaluation.child.main import Tasks
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.evaluation.evaluator import Evaluator, JobEvaluator
from spoolama.evaluation.protocol import Abandoned, LimitExceeded
from spoolama.job.sidecar import Sidecar


class InlineRunner:
    """Runs tasks inline, with the same JSON conversion as the process."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self.meets: Callable[[str, Sequence[Any]], str | None] = lambda _kind, _arguments: None
        """The limit that a task hits, by its kind and arguments; None: the task runs."""

    async def run(
        self,
        kind: str,
        definition: str,
        arguments: Sequence[Any],
        cpu_s: float,
        unwanted: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Run a task; see `EvaluationProcess.run`."""
        if unwanted is not None and unwanted():
            raise Abandoned
        if (limit := self.meets(kind, arguments)) is not None:
            raise LimitExceeded(limit)
        result = self._tasks.run(kind, definition, json.loads(json.dumps(arguments)))
        replied: list[Any] = json.loads(json.dumps(result))
        return replied

    async def aclose(self) -> None:
        """There is nothing to close."""


def inline_evaluator() -> Evaluator:
    """An evaluator without a process."""
    return Evaluator(InlineRunner())


def inline_job_evaluator() -> JobEvaluator:
    """The same for the rows of one job."""
    return inline_evaluator().of_job()


def load_sidecar(path: Path, *, openai: bool = False) -> Sidecar:
    """Read a sidecar at once; see `Evaluator.load_sidecar`."""
    return parse_sidecar(path.read_bytes(), path.name, openai=openai)
