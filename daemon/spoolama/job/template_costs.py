"""What a prompt template may cost: a budget of characters and turns, and what is charged to it.

What may be much longer than what it is made of is charged before it is made: afterwards the memory is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import do_wordwrap, make_attrgetter

__all__ = [
    "BEFORE",
    "bits",
    "budget",
    "charge_inside",
    "charge_percent",
    "kept",
    "size",
    "spend",
    "summed",
    "wordwrapped",
]

_SHARE = 4
"""Text that is only passed on costs the so-manieth part of its characters; printed, it costs them all."""

_FREE = 16
"""... and of a text in a list so many are free: its place in the list is charged already."""

_PER_CONVERSION = 16
"""What each `%d` costs: one of a float may have 309 digits."""

_COPIED = 1024
"""So many items or so many times 16 characters are copied in the time of one turn."""

_CONVERSION = re.compile(r"[-+ #0]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?[hlL]?(.?)", re.DOTALL)
"""What stands behind the `%` and its key: flags, width, precision, type."""

_BRACKET = re.compile(r"[()]")


class _Budget:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise SecurityError(f"the template makes too much text or too many turns (limit {self.limit})")


_current: ContextVar[_Budget] = ContextVar("template_budget")


@contextmanager
def budget(limit: int) -> Iterator[None]:
    """Give the rendering inside this block so many characters and turns."""
    token = _current.set(_Budget(limit))
    try:
        yield
    finally:
        _current.reset(token)


def spend(cost: int) -> None:
    """Charge so much to the budget.

    Raises:
        SecurityError: there is not so much left.
    """
    _current.get().spend(cost)


def charge_inside(value: Any) -> None:
    """Charge for what is inside of lists: a few that hold one another may stand for billions of items."""
    waiting = [value]
    if isinstance(value, str):
        spend(len(value) // 16)
        waiting = []
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            spend(len(item))
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            spend(len(item))
            waiting.extend(item)
        elif isinstance(item, str):
            spend(max(0, len(item) - _FREE) // _SHARE)
        elif isinstance(item, int):
            spend(max(0, bits(item) - 64) // (3 * _SHARE))  # three bits a digit


def size(value: Any) -> int:
    """Characters or items; 0 of what has neither."""
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def kept(value: Any) -> Any:
    """Charge for a value that was made and may be kept: an item of a list takes far more than a character."""
    spend(size(value) // (16 if isinstance(value, str) else 2))
    return value


def bits(value: int) -> int:
    """The length of a whole number, whatever its sign."""
    return abs(value).bit_length()


def charge_percent(form: str, values: Any) -> None:
    """Charge for `form % values` before it is made; a key that is used many times is charged each time.

    Raises:
        SecurityError: a width or precision has more than three digits: `%999999999d` is a gigabyte.
    """
    spend(len(form) // 16)
    in_order = not isinstance(values, Mapping)
    for key, width, precision in _conversions(form):
        if "*" in (width, precision) or max(len(width), len(precision)) > 3:
            raise SecurityError("a width in a % format is too large")
        spend(_PER_CONVERSION + (int(width or 0) + int(precision or 0)) // _SHARE)
        if key is None:
            in_order = True
        elif isinstance(values, Mapping) and key in values:
            charge_inside([values[key]])
    if in_order:
        charge_inside(values)


def _conversions(form: str) -> Iterator[tuple[str | None, str, str]]:
    """Key, width and precision of each conversion in a `%` format, by Python's own reading of it."""
    at = form.find("%")
    while at >= 0:
        at += 1
        key = None
        if form.startswith("(", at):
            end = _closing(form, at)
            if end is None:
                return  # Python refuses it here
            key, at = form[at + 1 : end - 1], end
        found = _CONVERSION.match(form, at)
        assert found is not None  # it matches the empty text
        width, precision, kind = found.groups(default="")
        if kind != "%":
            yield key, width, precision
        at = form.find("%", found.end())


def _closing(form: str, at: int) -> int | None:
    depth = 0
    for bracket in _BRACKET.finditer(form, at):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return bracket.end()
    return None


def _charge_format(form: Any, *values: Any, **named: Any) -> None:
    charge_percent(str(form), named or values)


def _charge_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    lines = len(str(text).splitlines()) + 1
    spend(lines * _indentation(width) // _SHARE)


def _charge_tojson(value: Any, indent: Any = None) -> None:
    """With an indentation each item begins a line, indented by its depth."""
    step = 0 if indent is None else _indentation(indent)
    if not step:
        return
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        inside = list(item.values()) if isinstance(item, Mapping) else item
        if isinstance(inside, list | tuple):
            spend((len(inside) + 1) * depth * step // _SHARE)
            waiting.extend((part, depth + 1) for part in inside)


def _indentation(width: Any) -> int:
    return len(width) if isinstance(width, str) else max(width, 0)


BEFORE: Mapping[str, Callable[..., None]] = {
    "format": _charge_format,
    "indent": _charge_indent,
    "tojson": _charge_tojson,
}
"""Filters whose result may be much longer than what they are given, and what charges for it beforehand."""


@pass_environment
def wordwrapped(
    environment: Environment,
    text: Any,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> str:
    """Jinja2's, with the text between the lines set in only when it is known how many there are."""
    text = str(text)
    longest = max(map(len, text.split()), default=0)  # of a long word the rest is copied for each line
    spend(longest * longest // (max(width, 1) * 16 * _COPIED))
    wrapped = do_wordwrap(environment, text, width, break_long_words, "\n", break_on_hyphens)
    if wrapstring is None:
        return wrapped
    spend(wrapped.count("\n") * len(wrapstring) // _SHARE)
    return wrapped.replace("\n", str(wrapstring))


@pass_environment
def summed(environment: Environment, items: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Jinja2's; where the items are lists, each turn copies all before it."""
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    return sum(_growing(items), start)


def _growing(items: Iterable[Any]) -> Iterator[Any]:
    length = 0
    for item in items:
        length += size(item)
        spend(length // _COPIED)
        yield item
