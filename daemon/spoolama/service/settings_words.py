"""Converts pydantic's errors in the settings to messages with file, line, key and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from spoolama.errors import Problem
from spoolama.job.yaml_tree import KeyPath, Tree, dotted

__all__ = ["meant", "problems_of"]


def meant(word: str, known: Iterable[str]) -> str | None:
    """Return `did you mean "spool"?` if one of the known words is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else None


def problems_of(error: ValidationError, *, file: str, tree: Tree, model: type[BaseModel]) -> list[Problem]:
    """All problems, in the order of the file.

    Args:
        error: The error of the validation.
        file: The file's name for messages.
        tree: The parsed file.
        model: The model of the validation, for suggestions.
    """
    problems = []
    for found in error.errors():
        path: KeyPath = tuple(found["loc"])
        place = tree.places.get(path) or tree.places.get(path[:-1])
        line, column = (place.line, place.column) if place else (None, None)
        message, hint = _words(dict(found), path, model)
        problems.append(Problem(file, line, column, dotted(path), message, hint))
    return sorted(problems, key=lambda p: (p.line or 0, p.column or 0))


def _words(found: dict[str, Any], path: KeyPath, model: type[BaseModel]) -> tuple[str, str | None]:
    kind, given = found["type"], found.get("input")
    if kind == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        return "unknown key", meant(str(path[-1]), known) or f"known here: {', '.join(known)}"
    if kind == "value_error":
        return str(found["ctx"]["error"]), None
    if kind == "model_type":
        return "must be a mapping of keys", f"known keys: {', '.join(_keys_at(model, path))}"
    message = str(found["msg"])
    message = message[0].lower() + message[1:]
    message = message.replace("input should be", "must be").replace("a valid integer", "a whole number")
    message = message.replace("a valid boolean", "true or false").replace("a valid ", "a ")
    message += f", not {'nothing' if given is None else repr(given)[:60]}"
    if kind == "literal_error" and isinstance(given, str):
        expected = str(found["ctx"].get("expected", "")).replace(" or ", ",")
        return message, meant(given, [word.strip(" '") for word in expected.split(",")])
    return message, None


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    for part in path:
        info = model.model_fields.get(str(part))
        if info is None or not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            return []
        model = info.annotation
    return list(model.model_fields)
