"""Renders the prompt of a row with a Jinja2 template over its fields."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes

from spoolama.errors import RowError
from spoolama.evaluation.child.sandbox import FieldUndefinedError, SandboxEnvironment

__all__ = ["PromptTemplate", "TemplateProblem"]

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
            self._tree = _ENVIRONMENT.parse(source)
            self._template: Template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise _problem(error) from None
        except RecursionError:
            raise TemplateProblem("nested too deeply", 1) from None
        except (OverflowError, ValueError, SyntaxError) as error:
            raise TemplateProblem(f"too complicated: {error}", 1) from None
        except TemplateError as error:
            raise TemplateProblem(str(error), 1) from None

    def names(self) -> set[str]:
        """Return the fields that every row must have.

        This excludes names that are tested (`is defined`), have a default, or are set by the template.
        """
        names = {
            name for name in meta.find_undeclared_variables(self._tree) if name not in _ENVIRONMENT.globals
        }
        if "row" in names:
            names.discard("row")
            names |= {name for name in map(_of_row, self._tree.find_all(nodes.Getitem)) if name is not None}
        return names - set(_guarded(self._tree))

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


def _of_row(node: nodes.Getitem) -> str | None:
    if isinstance(node.node, nodes.Name) and node.node.name == "row" and isinstance(node.arg, nodes.Const):
        return node.arg.value if isinstance(node.arg.value, str) else None
    return None


def _guarded(tree: nodes.Template) -> list[str]:
    """Return the names that may be missing: those tested with `is defined`, or with a default."""
    guards: list[nodes.Node | None] = [
        t.node for t in tree.find_all(nodes.Test) if t.name in ("defined", "undefined")
    ]
    guards += [f.node for f in tree.find_all(nodes.Filter) if f.name in ("default", "d")]
    out: list[str] = []
    for node in guards:
        if isinstance(node, nodes.Name):
            out.append(node.name)
        elif isinstance(node, nodes.Getitem) and (name := _of_row(node)) is not None:
            out.append(name)
    return out


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
