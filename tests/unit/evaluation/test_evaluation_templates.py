"""Prompt templates: what they print and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from spoolama.errors import RowError
from spoolama.evaluation.child.templates import PromptTemplate, TemplateProblem

FIELDS: dict[str, Any] = {
    "name": "Ann <b>",
    "years": "3",
    "first name": "A",
    "list": ["b", "é"],
    "number": 1.5,
    "yes": True,
    "object": {"x": 1, "y": None},
    "nothing": None,
    "items": "a column",
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ name }}, {{ years }} years.\n", "Ann <b>, 3 years."),
        ("a\n\n{{ years }}\n\n", "a\n\n3\n"),
        ("a\r\n{{ years }}\r\n", "a\n3"),
        ("{% if years %}\n{{ years }}\n{% endif %}\nend\n", "3\nend"),
        ("{% for x in list %}\n- {{ x }} {{ loop.index }}/{{ loop.length }}\n{% endfor %}",
         "- b 1/2\n- é 2/2\n"),
        ("{{ row['first name'] }}{{ items }}", "Aa column"),
        ("{{ number }} {{ yes }} {{ list }} {{ object }} [{{ nothing }}]",
         '1.5 true ["b", "é"] {"x": 1, "y": null} []'),
        ("{{ missing | default('x') }}{{ 'y' if other is defined else 'z' }}", "xz"),
        ("{{ name ~ years }} {{ list | join(', ') }} {{ list | map('upper') | list }}",
         'Ann <b>3 b, é ["B", "É"]'),
        ("{{ name.split()[0] | upper }} {{ 2 * 3 + 1 }} {{ 'a' * 3 }} {{ '%s!' % years }}", "ANN 7 aaa 3!"),
        ("{{ object | tojson }} {{ number | round(0) | int }} {{ name | replace('n', 'm') }}",
         '{"x": 1, "y": null} 2 Amm <b>'),
        ("{{ '%(x)5.2f%% %(y)s' % object }}{{ '|%-3s|' | format('a') }}", " 1.00% None|a  |"),
        ("{{ 'a bb ccc' | wordwrap(4, true, '/') }} {{ 'a bb\nccc' | wordwrap(4) }}", "a bb/ccc a bb\nccc"),
        ("{{ 'a\n\nb' | indent(2) }}{{ 'a\nb' | indent('> ', true) }}", "a\n\n  b> a\n> b"),
        ("{{ object | tojson(indent=1) }}", '{\n "x": 1,\n "y": null\n}'),
        ("{{ [[1], [2]] | sum(start=[]) }} {{ [object] | sum(attribute='x') }} {{ name[1:3] }}",
         "[1, 2] 1 nn"),
    ],
)  # fmt: skip
def test_what_a_template_prints(source: str, expected: str) -> None:
    """Text is printed unchanged, null as nothing, other values as JSON, and newlines as written."""
    assert PromptTemplate(source).render(FIELDS) == expected


def test_an_undefined_field_is_reported_with_the_existing_ones() -> None:
    """The message names the missing field and the existing ones."""
    with pytest.raises(RowError) as caught:
        PromptTemplate("{{ nmae }}").render({"name": "Ann", "years": "3"})

    assert caught.value.code == "template_undefined"
    assert caught.value.details == {"field": "nmae"}
    assert caught.value.message == (
        "the template uses 'nmae', which the row does not have; did you mean 'name'? It has: name, years"
    )


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{{ object.z }}", "template_undefined"),
        ("{{ row['last name'] }}", "template_undefined"),
        ("{{ lipsum() }}", "template_undefined"),
        ("{{ 1 / 0 }}", "template_error"),
        ("{{ years + 1 }}", "template_error"),
        ("{{ ''.__class__.__mro__ }}", "template_error"),
        ("{{ object.update({'a': 1}) }}", "template_error"),
        ("{{ list | map('upper') }}", "template_error"),
        ("  \n{# nothing #}\n", "empty_prompt"),
        ("{{ nothing }}", "empty_prompt"),
    ],
)
def test_a_row_that_cannot_be_rendered(source: str, code: str) -> None:
    """A value that prints a memory address or a template that touches Python fails its row."""
    with pytest.raises(RowError) as caught:
        PromptTemplate(source).render(FIELDS)

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("source", "line", "words", "hint"),
    [
        ("a\n{{ name }\nb", 2, "unexpected '}'", "double braces"),
        ("{{ first name }}", 1, "end of print statement", "row['first name']"),
        ("\n\n{{ name | uper }}", 3, "no filter 'uper'", "'upper'"),
        ("{{ list | random }}", 1, "no filter 'random'", None),
        ("{% if name %}", 1, "end of template", None),
        ("{% include 'other' %}", 1, "cannot include", None),
        ("{{ '" + "(" * 2000, 1, "", None),
        ("{{ " + "(" * 2000 + ")" * 2000 + " }}", 1, "nested too deeply", None),
    ],
)
def test_a_template_that_cannot_be_compiled(source: str, line: int, words: str, hint: str | None) -> None:
    """The error has the line, the reason and, if possible, what to write."""
    with pytest.raises(TemplateProblem) as caught:
        PromptTemplate(source)

    assert caught.value.line == line
    assert words in caught.value.message
    assert (hint is None) == (caught.value.hint is None)
    assert (hint or "") in (caught.value.hint or "")


def test_a_prompt_has_at_most_1_mb_of_text() -> None:
    """The limit of 1 MB counts bytes, so a character may count four."""
    template = PromptTemplate("{{ name }}")
    assert len(template.render({"name": "é" * 524_288})) == 524_288
    with pytest.raises(RowError, match="the prompt has 1,048,578 bytes; the limit is 1,048,576"):
        template.render({"name": "é" * 524_289})
