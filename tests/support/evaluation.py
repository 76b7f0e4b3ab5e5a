"""Evaluation on the spot, without a process: for tests whose clock jumps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spoolama.evaluation.child.main import run_task
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.evaluation.evaluator import Evaluator, JobEvaluator
from spoolama.evaluation.protocol import Abandoned, LimitExceeded
from spoolama.job.sidecar import Sidecar


class InlineRunner:
    """Runs tasks where it is called, with the same JSON in between as the process has."""

    def __init__(self) -> None:
        self.meets: Callable[[str, Sequence[Any]], str | None] = lambda _kind, _arguments: None
        """Which limit a task meets, by its kind and arguments; None: it is run."""

    async def run(
        self,
        kind: str,
        definition: str,
        arguments: Sequence[Any],
        cpu_s: float,
        unwanted: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Run a task; `EvaluationProcess.run` has the details."""
        if unwanted is not None and unwanted():
            raise Abandoned
        if (limit := self.meets(kind, arguments)) is not None:
            raise LimitExceeded(limit)
        result = run_task(kind, definition, json.loads(json.dumps(arguments)))
        replied: list[Any] = json.loads(json.dumps(result))
        return replied

    async def aclose(self) -> None:
        """Nothing is held."""


def inline_evaluator() -> Evaluator:
    """An evaluator that needs no process."""
    return Evaluator(InlineRunner())


def inline_job_evaluator() -> JobEvaluator:
    """The same for the rows of one job."""
    return inline_evaluator().of_job()


def load_sidecar(path: Path, *, openai: bool = False) -> Sidecar:
    """Read a sidecar at once; `Evaluator.load_sidecar` has the details."""
    return parse_sidecar(path.read_bytes(), path.name, openai=openai)
