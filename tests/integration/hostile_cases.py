"""Hostile inputs: the uploads and the messages that they must cause."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from support.thorough import cases

DATA = Path(__file__).parents[1] / "data" / "hostile"
MB = 1_000_000

Files = Callable[[], dict[str, bytes]]
"""Makes the files of an upload, by the suffix after the case's name."""


@dataclass(frozen=True, slots=True)
class Case:
    """A hostile upload."""

    name: str
    files: Files
    code: str
    """The code in error.json or of the first failed row; empty: every row is answered."""
    words: tuple[str, ...] = ()
    """Parts of its message."""
    answered: bool = False
    """Whether the model's answer is the hostile part, so that `check` finds nothing."""
    variant: bool = False
    """Whether another case hits the same limit in the same place; runs only with SPOOLAMA_THOROUGH=1."""

    @property
    def takes_seconds(self) -> bool:
        """Whether an evaluation computes until its time limit."""
        return any("took longer than" in words for words in self.words)

    def __str__(self) -> str:
        return self.name


def stored(name: str) -> Files:
    """A sidecar of tests/data/hostile with one row."""
    return lambda: {".yaml": (DATA / f"{name}.yaml").read_bytes(), ".csv": (DATA / "row.csv").read_bytes()}


def side(text: str, data: bytes = b"name\na\n", ending: str = ".csv") -> Files:
    """A sidecar with a model, and its data."""
    return lambda: {".yaml": f"model: m\n{text}".encode(), ending: data}


def prompt(template: str) -> Files:
    """One row with this template."""
    return side(f"mode: isolated\nprompt: {json.dumps(template)}\n")


def with_format(schema: dict[str, Any], answer: str) -> Files:
    """A job whose answer is checked against this schema; the model answers with the row's text."""
    made = {"model": "m", "mode": "isolated", "prompt": "{{ name }}", "format": schema}
    made["options"] = {"num_ctx": 500_000, "num_predict": 200_000}
    row = json.dumps({"name": answer}).encode() + b"\n"
    return lambda: {".yaml": json.dumps(made).encode(), ".jsonl": row}


