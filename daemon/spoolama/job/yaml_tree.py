"""Reads a YAML file into plain values with the line and column of every key, and explains syntax errors.

This module is independent of the sidecar format. It supports no tags and no merge keys, and limits the total
size of aliases. Syntax errors are explained without terms of the YAML specification.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from spoolama.errors import Problem

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1_000_000
"""A larger file is not read."""
_MAX_NODES = 20_000
_MAX_DEPTH = 50
_MAX_CHARACTERS = 4 * 1024 * 1024
"""Total characters of all scalars; an alias repeats a text without repeating its bytes in the file."""
_MAX_NUMBER = 100
"""Maximum characters of a number; PyYAML needs quadratic time to read `1:1:1:…` as a base-60 number."""

_BRACES = re.compile(r"^\s*(?:-\s+)?([\w.-]+):\s+\{\{")
_BRACES_HINT = "YAML reads {{ as a mapping: put the text in quotes, or on the next line after `|`"

_SCANNER_WORDS = (
    # PyYAML's message, our message, hint
    ("found character '\\t'", "YAML does not allow a tab here", "indent with spaces"),
    (
        "mapping values are not allowed here",
        "this line is indented more than the line above, or an unquoted text contains a colon",
        "align the keys; put the text in quotes",
    ),
    ("found undefined alias", "a text that begins with * must be in quotes", "write '*…'"),
    ("expected alphabetic or numeric character", "a text that begins with * or & must be in quotes", None),
    ("that cannot start any token", "a text cannot begin with this character", "put the text in quotes"),
    ("found unexpected end of stream", "a quote is opened and never closed", None),
    ("could not find expected ':'", "a line without a colon where a key is expected", "write `key: value`"),
    (
        "expected <block end>",
        "this line does not match the lines above it",
        "check its indentation and quotes",
    ),
    ("expected ',' or", "a list or mapping in brackets is not closed, or lacks a comma", None),
    ("found unknown escape character", "an unknown escape in double quotes", "use single quotes, or \\\\"),
)


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a key and its value. All numbers are 1-based."""

    line: int
    column: int
    """Column of the key or of the list item."""
    value_line: int
    value_column: int
    source: str | None
    """A scalar's text as written; None for lists and mappings."""
    style: str | None
    """None: without quotes; otherwise one of `' " | >`."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The content of a YAML file with the positions of its keys."""

    data: dict[str, Any]
    places: Mapping[KeyPath, Position]
    problems: list[Problem]


def too_large(size: int) -> str:
    """Return the message for a file of more than `MAX_BYTES`."""
    return f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}"


def dotted(path: KeyPath) -> str:
    """Format `("examples", 0, "user")` as `examples[0].user`."""
    out = ""
    for step in path:
        out += f"[{step}]" if isinstance(step, int) else f".{step}" if out else step
    return out


def read_yaml(text: str | bytes, name: str) -> Tree:
    """Read one YAML mapping.

    Args:
        text: The file.
        name: Its name as the user knows it, for messages.
    """
    try:
        decoded = _decoded(text, name)
        return _tree(decoded, name)
    except _Broken as broken:
        return Tree({}, {}, [broken.problem])


def _tree(text: str, name: str) -> Tree:
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _Broken(_said(error, name, text)) from None
    except yaml.YAMLError as error:  # characters that YAML forbids
        raise _Broken(_forbidden(error, name, text)) from None
    except RecursionError:
        raise _Broken(Problem(name, None, None, "", "nested too deeply")) from None
    finally:
        if loader is not None:
            loader.dispose()
    if node is None:
        raise _Broken(Problem(name, None, None, "", "the file is empty", "at least model and prompt"))
    if not isinstance(node, yaml.MappingNode):
        mark = node.start_mark
        what = "a list" if isinstance(node, yaml.SequenceNode) else "a text without keys"
        hint = "write `key: value` lines"
        raise _Broken(Problem(name, mark.line + 1, mark.column + 1, "", f"the file is {what}", hint))
    builder = _Builder(name, text.splitlines())
    data = builder.value(node, ())
    builder.problems.sort(key=lambda p: (p.line or 0, p.column or 0))
    return Tree(data, builder.places, builder.problems)


