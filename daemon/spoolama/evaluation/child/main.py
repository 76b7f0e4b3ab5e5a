"""Runs the evaluation process: reads tasks, runs each within its limits, and writes the results.

`evaluation/process.py` starts it as `python -m spoolama.evaluation.child.main PARENT MEMORY_BYTES`, with one
socket as standard input and output. It ends when the socket is closed or its parent ends.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any

from spoolama.errors import RowError, SidecarError
from spoolama.evaluation.child.lockdown import die_with_parent, lock_down
from spoolama.evaluation.child.openai_lines import read_line
from spoolama.evaluation.child.schemas import AnswerSchema
from spoolama.evaluation.child.sidecar_file import checked_sidecar
from spoolama.evaluation.child.sidecar_fit import column_problems
from spoolama.evaluation.child.templates import PromptTemplate, Score, TemplateProblem
from spoolama.evaluation.protocol import HEADER, frame
from spoolama.job.yaml_tree import read_yaml

Prepared = Callable[..., Any]


class Tasks:
    """Runs tasks, and caches their prepared definitions (templates, schemas, expressions)."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[str, str], Prepared] = {}

    def run(self, kind: str, definition: str, arguments: list[Any]) -> list[Any]:
        """Run one task.

        Returns:
            `["ok", value]`; `["row", code, message, details]` for a RowError; `["sidecar", problems]`.

        Raises:
            MemoryError: it needs more memory than the limit of the process.
            Exception: a defect in spoolama.
        """
        try:
            return ["ok", self._ready(kind, definition)(*arguments)]
        except RowError as error:
            return ["row", error.code, error.message, error.details]
        except SidecarError as error:
            return ["sidecar", [asdict(problem) for problem in error.problems]]

    def forget(self, definition: str) -> None:
        """Remove this definition from the cache."""
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
    except TemplateProblem as problem:  # perhaps another version accepted the sidecar
        raise RowError("template_error", f"the template, line {problem.line}: {problem.message}") from None


def _check(schema: str) -> Prepared:
    return AnswerSchema(json.loads(schema)).check


def _score(expression: str) -> Prepared:
    return Score(expression).of


def _line(_: str) -> Prepared:
    def read(line: dict[str, Any]) -> list[Any]:
        found = read_line(line)
        return [found.request.to_json(), found.model, found.shape]

    return read


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
"""By kind of task: prepares a definition. Bytes are sent as Latin-1 text, one character per byte."""


_LONG_S = 0.05
"""After this many seconds the results so far are sent without the rest of the batch."""
_MEMORY = '["memory"]'
"""The reply to a task that ran out of memory; it is the last reply of the process."""
_LONG_BYTES = 1024 * 1024
"""At this length the results so far are sent without the rest of the batch."""


def main() -> None:
    """Run tasks until the socket is closed."""
    # `re` emits one warning for each questionable position in a pattern, which can be hundreds of thousands.
    warnings.simplefilter("ignore")
    die_with_parent(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the service handles these signals and closes the socket
    _load_everything()
    tasks = Tasks()
    _warm_up(tasks)
    _discard_stderr()
    restricted = lock_down(int(sys.argv[2]))
    _write(json.dumps({"restricted": restricted}))
    definitions: dict[int, str] = {0: ""}
    while (length := _read(HEADER.size)) is not None:
        body = _read(HEADER.unpack(length)[0])
        if body is None:
            return
        _write("[" + ",".join(_batch(tasks, definitions, json.loads(body))) + "]")


def _batch(tasks: Tasks, definitions: dict[int, str], items: list[list[Any]]) -> list[str]:
    replies: list[str] = []
    size, full = 0, False
    began = time.perf_counter()
    for item in items:
        if item[0] == "define":
            definitions[item[1]] = item[2]
        elif item[0] == "forget":
            tasks.forget(definitions.pop(item[1]))
        elif not full and size < _LONG_BYTES and (not replies or time.perf_counter() - began < _LONG_S):
            replies.append(_one(tasks, definitions, item))
            size += len(replies[-1])
            full = replies[-1] == _MEMORY
    return replies


def _one(tasks: Tasks, definitions: dict[int, str], item: list[Any]) -> str:
    kind, number, arguments, cpu_s = item
    # After this CPU time the kernel ends the process with SIGPROF.
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        reply = json.dumps(tasks.run(kind, definitions[number], arguments))
    except MemoryError:
        return _MEMORY
    except Exception as error:
        # This is a defect in spoolama; the service reports it as such.
        return json.dumps(["defect", f"{type(error).__name__}: {error}"[:500]])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return reply


def _load_everything() -> None:
    """Import modules that are otherwise imported lazily, because no file can be opened later."""
    for name in ("jinja2", "jsonschema", "referencing", "yaml"):
        package = import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            if not module.name.endswith(("tests", "__main__", "cli", "benchmarks")):
                import_module(module.name)
    for name in ("decimal", "fractions", "html", "inspect", "pprint", "textwrap", "traceback", "unicodedata"):
        import_module(name)
    for name in ("ascii", "latin_1", "unicode_escape", "utf_8", "utf_8_sig", "utf_16", "utf_32"):
        import_module(f"encodings.{name}")


def _warm_up(tasks: Tasks) -> None:
    """Use each part once, so that everything that is loaded or created at first use exists."""
    tasks.run("render", "{{ a | upper }}{{ b | tojson }}{{ c }}", [{"a": "é", "b": [1.5, None]}])
    tasks.run("check", '{"type": "object", "required": ["a"], "pattern": "x"}', ['{"b": 1}'])
    tasks.run("score", "a + 1", [{"a": 1}, "2"])
    body = {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema"}}
    tasks.run("line", "", [{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}])
    for text in (
        "model: m\nprompt: '{{ a }'\noptions: {num_ctx: x}\n",
        "model: m\nprompt: '{{ a }}'\nformat: {type: objekt}\n",
        "model: [",
    ):
        tasks.run("sidecar", "", [text, "warm-up.yaml", False, False])
    tasks.run("columns", "", ["id: b", "warm-up.yaml", ["a"], "warm-up.csv"])


def _discard_stderr() -> None:
    """Redirect standard error to /dev/null: it is the service's journal, and users must not write to it.

    Errors during the start, which are for the administrator, are written before this call.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _read(count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write(text: str) -> None:
    left = memoryview(frame(text.encode("ascii")))
    while left:
        left = left[os.write(1, left) :]


if __name__ == "__main__":
    main()
