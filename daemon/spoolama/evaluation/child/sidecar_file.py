"""Reads and checks the text of a sidecar, and reports all its problems at once."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from spoolama.errors import Problem, SidecarError
from spoolama.evaluation.child.schemas import schema_problems
from spoolama.evaluation.child.sidecar_fit import misfits
from spoolama.evaluation.child.sidecar_words import EXPECTED, NOT_YET, RENAMED
from spoolama.evaluation.child.templates import PromptTemplate, Score, ScoreProblem, TemplateProblem
from spoolama.job.sidecar import (
    BUILT_IN_SCORES,
    RETIRED,
    STRATEGY_KEYS,
    Example,
    Expect,
    Options,
    Repair,
    Sidecar,
    Trim,
    Vram,
    updated_sidecar,
)
from spoolama.job.yaml_problems import YamlErrors, closest, pattern, problem_at
from spoolama.job.yaml_tree import KeyPath, Tree, dotted, read_yaml

_MODELS: dict[str, type[BaseModel]] = {
    "": Sidecar,
    "examples[]": Example,
    "options": Options,
    "trim": Trim,
    "repair": Repair,
    "expect": Expect,
    "vram": Vram,
}

_REQUIRED = ("model", "prompt")

_ROUNDS = 50
"""More than the number of keys that can contradict each other."""

_SYNONYMS = {
    "instruction": "system",
    "instructions": "system",
    "system_prompt": "system",
    "template": "prompt",
    "user": "prompt",
    "schema": "format",
    "json_schema": "format",
    "response_format": "format",
    "max_tokens": "options.num_predict",
    "few_shot": "examples",
    "id_column": "id",
    "context": "options.num_ctx",
    "ctx": "options.num_ctx",
}
"""Names of these keys in other programs."""


def parse_sidecar(text: str | bytes, name: str, *, openai: bool = False, begun: bool = False) -> Sidecar:
    """Check a sidecar's text.

    Args:
        text: The file's text or bytes.
        name: Its name as the user knows it.
        openai: Whether it belongs to OpenAI batch lines, which need neither model nor prompt.
        begun: Whether its job has begun. Then keys of earlier versions are accepted.

    Raises:
        SidecarError: with every problem.
    """
    return Sidecar.model_validate_json(checked_sidecar(text, name, openai=openai, begun=begun))


def checked_sidecar(text: str | bytes, name: str, *, openai: bool = False, begun: bool = False) -> str:
    """Check a sidecar's text like `parse_sidecar`; returns JSON for `Sidecar.model_validate_json`."""
    tree = read_yaml(text, name)
    if not tree.data:
        raise SidecarError(tree.problems or [Problem(name, None, None, "", "the file is empty")])
    if begun:
        tree = replace(tree, data=updated_sidecar(tree.data))
    check = _Check(tree, name, openai=openai, begun=begun)
    sidecar = check.run()
    if check.problems or sidecar is None:
        unique = {(p.line, p.key, p.message): p for p in check.problems}
        raise SidecarError(sorted(unique.values(), key=lambda p: (p.line or 0, p.column or 0)))
    return json.dumps(tree.data)


