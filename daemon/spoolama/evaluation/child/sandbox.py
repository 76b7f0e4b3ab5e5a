"""Provides the sandboxed Jinja2 environment of prompts and scores, whose results depend only on the fields.

Jinja2's sandbox keeps a template away from the Python interpreter. Time and memory are not limited here but
by the process that evaluates the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Environment, StrictUndefined, Undefined, nodes, pass_environment
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.filters import do_wordwrap, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["FieldUndefinedError", "SandboxEnvironment"]

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
"""Deterministic filters; Jinja2's `random`, for example, is excluded."""


class FieldUndefinedError(UndefinedError):
    """A template uses a name that does not exist.

    Args:
        name: The name.
        of: The value in which it was looked up; None: the row.
    """

    def __init__(self, message: str | None = None, *, name: str | None = None, of: object = None) -> None:
        super().__init__(message)
        self.name = name
        self.of = of


class _Missing(StrictUndefined):
    """StrictUndefined that stores the missing name in its exception."""

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
    """Format a value for a prompt: text unchanged, null as nothing, everything else as JSON."""
    if isinstance(value, Undefined):
        return value  # its __str__ raises
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # its text would contain a memory address, which differs between runs
        raise SecurityError(f"a {type(value).__name__} cannot be printed; add | list or | join") from None


def _concat(parts: list[Any]) -> str:
    return "".join([str(_printed(part)) for part in parts])


@pass_environment
def _join(environment: Environment, items: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    return str(d).join([str(_printed(item)) for item in items])


@pass_environment
def _wordwrap(environment: Environment, text: Any, *args: Any, **kwargs: Any) -> str:
    return do_wordwrap(environment, str(text), *args, **kwargs)  # Jinja2's takes text only


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """Jinja2 for prompts: no loaders, undefined names are errors, values are printed as JSON."""

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
        self.filters = {name: function for name, function in self.filters.items() if name in _FILTERS}
        self.filters |= {"join": _join, "wordwrap": _wordwrap, "_concat": _concat}
        self.globals = {
            key: value for key, value in self.globals.items() if key in ("range", "dict", "namespace")
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
            for node in tree.find_all(kind):
                raise TemplateSyntaxError("a prompt cannot include other templates", node.lineno)
        return tree

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Templates and single expressions pass here: `a ~ b` prints its parts as `{{ a }}{{ b }}` does."""
        _replace_concat(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)


def _replace_concat(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _replace_concat(item)
                    value[place] = _as_filter(item)
        elif isinstance(value, nodes.Node):
            _replace_concat(value)
            setattr(node, field, _as_filter(value))


def _as_filter(node: nodes.Node) -> nodes.Node:
    if not isinstance(node, nodes.Concat):
        return node
    parts = nodes.List(node.nodes, lineno=node.lineno)
    return nodes.Filter(parts, "_concat", [], [], None, None, lineno=node.lineno)
