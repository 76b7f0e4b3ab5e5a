"""Prompt templates: what they print, what they refuse, what they may cost."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import pytest

from spoolama.errors import RowError
from spoolama.job.prompt import PromptTemplate, TemplateProblem
from spoolama.job.score import score_of

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
    """Text as it is, null as nothing, the rest as JSON; newlines where they are written."""
    assert PromptTemplate(source).render(FIELDS) == expected


def test_an_undefined_field_is_named_with_what_there_is() -> None:
    """The message helps to mend the template or the file."""
    with pytest.raises(RowError) as caught:
        PromptTemplate("{{ nmae }}").render({"name": "Ann", "years": "3"})

    assert caught.value.code == "template_undefined"
    assert caught.value.details == {"field": "nmae"}
    assert caught.value.message == (
        "the template uses 'nmae', which the row does not have; did you mean 'name'? There are: name, years"
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
    """Each is that row's error; what has a memory address in it or touches Python is refused."""
    with pytest.raises(RowError) as caught:
        PromptTemplate(source).render(FIELDS)

    assert caught.value.code == code


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 2 ** 4000 * 2 ** 4000 * 2 ** 4000 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
        "{% for i in list * 9999 %}{% for j in list * 9999 %}{% endfor %}{% endfor %}",
        "{% set a = [1] * 9999 %}{% set b = [a] * 9999 %}{{ b | sum(start=[]) | length }}",
        "{% set a = [1] * 9999 %}{% set b = [a] * 9999 %}{{ [b] * 999 }}",
        "{% set a = [1] * 9999 %}{% set b = [a] * 9999 %}{{ '%s' % ([b] * 999) }}",
        "{% set a = [1] * 9999 %}{% set b = [a] * 9999 %}{{ ([b] * 999) | string }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x'.center(999999999) }}",
        "{{ 'x\\n' | indent(999999999) }}",
        "{{ object | tojson(indent=999999999) }}",
        "{% set n = namespace(s='aaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}x",
        "{% set n = namespace(s='aaaaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}x",
        "{% set s = 'aaaaaaaaaaaaaaaa' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 40,
        "{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}",
        "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
        "{{ range(99999) | list | join('x' * 99999) }}",
        "{{ ([[1]] * 300000) | sum(start=[]) | length }}",
        "{{ ('a' * 900000) | wordwrap(1) | length }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_no_template_takes_the_service_down(source: str) -> None:
    """What would take all memory or all time ends as that row's error, soon."""
    began = time.process_time()  # not the clock on the wall: others may have the cores

    with pytest.raises(RowError) as caught:
        PromptTemplate(source).render(FIELDS)

    assert caught.value.code == "template_error"
    assert time.process_time() - began < 10


ALLOCATING = [
    "{{ '%(a)100000000d' % {'a': 1} }}",
    "{{ '%(a(b))100000000d' | format(**{'a(b)': 1}) }}",
    "{{ (('%(a)s' * 2000) % {'a': 'x' * 100000}) | length }}",
    "{{ (('%(a)s' * 2000) | format(a='x' * 100000)) | length }}",
    "{{ (('%(a)999d' * 100000) % {'a': 1}) | length }}",
    "{{ (('%(a)d' * 150000) % {'a': 2 ** 2000}) | length }}",
    "{{ ('\n' * 20000) | indent(10000, blank=true) | length }}",
    "{{ ('a\n' * 20000) | indent('x' * 10000) | length }}",
    "{{ ('a b ' * 4000) | wordwrap(1, true, 'x' * 20000) | length }}",
    "{{ ([1] * 20000) | tojson(indent=10000) | length }}",
    "{{ ([1] * 2000) | tojson(indent='x' * 100000) | length }}",
    "{{ (['😀' * 1000] * 14000) | tojson | length }}",
    "{% set k = 'x' * 50000 %}{{ [{k: 1}] * 2000 }}",
    "{{ [2 ** 2000] * 200000 }}",
    "{% set a = 'x' * 400000 %}{% set n = namespace(l=[]) %}"
    "{% for i in range(1000) %}{% set n.l = n.l + [a[1:]] %}{% endfor %}{{ n.l | length }}",
]


@pytest.mark.parametrize("source", ALLOCATING)
def test_memory_is_charged_for_before_it_is_taken(source: str) -> None:
    """A result a hundred times as long as its parts is refused while it is still not there."""
    template = PromptTemplate(source)
    tracemalloc.start()
    try:
        with pytest.raises(RowError) as caught:
            template.render(FIELDS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert caught.value.code == "template_error"
    assert peak < 32 * 1024 * 1024


@pytest.mark.parametrize(
    ("expression", "fields"),
    [
        ("'%(a)100000000d' % {'a': 1}", {}),
        ("(" + " ~ ".join(["text"] * 200) + ") > 'a'", {"text": "x" * 10000}),
    ],
)
def test_a_score_is_bounded_as_a_prompt_is(expression: str, fields: dict[str, Any]) -> None:
    """Long results are refused in the sidecar's expressions too, and the row is the least important."""
    assert score_of(expression, fields, "x") == -math.inf


@pytest.mark.parametrize(
    ("source", "line", "words", "hint"),
    [
        ("a\n{{ name }\nb", 2, "unexpected '}'", "two braces"),
        ("{{ first name }}", 1, "end of print statement", "row['first name']"),
        ("\n\n{{ name | uper }}", 3, "no filter 'uper'", "'upper'"),
        ("{{ list | random }}", 1, "no filter 'random'", None),
        ("{% if name %}", 1, "end of template", None),
        ("{% include 'other' %}", 1, "stands alone", None),
        ("{{ '" + "(" * 2000, 1, "", None),
        ("{{ " + "(" * 2000 + ")" * 2000 + " }}", 1, "too complicated", None),
    ],
)
def test_a_template_that_cannot_be_compiled(source: str, line: int, words: str, hint: str | None) -> None:
    """Line, reason, and what to write where that can be told."""
    with pytest.raises(TemplateProblem) as caught:
        PromptTemplate(source)

    assert caught.value.line == line
    assert words in caught.value.message
    assert (hint is None) == (caught.value.hint is None) or hint is None
    if hint is not None:
        assert hint in str(caught.value.hint)


def test_names_are_the_fields_that_no_row_can_do_without() -> None:
    """So that a template can be compared with a header before anything is sent."""
    source = (
        "{% set own = a %}{{ own }}{{ b | upper }}{{ c | default('') }}{{ row['d e'] }}"
        "{% if f is defined %}{{ f }}{% endif %}"
        "{% for x in g %}{{ x }}{{ loop.index }}{% endfor %}{{ range(2) | list }}"
    )

    assert PromptTemplate(source).names() == {"a", "b", "d e", "g"}