class _Check:
    """The check of one sidecar."""

    def __init__(self, tree: Tree, name: str, *, openai: bool, begun: bool) -> None:
        self._tree = tree
        self._name = name
        self._errors = YamlErrors(tree, _MODELS, EXPECTED)
        self._openai = openai
        self._begun = begun
        self.problems = list(tree.problems)
        self._bad = {p.key for p in tree.problems}
        self._meant: set[str] = set()  # required keys that are present but misspelled
        self._gone: dict[KeyPath, set[str]] = {}  # by mapping: keys whose value is unknown

    def run(self) -> Sidecar | None:
        """Check everything; returns the sidecar if it can be built. `problems` has the problems."""
        data = self._tree.data
        sidecar = self._validated()
        for key in () if self._openai else _REQUIRED:
            if key in self._meant:
                continue
            if key not in data:
                words, example = EXPECTED[key]
                self._add((key,), f"this key is missing: {words}", f"for example {key}: {example}")
            elif data[key] is None or (isinstance(data[key], str) and not data[key].strip()):
                example = f"for example {key}: {EXPECTED[key][1]}"
                indent = "indent the text below `prompt: |`; " if key == "prompt" else ""
                self._add((key,), "this key is empty", f"{indent}{example}")
        self._traps(data.get("format"), ("format",))
        self._format(data.get("format"))
        self._prompt(data.get("prompt"))
        if sidecar is not None:
            self._score(sidecar.trim.score)
            for misfit in misfits(sidecar, openai=self._openai, begun=self._begun, unknown=self._unknown()):
                self._add(*misfit)
        return sidecar

    def _validated(self) -> Sidecar | None:
        """The sidecar without its invalid keys.

        pydantic checks whether keys contradict each other only if each of them is valid, and stops at the
        first contradiction. So invalid keys are removed and the rest is checked again.
        """
        rest = copy.deepcopy(self._tree.data)
        for _ in range(_ROUNDS):
            try:
                # From JSON, where strict types accept a list for a tuple.
                return Sidecar.model_validate_json(json.dumps(rest))
            except ValidationError as error:
                wrong = [self._translate(problem) for problem in error.errors()]
            except (RecursionError, ValueError) as error:
                self._add((), f"the file cannot be read: {error}")
                return None
            for path in wrong:
                if not self._leave_out(rest, path):
                    return None
        return None

    def _leave_out(self, rest: dict[str, Any], path: KeyPath) -> bool:
        """Remove a key, or the whole list that contains it. Returns False if the path is empty."""
        items = [n for n, step in enumerate(path) if isinstance(step, int)]
        path = path[: items[0]] if items else path
        if not path:
            return False
        self._gone.setdefault(path[:-1], set()).add(str(path[-1]))
        inner: Any = rest
        for step in path[:-1]:
            inner = inner.get(step, {})
        inner.pop(path[-1], None)
        return True

    def _unknown(self) -> set[str]:
        """Top-level keys that were removed, in whole or in part."""
        return self._gone.get((), set()) | {str(path[0]) for path in self._gone if path}

    def _gone_with(self, path: KeyPath, message: str) -> bool:
        """Whether a contradiction involves a key that was removed, so that its default was checked."""
        about = message.partition("; it belongs to")[0]  # names of strategies follow
        return not self._gone.get(path, set()).isdisjoint(re.findall(r"\w+", about))

    def _add(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        key = dotted(path)
        if key in self._bad:
            return
        self._bad.add(key)
        self.problems.append(problem_at(self._tree, self._name, path, message, hint))

    def _translate(self, error: Any) -> KeyPath:
        """One of pydantic's errors as a problem of the key it stands at, which is returned."""
        path = self._errors.key_of(error["loc"])
        if error["type"] == "extra_forbidden":
            self._unknown_key(path)
        elif error["type"] == "missing":
            whole = (*path, str(error["loc"][-1]))
            key = dotted(whole)
            if key not in self._bad:
                self._bad.add(key)
                place = self._tree.places.get(path)
                line, column = (place.line, place.column) if place else (None, None)
                words = EXPECTED[pattern(whole)][0]
                self.problems.append(Problem(self._name, line, column, key, f"this key is missing: {words}"))
        elif error["type"] == "value_error":
            message = str(error["ctx"]["error"])
            child = next((w for w in message.split() if (*path, w) in self._tree.places), None)
            reported = self._gone_with(path, message)
            path = path if child is None else (*path, child)
            if not reported:
                self._add(path, message)
        elif error["type"] == "string_too_long":
            self._too_long(path, len(error["input"]), error["ctx"]["max_length"])
        else:
            self._wrong_value(error, path)
        return path

    def _unknown_key(self, path: KeyPath) -> None:
        key = dotted(path)
        if key in NOT_YET:
            self._add(path, "this key is not available yet in this version", NOT_YET[key])
            return
        if key in RENAMED:
            self._add(path, *RENAMED[key])
            return
        lower = str(path[-1]).lower().replace("-", "_")
        close = self._errors.similar_keys(path)
        whole_file = len(path) == 1
        if whole_file and (meant := [c for c in close if c in _REQUIRED and c not in self._tree.data]):
            close = meant
            self._meant.add(meant[0])
        if close:
            self._gone.setdefault(path[:-1], set()).add(close[0])
            hint = f"did you mean {close[0]}?"
        elif whole_file and lower in _SYNONYMS:
            hint = f"did you mean {_SYNONYMS[lower]}?"
            self._meant.add(_SYNONYMS[lower])
        else:
            hint = self._errors.hint_for_unknown(path)
        self._add(path, "unknown key", hint)

    def _too_long(self, path: KeyPath, length: int, most: int) -> None:
        """A name is too long; in `models` it can be the key or its value."""
        self._add(path, f"this name has {length:,} characters; the limit is {most:,}", "use a shorter one")

    def _wrong_value(self, error: Any, path: KeyPath) -> None:
        message, hint = self._errors.wrong_value(error, path)
        value = error["input"]
        if isinstance(value, str) and (dotted(path), value) in RETIRED:
            hint = RETIRED[dotted(path), value]
        elif path == ("trim",) and isinstance(value, str) and (close := closest(value, STRATEGY_KEYS)):
            hint = f"did you mean trim: {{strategy: {close}}}?"
        self._add(path, message, hint)

    def _traps(self, value: Any, path: KeyPath) -> None:
        """Report `yes` and the like in a schema: YAML reads them as true, but the word is meant."""
        if isinstance(value, dict | list):
            for step, item in value.items() if isinstance(value, dict) else enumerate(value):
                self._traps(item, (*path, step))
        elif isinstance(value, bool):
            place = self._tree.places[path]
            if place.source is not None and place.source.lower() not in ("true", "false"):
                word = "true" if value else "false"
                self._add(
                    path,
                    f"YAML reads {place.source} as {word}",
                    f"write '{place.source}' in quotes, or {word}",
                )

    def _format(self, schema: Any) -> None:
        if not isinstance(schema, dict):
            return
        for inner, message in schema_problems(schema):
            path = ("format", *inner)
            while path not in self._tree.places:
                path = path[:-1]
            self._bad.discard(dotted(path))
            self._add(path, message)

    def _prompt(self, source: Any) -> None:
        if not isinstance(source, str) or not source.strip() or "prompt" in self._bad:
            return
        try:
            PromptTemplate(source)
        except TemplateProblem as problem:
            place = self._tree.places[("prompt",)]
            block = place.style in ("|", ">")
            line = place.value_line + problem.line - (0 if block else 1)
            column = None if block or problem.line > 1 else place.value_column
            self.problems.append(Problem(self._name, line, column, "prompt", problem.message, problem.hint))

    def _score(self, score: str | None) -> None:
        if score is None or score in BUILT_IN_SCORES:
            return
        try:
            Score(score)
        except ScoreProblem as problem:
            self._add(("trim", "score"), f"score {problem}")


def sidecar_schema() -> dict[str, Any]:
    """The sidecar as JSON Schema (draft 2020-12), for editors that check and complete YAML."""
    schema = Sidecar.model_json_schema()
    schema["title"] = "spoolama sidecar"
    schema["description"] = (
        "The sidecar of a job. `model` and `prompt` are required, except for OpenAI batch lines."
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
