"""YAML that people write: where each key stands, and each mistake as a `Problem` with line and column."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from spoolama.errors import Problem

__all__ = ["Parsed", "fields_at", "parse_yaml", "problems_of", "suggestion"]

KeyPath = tuple[str | int, ...]

_MOST_PLACES = 200_000


@dataclass(frozen=True, slots=True)
class Parsed:
    """A YAML file as plain values, and where they stand."""

    value: Any
    """Dicts, lists and scalars; None for an empty file."""
    places: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)
    """Path of a key or list item to its 1-based line and column."""
    problems: tuple[Problem, ...] = ()
    """Syntax errors and keys given twice."""

    def place(self, path: Sequence[str | int]) -> tuple[int, int] | None:
        """Where this key stands, or the nearest one above it that stands in the file."""
        for end in range(len(path), 0, -1):
            found = self.places.get(tuple(path[:end]))
            if found is not None:
                return found
        return None


class _Reader(yaml.SafeLoader):
    """The safe loader, with a note of where each key stood and of keys given twice."""


def parse_yaml(text: str, file: str) -> Parsed:
    """Read one YAML document without trusting it: plain values only, no Python objects.

    Args:
        text: The document.
        file: Its name as the person knows it, for the problems.
    """
    loader = _Reader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Parsed(None)
        places: dict[KeyPath, tuple[int, int]] = {}
        problems: list[Problem] = []
        _note_places(node, (), places, problems, file, set())
        value = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        message = f"not valid YAML: {error.problem or error.context}"
        hint = _syntax_hint(text, line)
        return Parsed(None, problems=(Problem(file, line, column, "", message, hint),))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Parsed(None, problems=(Problem(file, None, None, "", f"not valid YAML: {first_line}"),))
    finally:
        loader.dispose()
    return Parsed(value, places, tuple(problems))


def _syntax_hint(text: str, line: int | None) -> str | None:
    lines = text.splitlines()
    if line is not None and 0 < line <= len(lines) and "\t" in lines[line - 1]:
        return "indent with spaces; YAML does not allow tabs"
    return None


def _note_places(
    node: yaml.Node,
    path: KeyPath,
    places: dict[KeyPath, tuple[int, int]],
    problems: list[Problem],
    file: str,
    open_nodes: set[int],
) -> None:
    if id(node) in open_nodes:
        raise ValueError("an alias contains itself")
    if len(places) > _MOST_PLACES:
        raise ValueError("too many keys (aliases that multiply?)")
    open_nodes.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key: Hashable = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            here = (*path, key)
            mark = key_node.start_mark
            if here in places:
                problems.append(
                    Problem(
                        file,
                        mark.line + 1,
                        mark.column + 1,
                        ".".join(str(p) for p in here),
                        f"given twice; first on line {places[here][0]}",
                        "keep one of them",
                    )
                )
            else:
                places[here] = (mark.line + 1, mark.column + 1)
            _note_places(value_node, here, places, problems, file, open_nodes)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            mark = item.start_mark
            places[(*path, index)] = (mark.line + 1, mark.column + 1)
            _note_places(item, (*path, index), places, problems, file, open_nodes)
    open_nodes.discard(id(node))


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """`did you mean "prompt"?`, where one of the known words is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        close = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else None


def fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that may stand at this path of the model."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        found: list[type[BaseModel]] = []
        for one in models:
            if isinstance(part, str) and part in one.model_fields:
                found.extend(_models_in(one.model_fields[part].annotation))
            elif not isinstance(part, str):
                found.append(one)  # an item of a list: the list's own annotation was looked into already
        models = found
    return [name for one in models for name, info in one.model_fields.items() if info.init is not False]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, list, tuple, dict) or get_args(annotation):
        return [m for a in get_args(annotation) for m in _models_in(a)]
    return []


def problems_of(
    error: ValidationError,
    *,
    file: str,
    parsed: Parsed,
    model: type[BaseModel],
    words: Callable[[dict[str, Any]], tuple[str, str | None] | None] = lambda _: None,
) -> list[Problem]:
    """What pydantic found, in the words of the person who wrote the file, in the order of the file.

    Args:
        error: What validation raised.
        file: The file's name as the person knows it.
        parsed: The file.
        model: The model it was checked against, for suggestions.
        words: May give message and hint for one of pydantic's errors; None leaves it to the usual words.
    """
    problems: dict[str, Problem] = {}
    for found in error.errors():
        path = _path_in_file(found["loc"], parsed)
        line, column = parsed.place(path) or (None, None)
        key = ".".join(str(p + 1) if isinstance(p, int) else p for p in path)
        message, hint = words(dict(found)) or _usual_words(dict(found), path, model)
        if key in problems and problems[key].message != message:
            # One value that fits none of several kinds: pydantic tells each kind, the person wrote one value.
            merged = f"{problems[key].message}; or {message}"
            problems[key] = Problem(file, line, column, key, merged, hint)
            continue
        problems[key] = Problem(file, line, column, key, message, hint)
    return sorted(problems.values(), key=lambda p: (p.line or 0, p.column or 0))


def _path_in_file(loc: Sequence[str | int], parsed: Parsed) -> KeyPath:
    """Pydantic's location without the names of union members, which stand nowhere in the file."""
    path: KeyPath = ()
    value = parsed.value
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(value, dict) and (part in value or (last and isinstance(part, str))):
            path = (*path, part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path = (*path, part)
            value = value[part] if part < len(value) else None
    return path


def _usual_words(found: dict[str, Any], path: KeyPath, model: type[BaseModel]) -> tuple[str, str | None]:
    kind = found["type"]
    given = found.get("input")
    if kind == "extra_forbidden":
        known = fields_at(model, path[:-1])
        hint = suggestion(str(path[-1]), known) if path else None
        return "unknown key", hint or (f"known here: {', '.join(known)}" if known else None)
    if kind == "missing":
        return "missing", None
    if kind == "value_error":
        return str(found["ctx"]["error"]), None
    message = str(found["msg"])
    message = message[0].lower() + message[1:]
    message = message.replace("input should be", "must be").replace("a valid dictionary", "a mapping of keys")
    message = message.replace("valid ", "")
    if isinstance(given, str | int | float | bool) or given is None:
        shown = "nothing" if given is None else repr(given)
        if len(shown) > 60:
            shown = f"{shown[:57]}..."
        message += f", not {shown}"
    if kind == "literal_error" and isinstance(given, str):
        return message, suggestion(given, _words_in(str(found["ctx"].get("expected", ""))))
    return message, None


def _words_in(expected: str) -> list[str]:
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",") if part.strip(" '")]
