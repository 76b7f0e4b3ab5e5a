"""JSON as RFC 8259 has it, read so that no input can do harm.

Python's own reader takes `NaN`, keeps the last of two equal keys, turns `1e999` into infinity, leaves half of
a surrogate pair in a text and may end in RecursionError: each would break something later and far away.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

__all__ = ["BadJson", "canonical", "parse_json"]

MAX_DEPTH = 100
"""Deeper nesting is refused: writing it out again would run into the interpreter's own bound."""

MAX_VALUES = 50_000
"""More values are refused: in memory `[]` takes 30 times its three bytes."""

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class BadJson(ValueError):
    """The text is not acceptable JSON.

    Args:
        message: What is wrong, in words.
        column: 1-based character of the text where it shows, where known.
        truncated: Whether the text just stops.
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
    """The value that the text stands for.

    Raises:
        BadJson: and nothing else, whatever the text.
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
            raise BadJson(
                "half of a surrogate pair (\\ud800 to \\udfff) stands alone: it is no character"
            ) from None
    return value


def _separators(text: str) -> int:
    """At least the number of values, less one."""
    return text.count(",") + text.count("[") + text.count("{")


def _values(text: str) -> int:
    """The number of values in a text without strings: one behind each comma and in each list with items."""
    return 1 + _separators(text) - text.count("[]") - text.count("{}")


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside of strings; texts with many brackets only."""
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
    """One spelling for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
