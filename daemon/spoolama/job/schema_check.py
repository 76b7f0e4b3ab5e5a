"""Whether a JSON Schema can be used: valid, complete in itself, with regular expressions that compile."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

__all__ = ["schema_problems"]

_MAX_PROBLEMS = 10


def schema_problems(schema: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong with a schema: pairs of the path in it and the reason in words."""
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    out: list[tuple[tuple[str | int, ...], str]] = []
    try:
        for error in kind(kind.META_SCHEMA).iter_errors(schema):
            worst = jsonschema.exceptions.best_match([error]) or error
            out.append((tuple(worst.absolute_path), f"not a JSON Schema: {worst.message[:200]}"))
            if len(out) == _MAX_PROBLEMS:
                break
    except RecursionError:
        out.append(((), "nested too deeply"))
    return out or list(_unusable(schema, schema, ()))


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
                yield here, "a schema cannot refer to another file or address; write it out, or use $defs"
            elif not _resolves(value, root):
                yield here, f"{value} is not in this schema"
        if key not in ("const", "enum", "default", "examples"):
            yield from _unusable(value, root, here)


def _bad_pattern(pattern: str, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        yield path, f"not a regular expression: {error}"


def _resolves(pointer: str, root: Mapping[str, Any]) -> bool:
    node: Any = root
    for step in pointer[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, dict) and step in node:
            node = node[step]
        else:
            return False
    return pointer == "#" or pointer.startswith("#/")
