"""Translates pydantic's errors about a YAML file: what is wrong at a key, and what to write instead."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from spoolama.errors import Problem
from spoolama.job.yaml_tree import KeyPath, Tree, dotted

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "is_instance_of": "a text",
    "list_type": "a list",
    "model_type": "a mapping of keys",
}
"""What a value has to be, by the type of pydantic's error."""


class YamlErrors:
    """Translates the errors of one file.

    Args:
        tree: The parsed file.
        models: The model of each mapping in the file, by its pattern (`examples[]`); "" is the whole file.
        expected: What a key expects and an example, by pattern. For other keys pydantic's error says it.
    """

    def __init__(
        self,
        tree: Tree,
        models: Mapping[str, type[BaseModel]],
        expected: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self._tree = tree
        self._models = models
        self._expected = expected or {}

    def key_of(self, location: tuple[int | str, ...]) -> KeyPath:
        """The longest beginning of pydantic's location that is in the file; after it come names of types."""
        path: KeyPath = ()
        for step in location:
            if (*path, step) not in self._tree.places:
                break
            path = (*path, step)
        return path

    def similar_keys(self, path: KeyPath) -> list[str]:
        """Known keys of the same mapping that are similar to an unknown key, the most similar first."""
        wanted = str(path[-1]).lower().replace("-", "_")
        return difflib.get_close_matches(wanted, self._models[pattern(path[:-1])].model_fields, n=3)

    def hint_for_unknown(self, path: KeyPath) -> str:
        """Where an unknown key without a similar one belongs, or which keys are known here."""
        parent, wanted = pattern(path[:-1]), str(path[-1]).lower().replace("-", "_")
        for place, model in self._models.items():
            if place and "[" not in place and place != parent and wanted in model.model_fields:
                return f"it belongs under {place}: {place}: {{{wanted}: …}}"
        if parent and wanted in self._models[""].model_fields:
            return "it belongs to the top of the file, without indentation"
        return f"known here: {', '.join(self._models[parent].model_fields)}"

    def wrong_value(self, error: Mapping[str, Any], path: KeyPath) -> tuple[str, str | None]:
        """Message and hint for a value of the wrong type, or out of bounds."""
        words, example = self._expected.get(pattern(path)) or (_expected_by(error), "")
        place = self._tree.places.get(path)
        value = self._value(path)
        shown, hint = _shown(value), f"for example {_keyed(path, example)}" if example else None
        if value is None and "mapping" in words:
            indent = "indent its keys below it"
            return "this key is empty", f"{indent}; {hint}" if hint else indent
        if place is not None and place.style is None and place.source is not None and "text" in words:
            if value is not None and not isinstance(value, str):
                shown = f"{place.source}, which YAML reads as {_kind(value)},"
                hint = f"put it in quotes: {_keyed(path, repr(place.source))}"
        elif isinstance(value, str) and place is not None and place.style is not None and _is_number(value):
            hint = f"leave the quotes out: {_keyed(path, value)}"
        elif isinstance(value, str) and "number" in words and _is_number(value):
            shown = f"{value}, which YAML reads as a text,"
            hint = f"write {float(value):f}".rstrip("0").rstrip(".")
        elif isinstance(value, str) and "list" in words:
            hint = f"in brackets: {_keyed(path, f'[{value}]')}"
        elif isinstance(value, str) and (close := closest(value, words.replace(",", "").split())):
            hint = f"did you mean {close}?"
        elif "mapping" in words and pattern(path) in self._models and hint is None:
            hint = f"known keys: {', '.join(self._models[pattern(path)].model_fields)}"
        return f"{shown} is not {words}", hint

    def _value(self, path: KeyPath) -> Any:
        value: Any = self._tree.data
        for step in path:
            value = value[step]
        return value


def problems_of(error: ValidationError, *, name: str, tree: Tree, model: type[BaseModel]) -> list[Problem]:
    """All problems of a file, in its order.

    Args:
        error: The error of the validation.
        name: The file's name for messages.
        tree: The parsed file.
        model: The model of the whole file.
    """
    models = {"": model, **dict(_mappings(model, ""))}
    errors, found = YamlErrors(tree, models), []
    for one in error.errors():
        path = errors.key_of(one["loc"])
        message: str
        hint: str | None = None
        if one["type"] == "extra_forbidden":
            close = errors.similar_keys(path)
            message = "unknown key"
            hint = f"did you mean {close[0]}?" if close else errors.hint_for_unknown(path)
        elif one["type"] == "value_error":
            message = str(one["ctx"]["error"])
        else:
            message, hint = errors.wrong_value(one, path)
        found.append(problem_at(tree, name, path, message, hint))
    return sorted(found, key=lambda p: (p.line or 0, p.column or 0))


def problem_at(tree: Tree, name: str, path: KeyPath, message: str, hint: str | None = None) -> Problem:
    """A problem with the position of its key in the file."""
    place = tree.places.get(path)
    line, column = (place.line, place.column) if place else (None, None)
    return Problem(name, line, column, dotted(path), message, hint)


def pattern(path: KeyPath) -> str:
    """The dotted path with every item of a list alike: `examples[].user`."""
    return re.sub(r"\[\d+\]", "[]", dotted(path))


def closest(value: str, names: Iterable[str]) -> str | None:
    """The most similar name, if one is similar enough."""
    found = difflib.get_close_matches(value.lower(), list(names), n=1)
    return found[0] if found else None


def _mappings(model: type[BaseModel], above: str) -> Iterable[tuple[str, type[BaseModel]]]:
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield f"{above}{name}", inner
            yield from _mappings(inner, f"{above}{name}.")


def _expected_by(error: Mapping[str, Any]) -> str:
    """What pydantic expects: `a whole number`, `ollama, embedded or openai`, `greater than or equal to 1`."""
    if found := _EXPECTED.get(error["type"]):
        return found
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"]).replace("'", "")
    return re.sub(r"^(input|string) should (be )?", "", str(error["msg"]), flags=re.IGNORECASE)


def _keyed(path: KeyPath, value: str) -> str:
    return f"{path[-1]}: {value}" if path and isinstance(path[-1], str) else value


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + '…"'


def _kind(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else "a number"


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < 1e15
    except ValueError:
        return False