def openai(schema: dict[str, Any], answer: str) -> Files:
    """One line of an OpenAI batch file with this response_format; the model answers with its message."""
    body = {
        "model": "m",
        "max_tokens": 200_000,
        "messages": [{"role": "user", "content": answer}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    }
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return lambda: {
        ".jsonl": json.dumps(line).encode() + b"\n",
        ".yaml": b"model: m\noptions: {num_ctx: 500000}\n",
    }


def doubling(levels: int) -> dict[str, Any]:
    """A schema of definitions, each of which refers to the next one twice."""
    defs: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{levels}": {"type": "object"}}}


def objects(number: int) -> list[dict[str, Any]]:
    """Different objects, which cannot be sorted, so that each is compared with each."""
    return [{"a": n, "b": [n]} for n in range(number)]


def gzip_bomb() -> dict[str, bytes]:
    """A gzip file of 1 MB: one line of 1 GB."""
    packed = gzip.compress(b"x" * (100 * MB), 1) * 10
    return {".csv.gz": gzip.compress(b"name\n") + packed, ".yaml": b"model: m\nprompt: '{{ name }}'\n"}


def zstd_bomb() -> dict[str, bytes]:
    """A zstd file of 3 MB: one line of 100 GB."""
    frame = zstandard.ZstdCompressor(level=1).compress(b"x" * (100 * MB))
    return {".jsonl.zst": frame * 1000, ".yaml": b"model: m\nprompt: '{{ name }}'\n"}


def blank_bomb(line: bytes = b"\n", megabytes: int = 100_000) -> dict[str, bytes]:
    """A zstd file of this many megabytes, which repeats one line."""
    frame = zstandard.ZstdCompressor(level=1).compress(line * (100 * MB // len(line)))
    return {".jsonl.zst": frame * (megabytes // 100), ".yaml": b"model: m\nprompt: '{{ name }}'\n"}


def long_lines(rows: int) -> bytes:
    """JSONL of 1 MB a line."""
    return (json.dumps({key: key * 250_000 for key in "abcd"}).encode() + b"\n") * rows


def nested(number: int) -> bytes:
    """A JSONL line with this many empty lists, which take 30 times their text in memory."""
    per_key = [[]] * (number // 4)  # type: ignore[var-annotated]
    return json.dumps(dict.fromkeys("abcd", per_key), separators=(",", ":")).encode() + b"\n"


SUMMARY = {"summary": "word " * 30 + "!"}
ANSWERS = {"sum up a": json.dumps(SUMMARY)}
"""The model's answer to a row with this text; it answers all other rows with the row itself."""

UNIQUE = {"type": "array", "uniqueItems": True}
WORD_KEYS = {"type": "object", "patternProperties": {"^([A-Za-z]+ ?)+$": {"type": "string"}}}
DRAFT_4 = {"$schema": "http://json-schema.org/draft-04/schema#", "enum": objects(8000)}
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}%{% endfor %}{% endfor %}{{ name }}"
SORT = "{% for i in range(99999) %}{{ (range(99999)|list + [name|length])|sort|length }}{% endfor %}"
TREE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}{{ name }}"
ENDLESS = "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(name) }}"
TOO_LONG = "the template took longer than 2 s on line 2"
TOO_MUCH = "the template needed more than 240 MB of memory on line 2"
FORMAT_TOO_LONG = "checking the answer against format took longer than 2 s on line "
LIMIT, BAD = "evaluation_limit", "bad_sidecar"

ALL_CASES = [
    Case("freeze", stored("freeze"), LIMIT, (TOO_LONG,)),
    Case("redos", stored("redos"), LIMIT, (FORMAT_TOO_LONG + "2",), answered=True),
    Case("segv", stored("segv"), LIMIT, ("the template ", "on line 2")),
    Case("doubling-refs", with_format(doubling(34), "{}"), LIMIT, (FORMAT_TOO_LONG,), answered=True),
    Case(
        "unique-objects", with_format(UNIQUE, json.dumps(objects(8000))), LIMIT, (FORMAT_TOO_LONG,),
        answered=True, variant=True),
    Case("pattern-properties", with_format(WORD_KEYS, json.dumps({SUMMARY["summary"]: "x"})), LIMIT,
         (FORMAT_TOO_LONG,), answered=True, variant=True),
    Case("long-reason", with_format({"type": "array", "maxItems": 1}, json.dumps(["x" * 1000] * 200)),
         "answer_invalid", ("$: ['xxx",), answered=True),
    Case("openai-unique-objects", openai(UNIQUE, json.dumps(objects(8000))), LIMIT, (FORMAT_TOO_LONG,),
         answered=True, variant=True),
    Case("openai-doubling-refs", openai(doubling(34), "{}"), LIMIT, (FORMAT_TOO_LONG,), answered=True),
    Case("openai-schema", openai(DRAFT_4, "{}"), LIMIT,
         ("reading the request took longer than 2 s on line 1",)),
    Case("loops", prompt(LOOP.replace("%{%", "{%")), LIMIT, (TOO_LONG,), variant=True),
    Case("output-bomb", prompt(LOOP.replace("%{%", "{{ name * 9999 }}{%")), LIMIT, (TOO_MUCH,)),
    Case("sort", prompt(SORT), LIMIT, (TOO_LONG,), variant=True),
    Case("macro-tree", prompt(TREE), LIMIT, (TOO_LONG,), variant=True),
    Case("macro-endless", prompt(ENDLESS), "template_error", ("the template has endless recursion",)),
    Case("format-width", prompt("{{ '%999999999d' % 1 }}{{ name }}"), LIMIT, (TOO_MUCH,)),
    Case("constant-text", prompt("{{ 'a' * 10**9 }}{{ name }}"), LIMIT, (TOO_MUCH,)),
    Case("constant-list", side("prompt: '{{ [" + '"a"*999999,' * 1900 + "] }}'\n"), BAD,
         ("constant-list.yaml: reading this file needed more than 240 MB of memory",)),
    Case("constant-power", side("prompt: '{{ 10**(10**8) }}{{ name }}'\n"), BAD,
         ("constant-power.yaml: reading this file took longer than 10 s",)),
    Case("surrogate", prompt("{{ '\\ud800' }}{{ name }}"), "template_error", ("a lone surrogate",)),
    Case("score", side("prompt: '{{ name }}'\ntrim: {strategy: important, score: '10 ** (10 ** (9 + "
                       "(name|length)))'}\n", b"name\n" + b"a\nb\nc\nd\n" * 3), LIMIT,
         ("3 rows exceeded a limit of the evaluation; the last: the score took longer than 2 s on line 4",),
         answered=True),
    Case("sexagesimal", side("prompt: '{{ name }}'\na: " + ":".join("1" * 450_000) + "\n"), BAD,
         ("sexagesimal.yaml:3:4: a: this number has more than 100 characters",)),
    Case("brackets", side("prompt: '{{ name }}'\nformat: " + "[" * 25_000 + "\n"), BAD,
         ("brackets.yaml: nested too deeply",)),
    Case("deep-yaml", side("prompt: '{{ name }}'\nformat: " + "{a: " * 200_000 + "\n"), BAD,
         ("deep-yaml.yaml: nested too deeply",)),
    Case("template-nesting", side("prompt: '{{ " + "(" * 12_500 + "1" + ")" * 12_500 + " }}'\n"), BAD,
         ("template-nesting.yaml:2:9: prompt: nested too deeply",)),
    Case("aliases", side("system: &a " + "x" * 900_000 + "\nprompt: '{{ name }}'\nformat: ["
                         + "*a, " * 10_000 + "]\n"), BAD,
         ("aliases.yaml: format: aliases or nesting make this too large",)),
    Case("flow-mapping", side("prompt: '{{ name }}'\nformat: {"
                              + ", ".join(f"k{n}: {n}" for n in range(60_000)) + "}\n"), BAD,
         ("flow-mapping.yaml: format: ",)),
    Case("many-problems", side("prompt: '{{ name }}'\n" + "".join(f"k{n}: 1\n" for n in range(15_000))), BAD,
         ("many-problems.yaml:3:1: k0: unknown key", "14,950 more problems are not listed")),
    Case("timeout-1e300", stored("timeout-1e300"), BAD,
         ('timeout-1e300.yaml:3:1: timeout: "1e300" is not a number of seconds from 0.1 to 86400',)),
    Case("timeout-float", stored("timeout-float"), BAD,
         ("timeout-float.yaml:3:1: timeout: 1e+300 is not a number of seconds from 0.1 to 86400",)),
    Case("timeout-tiny", stored("timeout-tiny"), BAD, ("timeout-tiny.yaml:3:1: timeout: 1e-6",)),
    Case("segment-1e12", stored("segment-1e12"), BAD, ("segment-1e12.yaml:3:1: segment: 1e12",)),
    Case("segment-whole", stored("segment-whole"), BAD,
         ("segment-whole.yaml:3:1: segment: 1000000000000 is not a whole number of rows",)),
    Case("columns-twice", side("prompt: '{{ a }}'\n", b"a," * 8_000 + b"b\n" + b"," * 8_000 + b"\n"),
         "bad_header", ("'a' in columns 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …",)),
    Case("columns-misspelt", side("prompt: '{{ c1 }}'\nid: c12345x\n",
                                  (",".join(f"c{n}" for n in range(16_000)) + "\n").encode()),
         "no_such_column", ("columns-misspelt.yaml:3:1: id: ", "did you mean 'c12345'?")),
    Case("model-name", lambda: {".yaml": b"model: " + b"m" * 900_000 + b"\nprompt: '{{ name }}'\n",
                                ".csv": b"name\na\n"}, BAD,
         ("model-name.yaml:1:1: model: this name has 900,000 characters; the limit is 500",)),
    Case("id-name", side("prompt: '{{ a }}'\nid: " + "a" * 900_000 + "\n", b"a\nx\n"), BAD,
         ("id-name.yaml:3:1: id: this name has 900,000 characters; the limit is 1,000",)),
    Case("field-name", prompt("{{ row['" + "a" * 900_000 + "'] }}"), "template_undefined",
         ("characters left out",)),
    Case("warnings", with_format({"type": "string", "pattern": "[[a]" * 200_000}, '"b"'), "request_refused",
         ("Pattern must start with '^'",), answered=True),
    Case("column-name", side("prompt: '{{ a }}'\nid: " + "a" * 500 + "b" * 400 + "\n",
                             b"b" * 500_000 + b"a" * 400_000 + b",a\nx,y\n"),
         "bad_header", ("line 1: the name of column 1 has 900,000 characters; the limit is 1,000.",)),
    Case("long-ids", side("prompt: x\nid: name\n", b"name\n" + (b"x" * 200_000 + b"\n") * 20),
         "duplicate_id", ("was already used on line 2", "characters left out")),
]  # fmt: skip
"""Uploads that one service processes one after another, variants included."""

CASES = cases([case for case in ALL_CASES if not case.variant], ALL_CASES)
"""The cases that run."""

LARGE = [
    Case("columns", side("prompt: '{{ c1 }}'\nid: c12345x\n",
                         (",".join(f"c{n}" for n in range(140_000)) + "\n").encode()),
         "bad_header", ("140,000 cells; a file may have 16,384 columns",)),
    Case("cells", side("prompt: '{{ a }}'\n", b"a,b\n" + (b"," * 1_000_000 + b"\n") * 20), "ragged",
         ("1,000,001 cells",)),
    Case("nested-lists", side("mode: isolated\nprompt: '{{ a|length }}'\n", nested(240_000) * 20, ".jsonl"),
         "bad_json", ("the JSON has more than 50,000 values",)),
    Case("long-lines", side("segment: 12\ntrim: {strategy: reset}\nprompt: '{{ a[:9] }}'\n",
                            long_lines(200), ".jsonl"), ""),
    Case("lists-below-the-limit", side("mode: isolated\nprompt: '{{ a|length }}'\n", nested(49_000) * 20,
                                       ".jsonl"), ""),
    Case("long-prompts",
         side("mode: isolated\nprompt: '{{ a }}{{ b }}{{ c }}{{ d }}'\n"
              "options: {num_ctx: 5000000, num_predict: 1000000}\n", long_lines(20), ".jsonl"), ""),
    Case("long-system", side("mode: isolated\nprompt: '{{ name }}'\noptions: {num_ctx: 5000000}\nsystem: "
                             + "x" * 900_000 + "\n", b"name\n" + b"a\n" * 100), ""),
    Case("long-prompts-of-many-lanes",
         side("mode: isolated\nlanes: 256\nprompt: '{{ name * 250000 }}'\n"
              "options: {num_ctx: 5000000, num_predict: 1000}\n",
              b"name\n" + "\N{GRINNING FACE}\n".encode() * 260),
         "first_rows_failed", ("answer_cut",)),
    Case("gzip-bomb", gzip_bomb, "endless_line", ("the next 256 MiB do not contain a row end",)),
    Case("zstd-bomb", zstd_bomb, "endless_line", ("the next 256 MiB do not contain a row end",)),
    Case("blank-bomb", blank_bomb, "endless_line", ("1,000,000 blank lines follow",)),
]  # fmt: skip
"""Uploads that would fill the memory of the service itself; each has its own service."""

_ONE_OF_EACH = {
    *("freeze", "segv", "output-bomb", "macro-endless"),  # templates: time, a crash, memory, an error
    *("redos", "openai-doubling-refs", "openai-schema", "score"),  # schemas, a request, a score
    *("constant-power", "constant-list", "columns-misspelt"),  # reading the sidecar, and checking it
    *("long-ids", "long-lines", "lists-below-the-limit", "zstd-bomb"),  # reading the rows
}
KILLED = cases([case for case in (*ALL_CASES, *LARGE) if case.name in _ONE_OF_EACH], [*ALL_CASES, *LARGE])
"""Uploads during which the service is killed: one for each place where that can happen."""
