"""Renders prompts and computes scores with a sandboxed Jinja2, whose results depend only on the row.

Jinja2's sandbox keeps a template away from the Python interpreter. Time and memory are not limited here but
by the process that evaluates the template.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    Undefined,
    nodes,
    pass_environment,
)
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.filters import do_wordwrap, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spoolama.errors import RowError
from spoolama.job.strict_json import BadJson, parse_json

FILTERS = frozenset(
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
        self.filters = {name: function for name, function in self.filters.items() if name in FILTERS}
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


_MOST_BYTES = 1024 * 1024
"""Maximum size of a prompt in UTF-8 bytes."""

_ENVIRONMENT = SandboxEnvironment()


class TemplateProblem(ValueError):
    """The template cannot be compiled.

    Args:
        message: What is wrong.
        line: 1-based line of the template.
        hint: What to write instead, if known.
    """

    def __init__(self, message: str, line: int, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.hint = hint


class PromptTemplate:
    """A prompt template, compiled once.

    Fields are available by name and as `row["first name"]` for names that are not Jinja2 identifiers. Text is
    inserted unchanged, null as nothing, and numbers, booleans, lists and objects as JSON. A block tag on its
    own line adds no line to the prompt; the last newline of the template is not part of the prompt.

    Raises:
        TemplateProblem: the template cannot be compiled.
    """

    def __init__(self, source: str) -> None:
        try:
            self._template: Template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise _problem(error) from None
        except RecursionError:
            raise TemplateProblem("nested too deeply", 1) from None
        except (OverflowError, ValueError, SyntaxError) as error:
            raise TemplateProblem(f"too complicated: {error}", 1) from None
        except TemplateError as error:
            raise TemplateProblem(str(error), 1) from None

    def render(self, fields: Mapping[str, Any]) -> str:
        """Render the prompt of one row.

        Raises:
            RowError: `template_undefined`, `template_error`, `empty_prompt`.
        """
        try:
            text = self._template.render({"row": fields, **fields})
        except FieldUndefinedError as error:
            raise _undefined(error, fields) from None
        except MemoryError:  # reported by the caller
            raise
        except RecursionError:
            raise RowError("template_error", "the template has endless recursion") from None
        except Exception as error:  # a template may raise whatever its expressions raise
            what = str(error) or type(error).__name__
            raise RowError("template_error", f"the template fails on this row: {what[:300]}") from None
        if not text.strip():
            raise RowError("empty_prompt", "the template gives an empty prompt for this row")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise RowError(
                "template_error", "the prompt contains a lone surrogate, which is not valid text"
            ) from None
        if size > _MOST_BYTES:
            raise RowError("template_error", f"the prompt has {size:,} bytes; the limit is {_MOST_BYTES:,}")
        return text


def _problem(error: TemplateSyntaxError) -> TemplateProblem:
    message = (error.message or "syntax error").rstrip(".")
    hint = None
    if message.startswith("No filter named '"):
        wanted = message.split("'")[1]
        close = difflib.get_close_matches(
            wanted, [name for name in _ENVIRONMENT.filters if name[0] != "_"], n=1
        )
        message = f"there is no filter {wanted!r}"
        hint = f"did you mean {close[0]!r}?" if close else None
    elif "end of print statement" in message or "unexpected '}'" in message:
        hint = "put a field in double braces: {{ name }}, or {{ row['first name'] }} for other names"
    return TemplateProblem(message, error.lineno, hint)


def _undefined(error: FieldUndefinedError, fields: Mapping[str, Any]) -> RowError:
    name = error.name
    if name is None:
        return RowError("template_undefined", error.message or "the template uses an undefined value")
    inside = error.of is not None and error.of != fields
    there: list[str] = [
        str(key) for key in (error.of if isinstance(error.of, dict) else () if inside else fields)
    ]
    close = difflib.get_close_matches(name, there, n=1)
    message = f"the template uses {name!r}, which " + ("the value it is taken from" if inside else "the row")
    message += " does not have"
    if close:
        message += f"; did you mean {close[0]!r}?"
    if there:
        message += f"{'' if close else '.'} It has: {', '.join(there[:30])}" + (
            ", …" if len(there) > 30 else ""
        )
    return RowError("template_undefined", message, details={"field": name})


_MOST_CHARACTERS = 2000


class ScoreProblem(ValueError):
    """The expression cannot be compiled; the message has the reason."""


class Score:
    """An expression, compiled once.

    Raises:
        ScoreProblem: it cannot be compiled.
    """

    def __init__(self, expression: str) -> None:
        if len(expression) > _MOST_CHARACTERS:
            raise ScoreProblem(f"is longer than {_MOST_CHARACTERS} characters")
        self._run: Callable[..., Any]
        try:
            self._run = _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)
        except (TemplateError, RecursionError, ValueError, SyntaxError) as error:
            raise ScoreProblem(f"cannot be read as an expression: {error}") from None

    def of(self, fields: Mapping[str, Any], answer: str) -> float:
        """Return the score of a row: a higher number is more important; true counts as 1.

        If the expression fails on this row or returns no number, the score is minus infinity: a trim drops
        such a row first.

        Args:
            fields: The row's fields, available by name and as `row`.
            answer: The text of the answer; if it is JSON, `answer` in the expression is the parsed value.
        """
        try:
            value: Any = parse_json(answer)
        except BadJson:
            value = answer
        try:
            number = float(self._run({**fields, "row": dict(fields), "answer": value}))
        except MemoryError:  # reported by the caller
            raise
        except Exception:  # an expression may raise anything on a row
            return -math.inf
        return -math.inf if math.isnan(number) else number
