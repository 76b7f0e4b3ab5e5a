"""What the evaluation process does: one function for each kind of task, from JSON to JSON.

A task has a definition (a template's source, a schema, an expression; empty where it has none), which is
prepared once, and arguments. `evaluator.py` is the other side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from spoolama.errors import RowError, SidecarError
from spoolama.evaluation.child.answer_schema import AnswerSchema
from spoolama.evaluation.child.columns import column_problems
from spoolama.evaluation.child.openai_lines import read_line
from spoolama.evaluation.child.prompt import PromptTemplate, TemplateProblem
from spoolama.evaluation.child.score import Score
from spoolama.evaluation.child.sidecar_file import checked_sidecar
from spoolama.job.yaml_tree import read_yaml

__all__ = ["Tasks"]

Prepared = Callable[..., Any]


class Tasks:
    """Runs tasks, and keeps what was prepared of their definitions."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[str, str], Prepared] = {}

    def run(self, kind: str, definition: str, arguments: list[Any]) -> list[Any]:
        """Run one task.

        Returns:
            `["ok", value]`; `["row", code, message, details]` for a RowError; `["sidecar", problems]`.

        Raises:
            MemoryError: it needs more memory than the process may have.
            Exception: a defect of ours.
        """
        try:
            return ["ok", self._ready(kind, definition)(*arguments)]
        except RowError as error:
            return ["row", error.code, error.message, error.details]
        except SidecarError as error:
            return ["sidecar", [asdict(problem) for problem in error.problems]]

    def forget(self, definition: str) -> None:
        """Drop what was prepared of this definition."""
        for kind in _PREPARE:
            self._prepared.pop((kind, definition), None)

    def _ready(self, kind: str, definition: str) -> Prepared:
        ready = self._prepared.get((kind, definition))
        if ready is None:
            ready = _PREPARE[kind](definition)
            self._prepared[kind, definition] = ready
        return ready


def _render(source: str) -> Prepared:
    try:
        return PromptTemplate(source).render
    except TemplateProblem as problem:  # its sidecar was accepted, by another version perhaps
        raise RowError("template_error", f"the template, line {problem.line}: {problem.message}") from None


def _check(schema: str) -> Prepared:
    return AnswerSchema(json.loads(schema)).check


def _score(expression: str) -> Prepared:
    return Score(expression).of


def _line(_: str) -> Prepared:
    return lambda line: asdict(read_line(line))


def _sidecar(_: str) -> Prepared:
    def read(text: str, name: str, openai: bool, begun: bool) -> str:
        return checked_sidecar(text.encode("latin-1"), name, openai=openai, begun=begun)

    return read


def _columns(_: str) -> Prepared:
    def compare(text: str, name: str, columns: list[str], data: str) -> list[dict[str, Any]]:
        tree = read_yaml(text.encode("latin-1"), name)
        return [asdict(problem) for problem in column_problems(tree, name, columns, data)]

    return compare


_PREPARE: dict[str, Callable[[str], Prepared]] = {
    "render": _render,
    "check": _check,
    "score": _score,
    "line": _line,
    "sidecar": _sidecar,
    "columns": _columns,
}
"""Kind of task to what prepares its definition. Bytes travel as latin-1, one character a byte."""
