"""The sandbox in which prompt templates run: a pure function of the fields, of bounded cost.

Jinja2's sandbox keeps a template away from Python.
It does not keep it from taking all memory or all time, and some of its helpers are random.
So here every loop turn, call and printed character is charged to a budget, and only those filters and text
methods are there whose cost and result follow from what they are given.
What each of them costs stands in `template_costs.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import StrictUndefined, Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spoolama.job.template_costs import (
    BEFORE,
    bits,
    budget,
    charge_inside,
    charge_percent,
    kept,
    size,
    spend,
    summed,
    wordwrapped,
)

__all__ = ["FieldUndefinedError", "SandboxEnvironment", "budget"]

_FILTERS = frozenset(
    re.findall(
        r"\w+",
        """
        abs capitalize count d default dictsort first float format groupby indent int items join last length
        list lower map max min reject rejectattr replace reverse round select selectattr sort string striptags
        sum title tojson trim truncate unique upper urlencode wordcount wordwrap
        """,
    )
)

_TEXT_METHODS = frozenset(
    re.findall(
        r"\w+",
        """
        capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower
        isnumeric isspace istitle isupper lower lstrip partition removeprefix removesuffix replace rfind
        rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
        """,
    )
)

_MAX_BITS = 4096
"""Whole numbers larger than this are not computed."""

_MAX_ARGUMENT = 10_000
"""Widths, precisions and indentations above this are refused."""


class FieldUndefinedError(UndefinedError):
    """A template used something that is not there.

    Args:
        name: Its name.
        of: What it was looked for in; None: the row.
    """

    def __init__(self, message: str | None = None, *, name: str | None = None, of: object = None) -> None:
        super().__init__(message)
        self.name = name
        self.of = of


class _Missing(StrictUndefined):
    """StrictUndefined that remembers in its exception what was missing."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = None,
        name: str | None = None,
        exc: Callable[[str], Exception] = UndefinedError,
    ) -> None:
        if exc is UndefinedError:
            of = obj if isinstance(obj, str | int | float | list | dict | type(None)) else None

            def exc(message: str) -> Exception:
                return FieldUndefinedError(message, name=name, of=of)

        super().__init__(hint, obj, name, exc)  # type: ignore[arg-type]  # only ever called


def _printed(value: Any) -> Any:
    """How a value stands in a prompt: text as it is, null as nothing, everything else as JSON spells it."""
    if isinstance(value, Undefined):
        return value  # its __str__ raises
    if value is None:
        return ""
    if not isinstance(value, str):
        charge_inside(value)
        try:
            value = json.dumps(value, ensure_ascii=False)
        except TypeError:  # its spelling would hold a memory address, and differ from run to run
            raise SecurityError(
                f"{type(value).__name__} is no value to print; add | list or | join"
            ) from None
    spend(len(value))
    return value


def _charged(items: Iterable[Any], cost: int) -> Iterator[Any]:
    for item in items:
        spend(cost)
        yield item


def _loop_items(items: Any, cost: int) -> Any:
    """What a for loop goes over. A sized thing stays sized, so that `loop.length` can be had."""
    if isinstance(items, Undefined):
        return items
    if isinstance(items, Mapping):
        items = list(items)
    if isinstance(items, str | list | tuple | range):
        spend(cost * len(items))
        return items
    return _charged(items, cost)


def _concat(parts: list[Any]) -> str:
    return "".join([str(_printed(part)) for part in parts])


def _join(items: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = [item[attribute] for item in items]
    texts = [str(_printed(item)) for item in items]
    spend(len(str(d)) * len(texts))
    return str(d).join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    spend(len(text) + text.count(old) * len(new))
    replaced: str = text.replace(old, new, count)
    return replaced


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """Jinja2 for prompts: no loaders, strict undefined, charged by the turn and the character."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            undefined=_Missing,
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            newline_sequence="\n",
            finalize=_printed,
            cache_size=0,
        )
        filters = {**self.filters, "wordwrap": wordwrapped, "sum": summed}
        self.filters = {name: self._bounded(name, f) for name, f in filters.items() if name in _FILTERS}
        self.filters |= {"join": _join, "replace": _replace}
        self.filters |= {"_concat": _concat, "_loop": _loop_items, "_kept": kept}
        self.globals = {
            key: value for key, value in self.globals.items() if key in ("range", "dict", "namespace")
        }

    @staticmethod
    def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, refusing large numbers for widths and the like, and charged for what it may make."""
        subject_at = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            for value in (*args[subject_at:], *kwargs.values()):
                spend(1)
                charge_inside(value)
            for value in (*args[subject_at + 1 :], *kwargs.values()):
                if (
                    isinstance(value, int)
                    and abs(value) > _MAX_ARGUMENT
                    and name not in ("d", "default", "sum")
                ):
                    raise SecurityError(f"{value} is too large for the filter {name}")
            if name in BEFORE:
                BEFORE[name](*args[subject_at:], **kwargs)
            result = kept(function(*args, **kwargs))
            if name == "int" and isinstance(result, int) and bits(result) > _MAX_BITS:
                raise SecurityError("a number is too large")
            return result

        return bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
            for node in tree.find_all(kind):
                raise TemplateSyntaxError("a prompt stands alone: it cannot include others", node.lineno)
        return tree

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Templates and single expressions alike come through here: what cannot be intercepted is charged."""
        for loop in list(source.find_all(nodes.For)):
            text = sum(len(data.data) for part in loop.body for data in _data(part))
            cost = nodes.Const(1 + text)
            loop.iter = nodes.Filter(loop.iter, "_loop", [cost], [], None, None, lineno=loop.lineno)
        _wrap_uncharged(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """`"{:>999999999}".format(x)` is a gigabyte: as a text's method, `format` is refused like others."""

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja2's names
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and getattr(__obj, "__name__", "") == "replace":
            return _replace(owner, *args, **kwargs)
        # What a macro prints as constant text is not charged by the character, so a call is not cheap.
        spend(64 + (size(owner) >> 4))
        return kept(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if isinstance(left, str):
                charge_percent(str(left), right)
        elif operator == "+":
            spend(size(left) + size(right))
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(times, int) and size(sized):
                    spend(size(sized) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int) and bits(left) + bits(right) > _MAX_BITS:
                raise SecurityError("a product is too large")
        elif isinstance(left, int) and isinstance(right, int) and bits(left) * max(right, 0) > _MAX_BITS:
            raise SecurityError("a power is too large")
        return super().call_binop(context, operator, left, right)


def _data(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


def _wrap_uncharged(node: nodes.Node) -> None:
    """Turn each `a ~ b` and `a[1:]` into a call that is charged: neither can be intercepted."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _wrap_uncharged(item)
                    value[place] = _charged_node(item)
        elif isinstance(value, nodes.Node):
            _wrap_uncharged(value)
            setattr(node, field, _charged_node(value))


def _charged_node(node: nodes.Node) -> nodes.Node:
    if isinstance(node, nodes.Concat):
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concat", [], [], None, None, lineno=node.lineno)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return nodes.Filter(node, "_kept", [], [], None, None, lineno=node.lineno)
    return node