def _decoded(text: str | bytes, name: str) -> str:
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")
    if len(text) > MAX_BYTES:
        raise _Broken(Problem(name, None, None, "", too_large(len(text))))
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _Broken(Problem(name, None, None, "", "the file is UTF-16", "save it as UTF-8"))
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = text[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
        message = f"byte 0x{text[error.start]:02x} is not UTF-8"
        raise _Broken(Problem(name, line, column, "", message, "save it as UTF-8")) from None


def _said(error: yaml.MarkedYAMLError, name: str, text: str) -> Problem:
    """Translate an error of PyYAML."""
    mark = error.problem_mark or error.context_mark
    if error.context_mark and "unexpected end of stream" in (error.problem or ""):
        mark = error.context_mark  # where the quote was opened
    line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
    said = error.problem or str(error)
    lines = text.splitlines()
    for candidate in (error.problem_mark, error.context_mark):
        if candidate is not None and candidate.line < len(lines) and _BRACES.match(lines[candidate.line]):
            at = candidate.line + 1
            key = _BRACES.match(lines[at - 1])
            column = lines[at - 1].index("{{") + 1
            what = "a value begins with {{"
            return Problem(name, at, column, key.group(1) if key else "", what, _BRACES_HINT)
    if "expected a single document" in (error.context or "") or "another document" in said:
        return Problem(name, line, column, "", "the file contains several documents", "remove the --- line")
    for theirs, ours, hint in _SCANNER_WORDS:
        if theirs in said:
            return Problem(name, line, column, "", ours, hint)
    return Problem(name, line, column, "", f"this is not YAML: {said}")


def _forbidden(error: yaml.YAMLError, name: str, text: str) -> Problem:
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return Problem(name, None, None, "", f"this is not YAML: {error}")
    before = text[:position]
    line, column = before.count("\n") + 1, position - before.rfind("\n")
    code = ord(text[position]) if position < len(text) else 0
    return Problem(name, line, column, "", f"the character U+{code:04X} is not allowed in YAML", "remove it")


class _Broken(Exception):
    """The file cannot be read.

    Args:
        problem: The reason.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _Builder:
    """Converts PyYAML's node tree into plain values and records positions and problems."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self._name = name
        self._lines = lines
        self._constructor = yaml.constructor.SafeConstructor()
        self._nodes = 0
        self._characters = 0
        self.places: dict[KeyPath, Position] = {}
        self.problems: list[Problem] = []

    def _too_large(self, path: KeyPath) -> _Broken:
        message = "aliases or nesting make this too large"
        return _Broken(Problem(self._name, None, None, dotted(path[:1]), message))

    def _problem(self, node: yaml.Node, path: KeyPath, message: str, hint: str | None = None) -> None:
        mark = node.start_mark
        self.problems.append(Problem(self._name, mark.line + 1, mark.column + 1, dotted(path), message, hint))

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise self._too_large(path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                return self._tagged(node, path)
            out = []
            for place, item in enumerate(node.value):
                self._note((*path, place), item, item)
                out.append(self.value(item, (*path, place)))
            return out
        assert isinstance(node, yaml.ScalarNode)
        self._characters += len(node.value)
        if self._characters > _MAX_CHARACTERS:
            raise self._too_large(path)
        return self._scalar(node, path)

    def _note(self, path: KeyPath, key: yaml.Node, value: yaml.Node) -> None:
        at, to = key.start_mark, value.start_mark
        scalar = value if isinstance(value, yaml.ScalarNode) else None
        self.places[path] = Position(
            line=at.line + 1,
            column=at.column + 1,
            value_line=to.line + 1,
            value_column=to.column + 1,
            source=scalar.value if scalar else None,
            style=scalar.style if scalar else None,
        )

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any] | None:
        if node.tag != "tag:yaml.org,2002:map":
            self._tagged(node, path)
            return None
        out: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line = self._lines[key.start_mark.line] if key.start_mark.line < len(self._lines) else ""
                braces = "{{" in line
                self._problem(
                    node if braces else key,
                    path,
                    "a value begins with {{" if braces else "a key must be a text",
                    _BRACES_HINT if braces else None,
                )
                return None
            name = key.value
            if name == "<<" and key.tag == "tag:yaml.org,2002:merge":
                self._problem(key, (*path, name), "merge keys are not supported", "write the keys out")
                continue
            here = (*path, name)
            if name in out:
                first = self.places[here].line
                self._problem(key, here, f"this key appears twice; first on line {first}", "keep one of them")
                continue
            self._note(here, key, value)
            out[name] = self.value(value, here)
        return out

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        value: Any
        if kind in ("str", "timestamp"):  # `2024-05-01` stays text
            value = node.value
        elif kind in ("int", "float") and len(node.value) > _MAX_NUMBER:
            self._problem(node, path, f"this number has more than {_MAX_NUMBER} characters")
            return None
        elif kind in ("null", "bool", "int", "float"):
            try:
                value = self._constructor.construct_object(node)
            except (ValueError, KeyError, OverflowError, yaml.YAMLError):
                self._problem(node, path, "this number cannot be read")
                return None
            if isinstance(value, float) and not math.isfinite(value):
                self._problem(node, path, "infinity and NaN are not allowed")
                return None
        elif kind == "value":  # a lone `=`
            value = node.value
        else:
            return self._tagged(node, path)
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                self._problem(node, path, "a lone surrogate is not a valid character")
                return None
        return value

    def _tagged(self, node: yaml.Node, path: KeyPath) -> None:
        self._problem(
            node, path, f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not allowed", "remove it"
        )
