"""Checks the JSON Schemas that users write, and validates answers against them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import referencing

from spoolama.errors import RowError
from spoolama.job.answer import parse_answer

_MAX_PROBLEMS = 10

_MAX_DIGITS = 9
"""Maximum digits of a list index in a reference; Python refuses to parse thousands of digits."""


def schema_problems(schema: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """Return what is wrong with a schema: pairs of a path in it and the reason."""
    if problem := dialect_problem(schema):
        return [(("$schema",), problem)]
    try:
        return _not_a_schema(schema) or list(_unusable(schema, schema, ()))
    except RecursionError:
        return [((), "nested too deeply")]
    except MemoryError:  # reported by the caller
        raise
    except Exception as error:  # the library may raise anything for an invalid schema
        return [((), f"this JSON Schema cannot be used: {str(error)[:200] or type(error).__name__}")]


def dialect_problem(schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with `$schema`, which the library resolves before it checks anything."""
    if "$schema" not in schema:
        return None
    if not isinstance(schema["$schema"], str):
        return "$schema must be the URI of a JSON Schema dialect"
    return None if _is_address(schema["$schema"]) else f"$schema: {schema['$schema'][:200]} is not a URI"


def _not_a_schema(schema: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    out: list[tuple[tuple[str | int, ...], str]] = []
    for error in kind(kind.META_SCHEMA).iter_errors(schema):
        worst = jsonschema.exceptions.best_match([error]) or error
        out.append((tuple(worst.absolute_path), f"not a JSON Schema: {worst.message[:200]}"))
        if len(out) == _MAX_PROBLEMS:
            break
    return out


def _unusable(
    node: Any, root: Mapping[str, Any], path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(node, list):
        for place, item in enumerate(node):
            yield from _unusable(item, root, (*path, place))
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        here = (*path, key)
        if key == "pattern" and isinstance(value, str):
            yield from _bad_pattern(value, here)
        elif key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                yield from _bad_pattern(pattern, here)
        elif key in ("$ref", "$dynamicRef") and isinstance(value, str):
            if not value.startswith("#"):
                yield here, "a schema cannot refer to another file or URI; write it out, or use $defs"
            elif not _resolves(value, root):
                yield here, f"{value} is not in this schema"
        elif key == "$id" and isinstance(value, str) and not _is_address(value):
            yield here, f"{value[:200]} is not a URI"
        if key not in ("const", "enum", "default", "examples"):
            yield from _unusable(value, root, here)


def _is_address(text: str) -> bool:
    try:
        urlsplit(text)
    except ValueError:
        return False
    return True


def _bad_pattern(pattern: str, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        yield path, f"not a regular expression: {error}"


def _resolves(pointer: str, root: Mapping[str, Any]) -> bool:
    node: Any = root
    for step in pointer[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        place = int(step) if step.isdecimal() and len(step) <= _MAX_DIGITS else None
        if isinstance(node, list) and place is not None and place < len(node):
            node = node[place]
        elif isinstance(node, dict) and step in node:
            node = node[step]
        else:
            return False
    return pointer == "#" or pointer.startswith("#/")


_REASON_CHARS = 300


class AnswerSchema:
    """Validates answers against a schema, which is compiled once.

    Args:
        schema: A valid JSON Schema.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        # The registry retrieves nothing, so validation never opens a connection.
        self._validator: Any = kind(schema, registry=referencing.Registry())

    def check(self, text: str) -> None:
        """Validate an answer.

        Raises:
            RowError: `answer_empty`, or `answer_invalid` with the location and the reason.
        """
        value = parse_answer(text, json=True)
        try:
            worst = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except MemoryError:  # reported by the caller
            raise
        except Exception as error:  # a missing reference, a number too large for a float, an odd `$id`
            reason = _short(str(error) or type(error).__name__)
            message = f"the schema cannot be applied: {reason}"
            raise RowError("answer_invalid", message, answer=text) from None
        if worst is not None:
            message = f"{worst.json_path}: {_short(worst.message)}"
            raise RowError("answer_invalid", message, answer=text)


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_CHARS else reason[:_REASON_CHARS] + "…"
