"""JSONL and OpenAI batch lines: each line or its error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolama.job.row import NOTE_KEY, Row
from spoolama.job.rows.data_file import InputKind, detect, read_rows
from spoolama.job.rows.reader import RowLimits
from spoolama.job.strict_json import BadJson, parse_json
from support.thorough import cases

JSONL = InputKind("jsonl", None)
REQUEST = {
    "custom_id": "r1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def rows_of(tmp_path: Path, data: bytes, limits: RowLimits | None = None) -> list[Row]:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    return list(read_rows(path, detect(path, path.name), limits=limits))


def test_lines_and_blanks(tmp_path: Path) -> None:
    """Blank lines are not rows but count as lines."""
    rows = rows_of(tmp_path, b'\xef\xbb\xbf\n{"a": 1}\r\n  \n{"a": [null, "\xc3\xa9"]}')

    assert [(r.ordinal, r.line, r.fields, r.raw) for r in rows] == [
        (0, 2, {"a": 1}, b'{"a": 1}'),
        (1, 4, {"a": [None, "é"]}, b'{"a": [null, "\xc3\xa9"]}'),
    ]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b'{"a": 1,, "b": 2}', "bad_json", "(column 9)"),
        (b"{'a': 1}", "bad_json", "property name"),
        (b'{"a": 1', "bad_json", "ends too early (column 8)"),
        (b'{"a": "some te', "bad_json", "ends too early (column 7)"),
        (b'{"a": 1} {"b": 2}', "bad_json", "extra data (column 10)"),
        (b'{"a": 1}garbage', "bad_json", "extra data"),
        (b"a,b,c", "bad_json", "expecting value (column 1)"),
        (b"[1, 2]", "wrong_type", "a list"),
        (b'"text"', "wrong_type", "text"),
        (b"17", "wrong_type", "a number"),
        (b"null", "wrong_type", "null"),
        (b'{"a": 1, "a": 2}', "bad_json", '"a" appears twice'),
        (b'{"x": {"a": 1, "a": 2}}', "bad_json", '"a" appears twice'),
        (b'{"a": NaN}', "bad_json", "NaN"),
        (b'{"a": -Infinity}', "bad_json", "-Infinity"),
        (b'{"a": 1e999}', "bad_json", "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad_json", "too many digits"),
        (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "bad_json", "levels deep"),
        (b'{"a": ' + b"[" * 100_000, "bad_json", "levels deep"),
        (b'{"a":' * 50_000, "bad_json", "levels deep"),
        (b'{"a": "\\ud83d"}', "bad_json", "surrogate"),
        (b'{"a": "\xff"}', "bad_encoding", "byte 7 of the record (0xff)"),
        (b'{"a": "tab\there"}', "bad_json", "control character"),
        (b'{"a": 1}\0', "bad_json", ""),
        (b'{"a": "' + b"x" * 300_000 + b'"}', "cell_too_large", "the value of a has 300000 bytes"),
        (b'{"a": [' + b"1234567890," * 30_000 + b"1]}", "cell_too_large", "the value of a has"),
        (b'{"a": [' + b"[]," * 60_000 + b"1]}", "bad_json", "more than 50,000 values"),
        (b'{"a": "' + b"x" * 2_000_000 + b'"}', "line_too_large", "1048576"),
    ],
)
def test_a_broken_line_is_that_rows_fault(tmp_path: Path, line: bytes, code: str, words: str) -> None:
    """Any broken line costs one row, with its line number and a reason."""
    before, broken, after = rows_of(tmp_path, b'{"n": 1}\n' + line + b'\n{"n": 3}\n')

    assert (before.fields, after.fields) == ({"n": 1}, {"n": 3})
    assert broken.fault is not None
    assert (broken.line, broken.fields, broken.fault.code) == (2, None, code)
    assert words in broken.fault.message
    assert line.startswith(broken.raw)


def test_brackets_inside_of_texts_are_not_nesting() -> None:
    """Only real nesting is refused."""
    assert parse_json(json.dumps({"a": '[{\\"' * 500})) == {"a": '[{\\"' * 500}
    assert parse_json('"\\ud83d\\ude00"') == "😀"


def test_the_note_of_an_error_line_may_be_large(tmp_path: Path) -> None:
    """A line of errors.jsonl may contain all bytes of the row that could not be read."""
    (row,) = rows_of(tmp_path, json.dumps({"a": 1, NOTE_KEY: "x" * 90_000}).encode())

    assert row.fault is None


@given(st.text() | st.text(st.sampled_from('{}[]":,0eE+-.\\ua1ntf ')))
@settings(max_examples=cases(100, 500))
def test_parse_json_raises_nothing_else(text: str) -> None:
    """Text that Python's strict reader accepts is accepted, and any other raises BadJson."""
    try:
        value = parse_json(text)
    except BadJson:
        return
    assert value == json.loads(text)


@pytest.mark.parametrize(
    ("first", "form"),
    [
        (json.dumps(REQUEST), "openai"),
        ("\n{broken\n" + json.dumps(REQUEST), "openai"),
        (json.dumps({"custom_id": "r1", "body": {}}), "jsonl"),
        ("[1]\n{broken", "jsonl"),
        ("", "jsonl"),
    ],
)
def test_openai_is_recognised_by_the_first_readable_line(tmp_path: Path, first: str, form: str) -> None:
    """A line with all four keys is a request, also after a broken line."""
    path = tmp_path / "a.ndjson"
    path.write_text(first)

    assert detect(path, path.name).format == form


def test_openai_rows_have_their_own_name(tmp_path: Path) -> None:
    """The whole line is the row's fields, and `custom_id` is its name if it is text."""
    lines = [json.dumps(REQUEST), json.dumps({**REQUEST, "custom_id": 3}), json.dumps({"a": 1})]

    good, numbered, foreign = rows_of(tmp_path, "\n".join(lines).encode())

    assert (good.id, good.fault, good.fields) == ("r1", None, REQUEST)
    assert (numbered.id, foreign.id) == (None, None)
