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
from functools import lru_cache
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

_MOST_CACHED = 64
_LONGEST_CACHED = 32 * 1024
"""Limits of the cached definitions: their number, and the characters of each."""
_LONG_S = 0.05
"""After this many seconds the results so far are sent without the rest of the batch."""
_LONG_BYTES = 1024 * 1024
"""At this length the results so far are sent without the rest of the batch."""
_MEMORY = '["memory"]'
"""The reply to a task that ran out of memory; it is the last reply of the process."""


def run_task(kind: str, definition: str, arguments: list[Any]) -> list[Any]:
    """Run one task.

    Args:
        kind: A key of `_PREPARE`.
        definition: A template's source, a schema or an expression; empty for the other kinds.
        arguments: JSON values.

    Returns:
        `["ok", value]`; `["row", code, message, details]` for a RowError; `["sidecar", problems]`.

    Raises:
        MemoryError: it needs more memory than the limit of the process.
        Exception: a defect in spoolama.
    """
    prepare = _prepared if len(definition) <= _LONGEST_CACHED else _prepared.__wrapped__
    try:
        return ["ok", prepare(kind, definition)(*arguments)]
    except RowError as error:
        return ["row", error.code, error.message, error.details]
    except SidecarError as error:
        return ["sidecar", [asdict(problem) for problem in error.problems]]


@lru_cache(_MOST_CACHED)
def _prepared(kind: str, definition: str) -> Prepared:
    return _PREPARE[kind](definition)


def _render(source: str) -> Prepared:
    try:
        return PromptTemplate(source).render
    except TemplateProblem as problem:  # perhaps another version accepted the sidecar
        raise RowError("template_error", f"the template, line {problem.line}: {problem.message}") from None


def _line(line: dict[str, Any]) -> list[Any]:
    found = read_line(line)
    return [found.request.to_json(), found.model, found.shape]


def _sidecar(text: str, name: str, openai: bool, begun: bool) -> str:
    return checked_sidecar(text.encode("latin-1"), name, openai=openai, begun=begun)


def _columns(text: str, name: str, columns: list[str], data: str) -> list[dict[str, Any]]:
    tree = read_yaml(text.encode("latin-1"), name)
    return [asdict(problem) for problem in column_problems(tree, name, columns, data)]


_PREPARE: dict[str, Callable[[str], Prepared]] = {
    "render": _render,
    "check": lambda schema: AnswerSchema(json.loads(schema)).check,
    "score": lambda expression: Score(expression).of,
    "line": lambda _: _line,
    "sidecar": lambda _: _sidecar,
    "columns": lambda _: _columns,
}
"""By kind of task: prepares a definition. Bytes are sent as Latin-1 text, one character per byte."""


def main() -> None:
    """Run tasks until the socket is closed."""
    # `re` emits one warning for each questionable position in a pattern, which can be hundreds of thousands.
    warnings.simplefilter("ignore")
    die_with_parent(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the service handles these signals and closes the socket
    _load_everything()
    _warm_up()
    _discard_stderr()
    restricted = lock_down(int(sys.argv[2]))
    _write(json.dumps({"restricted": restricted}))
    while (length := _read(HEADER.size)) is not None:
        body = _read(HEADER.unpack(length)[0])
        if body is None:
            return
        _write("[" + ",".join(_batch(**json.loads(body))) + "]")


def _batch(definitions: list[str], tasks: list[list[Any]]) -> list[str]:
    replies: list[str] = []
    size = 0
    began = time.perf_counter()
    for kind, place, arguments, cpu_s in tasks:
        replies.append(_one(kind, definitions[place], arguments, cpu_s))
        size += len(replies[-1])
        if replies[-1] == _MEMORY or size >= _LONG_BYTES or time.perf_counter() - began >= _LONG_S:
            break
    return replies


def _one(kind: str, definition: str, arguments: list[Any], cpu_s: float) -> str:
    # After this CPU time the kernel ends the process with SIGPROF.
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        reply = json.dumps(run_task(kind, definition, arguments))
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


def _warm_up() -> None:
    """Use each part once, so that everything that is loaded or created at first use exists."""
    run_task("render", "{{ a | upper }}{{ b | tojson }}{{ c }}", [{"a": "é", "b": [1.5, None]}])
    run_task("check", '{"type": "object", "required": ["a"], "pattern": "x"}', ['{"b": 1}'])
    run_task("score", "a + 1", [{"a": 1}, "2"])
    body = {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema"}}
    run_task("line", "", [{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}])
    for text in (
        "model: m\nprompt: '{{ a }'\noptions: {num_ctx: x}\n",
        "model: m\nprompt: '{{ a }}'\nformat: {type: objekt}\n",
        "model: [",
    ):
        run_task("sidecar", "", [text, "warm-up.yaml", False, False])
    run_task("columns", "", ["id: b", "warm-up.yaml", ["a"], "warm-up.csv"])


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
