"""Parses JSON strictly by RFC 8259, with limits on depth and number of values.

Python's parser accepts `NaN`, keeps the last of two equal keys, turns `1e999` into infinity, leaves lone
surrogates in a text and may raise RecursionError. Each of these would cause errors later.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 100
"""Maximum nesting depth; serializing deeper values would hit the recursion limit of the interpreter."""

MAX_VALUES = 50_000
"""Maximum number of values; in memory `[]` takes 30 times its three bytes."""

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class BadJson(ValueError):
    """The text is not acceptable JSON.

    Args:
        message: What is wrong.
        column: 1-based position of the error in the text, if known.
        truncated: Whether the text ends early.
    """

    def __init__(self, message: str, *, column: int | None = None, truncated: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.column = column
        self.truncated = truncated


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadJson(f"the key {_short(key)} appears twice in one object")
            seen.add(key)
    return out


def _constant(name: str) -> NoReturn:
    raise BadJson(f"{name} is not a JSON value; write null or a number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadJson(f"the number {_short(text)} is too large")
    return value


def _short(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:40] + "…", ensure_ascii=True)


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        BadJson: the text is not acceptable JSON; no other exception is raised.
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise BadJson(f"nested more than {MAX_DEPTH} levels deep")
    if _separators(text) >= MAX_VALUES and _values(_STRING.sub("", text)) > MAX_VALUES:
        raise BadJson(f"the JSON has more than {MAX_VALUES:,} values")
    try:
        value = _DECODER.decode(text)
    except BadJson:
        raise
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        truncated = not rest or error.msg.startswith("Unterminated string")
        what = "the JSON ends too early" if truncated else error.msg[:1].lower() + error.msg[1:]
        raise BadJson(what, column=error.pos + 1, truncated=truncated) from None
    except RecursionError:
        raise BadJson(f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError:  # CPython refuses to convert more than 4300 digits
        raise BadJson("a number has too many digits") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadJson("a lone surrogate (\\ud800 to \\udfff) is not a valid character") from None
    return value


def _separators(text: str) -> int:
    """Return an upper bound of the number of values minus one."""
    return text.count(",") + text.count("[") + text.count("{")


def _values(text: str) -> int:
    """Count the values in a text without strings: one after each comma and in each non-empty list."""
    return 1 + _separators(text) - text.count("[]") - text.count("{}")


def _depth(text: str) -> int:
    """Return the deepest nesting of brackets outside of strings; only called for texts with many brackets."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', text, re.DOTALL):
        first = token.group()[0]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
    return deepest


def canonical(value: Any) -> str:
    """Serialize a value canonically: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
