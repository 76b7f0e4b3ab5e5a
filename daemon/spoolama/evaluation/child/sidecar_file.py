"""From the sidecar's text to checked JSON of a `Sidecar`, or to every problem it has at once."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from spoolama.errors import Problem, SidecarError
from spoolama.evaluation.child.prompt import PromptTemplate, TemplateProblem
from spoolama.evaluation.child.schema_check import schema_problems
from spoolama.evaluation.child.score import Score, ScoreProblem
from spoolama.evaluation.child.sidecar_fit import misfits
from spoolama.evaluation.child.sidecar_words import EXPECTED, NOT_YET, RENAMED
from spoolama.job.retired import RETIRED, in_todays_words
from spoolama.job.sidecar import Example, Expect, Options, Repair, Sidecar, Trim, Vram
from spoolama.job.trim import BUILT_IN_SCORES, STRATEGY_KEYS
from spoolama.job.yaml_tree import KeyPath, Tree, dotted, read_yaml

__all__ = ["checked_sidecar", "parse_sidecar", "sidecar_schema"]

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
"""More than there are keys that may fail to fit together."""

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
"""What people call these keys elsewhere, where the spelling is too far off to be guessed."""


def parse_sidecar(text: str | bytes, name: str, *, openai: bool = False, begun: bool = False) -> Sidecar:
    """Check a sidecar's text.

    Args:
        text: The file's text or bytes.
        name: Its name as the person knows it.
        openai: Whether it belongs to OpenAI batch lines, which need neither model nor prompt.
        begun: Whether its job has begun, perhaps under an earlier version: then keys of that one count.

    Raises:
        SidecarError: with every problem found.
    """
    return Sidecar.model_validate_json(checked_sidecar(text, name, openai=openai, begun=begun))


def checked_sidecar(text: str | bytes, name: str, *, openai: bool = False, begun: bool = False) -> str:
    """The JSON of which `Sidecar` is made without a problem; errors as `parse_sidecar`'s.

    Args:
        text, name, openai: As for `parse_sidecar`.
        begun: Whether its job has begun: then settings that earlier versions had are left out.
    """
    tree = read_yaml(text, name)
    if not tree.data:
        raise SidecarError(tree.problems or [Problem(name, None, None, "", "the file is empty")])
    if begun:
        tree = replace(tree, data=in_todays_words(tree.data))
    check = _Check(tree, name, openai=openai, begun=begun)
    sidecar = check.run()
    if check.problems or sidecar is None:
        unique = {(p.line, p.key, p.message): p for p in check.problems}
        raise SidecarError(sorted(unique.values(), key=lambda p: (p.line or 0, p.column or 0)))
    return json.dumps(tree.data)


class _Check:
    """One pass over one sidecar."""

    def __init__(self, tree: Tree, name: str, *, openai: bool, begun: bool) -> None:
        self._tree = tree
        self._name = name
        self._openai = openai
        self._begun = begun
        self.problems = list(tree.problems)
        self._bad = {p.key for p in tree.problems}
        self._meant: set[str] = set()  # required keys that stand there misspelled
        self._gone: dict[KeyPath, set[str]] = {}  # by mapping: keys whose real value nobody knows

    def run(self) -> Sidecar | None:
        """The sidecar, if nothing is wrong; `problems` otherwise."""
        data = self._tree.data
        sidecar = self._validated()
        for key in () if self._openai else _REQUIRED:
            if key in self._meant:
                continue
            if key not in data:
                words, example = EXPECTED[key]
                self._add((key,), f"this key is missing: {words}", f"for example {key}: {example}")
            elif data[key] is None or (isinstance(data[key], str) and not data[key].strip()):
                self._add((key,), "this is empty", f"for example {key}: {EXPECTED[key][1]}")
        self._traps(data.get("format"), ("format",))
        self._format(data.get("format"))
        self._prompt(data.get("prompt"))
        if sidecar is not None:
            self._score(sidecar.trim.score)
            for misfit in misfits(sidecar, openai=self._openai, begun=self._begun, unknown=self._unknown()):
                self._add(*misfit)
        return sidecar

    def _validated(self) -> Sidecar | None:
        """The sidecar, or what is left of it without the keys that are wrong.

        pydantic looks whether keys fit together only where each of them is right, and stops at the first two
        that do not. So what is wrong is left out and the rest looked at again.
        """
        rest = copy.deepcopy(self._tree.data)
        for _ in range(_ROUNDS):
            try:
                # By way of JSON: there a list is as good as a tuple, while types stay strict.
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
        """Take a key out; a list as a whole, since the places of its items count. False: nothing is left."""
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
        """Top keys that are left out, or that something in them is."""
        return self._gone.get((), set()) | {str(path[0]) for path in self._gone if path}

    def _gone_with(self, path: KeyPath, message: str) -> bool:
        """Whether what does not fit together is about a key that was left out: its default, not its value."""
        about = message.partition("; it goes with")[0]  # behind it are names of strategies
        return not self._gone.get(path, set()).isdisjoint(re.findall(r"\w+", about))

    def _add(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        key = dotted(path)
        if key in self._bad:
            return
        self._bad.add(key)
        place = self._tree.places.get(path)
        line, column = (place.line, place.column) if place else (None, None)
        self.problems.append(Problem(self._name, line, column, key, message, hint))

    def _translate(self, error: Any) -> KeyPath:
        """One of pydantic's errors as a problem of the key it stands at, which is returned."""
        path = self._known(error["loc"])
        if error["type"] == "extra_forbidden":
            self._unknown_key(path)
        elif error["type"] == "missing":
            whole = (*path, str(error["loc"][-1]))
            key = dotted(whole)
            if key not in self._bad:
                self._bad.add(key)
                place = self._tree.places.get(path)
                line, column = (place.line, place.column) if place else (None, None)
                words = EXPECTED[_general(whole)][0]
                self.problems.append(Problem(self._name, line, column, key, f"this key is missing: {words}"))
        elif error["type"] == "value_error":
            message = str(error["ctx"]["error"])
            child = next((w for w in message.split() if (*path, w) in self._tree.places), None)
            told = self._gone_with(path, message)
            path = path if child is None else (*path, child)
            if not told:
                self._add(path, message)
        elif error["type"] == "string_too_long":
            self._too_long(path, len(error["input"]), error["ctx"]["max_length"])
        else:
            self._wrong_value(path)
        return path

    def _known(self, loc: tuple[int | str, ...]) -> KeyPath:
        """The longest beginning of pydantic's location that is in the file; behind it are names of types."""
        path: KeyPath = ()
        for step in loc:
            if (*path, step) not in self._tree.places:
                break
            path = (*path, step)
        return path

    def _unknown_key(self, path: KeyPath) -> None:
        key = dotted(path)
        if key in NOT_YET:
            self._add(path, "this key is not available yet in this version", NOT_YET[key])
            return
        if key in RENAMED:
            self._add(path, *RENAMED[key])
            return
        parent = _general(path[:-1])
        model = _MODELS[parent]
        wanted = str(path[-1])
        lower = wanted.lower().replace("-", "_")
        close = difflib.get_close_matches(lower, model.model_fields, n=3)
        if not parent and (meant := [c for c in close if c in _REQUIRED and c not in self._tree.data]):
            close = meant
            self._meant.add(meant[0])
        hint = None
        if close:
            self._gone.setdefault(path[:-1], set()).add(close[0])
            hint = f"did you mean {close[0]}?"
        elif elsewhere := [p for p, m in _MODELS.items() if p and "[" not in p and lower in m.model_fields]:
            hint = f"it belongs under {elsewhere[0]}: {elsewhere[0]}: {{{lower}: …}}"
        elif parent and lower in Sidecar.model_fields:
            hint = "it belongs to the top of the file, without indentation"
        elif not parent and lower in _SYNONYMS:
            hint = f"did you mean {_SYNONYMS[lower]}?"
            self._meant.add(_SYNONYMS[lower])
        else:
            hint = f"known here: {', '.join(model.model_fields)}"
        self._add(path, "unknown key", hint)

    def _too_long(self, path: KeyPath, length: int, most: int) -> None:
        """A name is too long; in `models` the path is the same for a name and for what it stands for."""
        self._add(path, f"this name has {length:,} characters; the limit is {most:,}", "write a shorter one")

    def _wrong_value(self, path: KeyPath) -> None:
        words, example = EXPECTED.get(_general(path), ("something else", ""))
        place = self._tree.places.get(path)
        value = self._value(path)
        shown = _shown(value)
        hint = (
            f"for example {path[-1]}: {example}"
            if path and isinstance(path[-1], str)
            else f"for example {example}"
        )
        if isinstance(value, str) and (dotted(path), value) in RETIRED:
            hint = RETIRED[dotted(path), value]
        elif place is not None and place.style is None and place.source is not None and "text" in words:
            if value is None:
                shown = "nothing"
            elif not isinstance(value, str):
                shown = f"{place.source}, which YAML reads as {_kind(value)},"
                hint = f"put it in quotes: {path[-1]}: '{place.source}'"
        elif path == ("trim",) and isinstance(value, str) and (close := _closest(value, STRATEGY_KEYS)):
            hint = f"did you mean trim: {{strategy: {close}}}?"
        elif isinstance(value, str) and place is not None and place.style is not None and _is_number(value):
            hint = f"leave the quotes out: {path[-1]}: {value}"
        elif isinstance(value, str) and _is_number(value) and "number" in words:
            shown = f"{value}, which YAML reads as a text,"
            hint = f"write {float(value):f}".rstrip("0").rstrip(".")
        elif isinstance(value, str) and "list" in words:
            hint = f"in brackets: {path[-1]}: [{value}]"
        elif value is None:
            shown = "nothing"
        elif isinstance(value, str) and (close := _closest(value, words.replace(",", "").split())):
            hint = f"did you mean {close}?"
        self._add(path, f"{shown} is not {words}", hint)

    def _value(self, path: KeyPath) -> Any:
        value: Any = self._tree.data
        for step in path:
            value = value[step]
        return value

    def _traps(self, value: Any, path: KeyPath) -> None:
        """`yes` in a schema is surely meant as the word: YAML reads it as true."""
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


def _general(path: KeyPath) -> str:
    """The dotted path with every item of a list alike: `examples[].user`."""
    out = ""
    for step in path:
        out += "[]" if isinstance(step, int) else f".{step}" if out else step
    return out


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + '…"'


def _kind(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else "a number"


def _closest(value: str, names: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(value.lower(), list(names), n=1)
    return found[0] if found else None


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < 1e15
    except ValueError:
        return False


def sidecar_schema() -> dict[str, Any]:
    """The sidecar as JSON Schema (draft 2020-12), for editors that check and complete YAML."""
    schema = Sidecar.model_json_schema()
    schema["title"] = "spoolama sidecar"
    schema["description"] = (
        "The sidecar of a job. `model` and `prompt` are required, except for OpenAI batch lines."
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
