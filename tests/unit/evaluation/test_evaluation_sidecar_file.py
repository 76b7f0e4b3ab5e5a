"""Sidecars: every problem, with its place and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolama.errors import SidecarError
from spoolama.evaluation.child.sidecar_file import _MODELS, checked_sidecar, parse_sidecar, sidecar_schema
from spoolama.evaluation.child.sidecar_words import EXPECTED
from spoolama.job.sidecar import STRATEGY_KEYS, Sidecar
from support.evaluation import load_sidecar
from support.thorough import cases
from unit.evaluation.sidecar_problems import OK, problems

FULL = """\
model: gemma3:12b
system: |
  You are a strict recruiter.
prompt: |
  {{ name }}, {{ years }} years.
examples: [{user: Great!, assistant: positive}]
mode: conversation
id: candidate_id
options: {num_ctx: 8192, num_predict: 200, temperature: 0, seed: 7, stop: [END]}
format: {type: object, properties: {score: {type: integer}}, required: [score]}
think: low
trim: {strategy: window, high: 0.8, low: 0.4, keep: 20}
segment: all
lanes: 4
gold: human_rating
retries: 3
timeout: 60
max_failed: 0.01
expect: {rows: 170000}
output: [csv]
priority: 3
"""


def test_a_full_sidecar_is_read(tmp_path: Path) -> None:
    """Every value has its type."""
    path = tmp_path / "a.yaml"
    path.write_text(FULL)

    sidecar = load_sidecar(path)

    assert sidecar.options.temperature == 0
    assert sidecar.examples[0].assistant == "positive"
    assert (sidecar.segment, sidecar.think, sidecar.max_failed, sidecar.output) == (
        "all",
        "low",
        0.01,
        ("csv",),
    )
    assert sidecar.prompt == "{{ name }}, {{ years }} years.\n"


def test_openai_lines_need_neither_model_nor_prompt() -> None:
    """The sidecar of OpenAI lines may contain only defaults."""
    assert parse_sidecar("options: {num_ctx: 8192}\n", "a.yaml", openai=True).model == ""
    assert [p[2] for p in problems("options: {num_ctx: 8192}\n")] == ["model", "prompt"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("audit: 50\n", [(1, 1, "audit", "OpenAI lines have no audit", "remove it")]),
        (
            "options: {}\non_harm: isolate\n",
            [(2, 1, "on_harm", "OpenAI lines have no audit", "remove it")],
        ),
        ("trim: {strategy: window}\naudit: 0\non_harm: report\n", None),
    ],
)
def test_keys_that_do_not_apply_to_openai_lines_are_refused(
    text: str, expected: list[tuple[int, int, str, str, str]] | None
) -> None:
    """Keys that do not apply to OpenAI lines are refused at the key, and accepted for tables."""
    if expected is None:
        assert parse_sidecar(text, "a.yaml", openai=True)
    else:
        assert problems(text, openai=True) == expected
        assert parse_sidecar("model: m\nprompt: x\n" + text, "a.yaml")


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("strategy", ["window", "important", "hybrid"])
def test_a_setting_of_an_earlier_version_is_accepted_only_for_a_job_that_has_begun(
    strategy: str, begun: bool
) -> None:
    """A new job must use today's keys; a job that has begun keeps the values that it began with."""
    text = OK + f"trim:\n  strategy: {strategy}\n  every: auto\n"
    if begun:
        sidecar = Sidecar.model_validate_json(checked_sidecar(text, "a.yaml", begun=True))
        assert (sidecar.trim.every, sidecar.trim.every_rows) == (None, 30)
    else:
        assert problems(text) == [
            (
                5,
                3,
                "trim.every",
                '"auto" is not a whole number of rows from 1 to 100000',
                "every is a number of rows; the default is 30 (20 with strategy reset, 1 with anchors)",
            )
        ]


def test_leaving_out_retired_settings_changes_nothing_else() -> None:
    """For a job that has begun, all other problems are still reported, for any form of the file."""
    for text in ("trim: auto\n", "trim: {strategy: window, every: often}\n", "trim: [every, auto]\n"):
        with pytest.raises(SidecarError) as caught:
            checked_sidecar(OK + text, "a.yaml", begun=True)
        assert [(p.line, p.column, p.key, p.message, p.hint) for p in caught.value.problems] == problems(
            OK + text
        )


COLON = "this line is indented more than the line above, or an unquoted text contains a colon"
ALIGN = "align the keys; put the text in quotes"
BRACES = "YAML reads {{ as a mapping: put the text in quotes, or on the next line after `|`"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "modle: m\npromt: x\n",
            [
                (1, 1, "modle", "unknown key", "did you mean model?"),
                (2, 1, "promt", "unknown key", "did you mean prompt?"),
            ],
            id="misspelled",
        ),
        pytest.param(
            "model: 3\nprompt: yes\n",
            [
                (1, 1, "model", "3, which YAML reads as a number, is not the model's name, as a text",
                 "put it in quotes: model: '3'"),
                (2, 1, "prompt", "yes, which YAML reads as true, is not a template, as a text",
                 "put it in quotes: prompt: 'yes'"),
            ],
            id="unquoted",
        ),
        pytest.param(
            "model: m\nprompt: {{ name }}\n",
            [(2, 9, "prompt", "a value begins with {{", BRACES)],
            id="braces",
        ),
        pytest.param(
            "model: m\nprompt: {{ name }} is\n",
            [(2, 9, "prompt", "a value begins with {{", BRACES)],
            id="braces and text",
        ),
        pytest.param(
            OK + "options:\n  num_ctx: 8k\n  num_predit: 3\n  temperature: 1e-1\n  seed: '7'\n",
            [
                (4, 3, "options.num_ctx", '"8k" is not a whole number of tokens from 128 to 10000000',
                 "for example num_ctx: 8192"),
                (5, 3, "options.num_predit", "unknown key", "did you mean num_predict?"),
                (6, 3, "options.temperature",
                 "1e-1, which YAML reads as a text, is not a number from 0 to 100", "write 0.1"),
                (7, 3, "options.seed", '"7" is not a whole number from -2^53 to 2^53',
                 "leave the quotes out: seed: 7"),
            ],
            id="options",
        ),
        pytest.param(
            OK + "options: {num_ctx: 200}\ntrim: {low: 0.9}\n",
            [
                (3, 11, "options.num_ctx",
                 "num_predict 256 leaves no space for a prompt in num_ctx 200", None),
                (4, 8, "trim.low", "low 0.9 must be below high 0.75", None),
            ],
            id="numbers that do not fit together",
        ),
        pytest.param(
            OK + "trim: {strategy: window, kep: 20, keep: x, anchors: 3, pilot: 1, low: 0.9}\n",
            [
                (3, 26, "trim.kep", "unknown key", "did you mean keep?"),
                (3, 35, "trim.keep", '"x" is not a whole number of rows from 1 to 100000',
                 "for example keep: 20"),
                (3, 44, "trim.anchors",
                 "anchors is not a key of strategy window; it belongs to anchors, hybrid", None),
                (3, 56, "trim.pilot", "pilot is not a key of strategy window; it belongs to auto", None),
                (3, 66, "trim.low", "low 0.9 must be below high 0.75", None),
            ],
            id="what does not fit together is not hidden by what is wrong",
        ),
        pytest.param(
            OK + "trim: {strategy: windw, keep: 3, low: 0.9, high: x}\n"
            + "options: {num_ctx: 4k, num_predict: 9000}\nformat: {properties: {a: {}, b: {}}}\n"
            + "gold: g\nanser_key: a\naudit: 5\nmdoe: isolated\n",
            [
                (3, 8, "trim.strategy",
                 '"windw" is not auto, reset, window, anchors, important, hybrid or budget',
                 "did you mean window?"),
                (3, 44, "trim.high", '"x" is not a share above 0 and up to 1', "for example high: 0.75"),
                (4, 11, "options.num_ctx", '"4k" is not a whole number of tokens from 128 to 10000000',
                 "for example num_ctx: 8192"),
                (7, 1, "anser_key", "unknown key", "did you mean answer_key?"),
                (9, 1, "mdoe", "unknown key", "did you mean mode?"),
            ],
            id="what is wrong is not said again of the keys beside it",
        ),
        pytest.param(
            OK + "seed: 3\noptions: {num_ctx: 200, top_k: x}\nmode: isolated\naudit: 50\n",
            [
                (3, 1, "seed", "unknown key", "it belongs under options: options: {seed: …}"),
                (4, 11, "options.num_ctx",
                 "num_predict 256 leaves no space for a prompt in num_ctx 200", None),
                (4, 25, "options.top_k", '"x" is not a whole number from 0', "for example top_k: 40"),
                (6, 1, "audit",
                 "with mode: isolated each row is asked in isolation, so there is nothing to audit",
                 "remove audit, or set trim so that rows see earlier rows"),
            ],
            id="in every part of the file",
        ),
        pytest.param(
            OK + "trim: auto\n",
            [(3, 1, "trim", '"auto" is not a mapping with strategy', "did you mean trim: {strategy: auto}?")],
            id="a strategy by itself",
        ),
        pytest.param(
            OK + "trim: Ancors\n",
            [(3, 1, "trim", '"Ancors" is not a mapping with strategy',
              "did you mean trim: {strategy: anchors}?")],
            id="a strategy by itself, misspelled",
        ),
        pytest.param(
            "model: m\nprompt: |\n\n  Hi\n  {{ name }\nsystem: x\n",
            [(5, None, "prompt", "unexpected '}'",
              "put a field in double braces: {{ name }}, "
              "or {{ row['first name'] }} for other names")],
            id="template in a block",
        ),
        pytest.param(
            "model: m\nprompt: '{{ a | uper }}'\n",
            [(2, 9, "prompt", "there is no filter 'uper'", "did you mean 'upper'?")],
            id="template in quotes",
        ),
        pytest.param(
            OK + "vram: {high: 0, critical: much, keep_free_gb: -1}\n",
            [
                (3, 8, "vram.high", "0 is not a share of the card up to 1, or GB above it",
                 "for example high: 0.8"),
                (3, 17, "vram.critical", '"much" is not a share of the card up to 1, or GB above it',
                 "for example critical: 14.5"),
                (3, 33, "vram.keep_free_gb", "-1 is not a number of GB from 0",
                 "for example keep_free_gb: 1"),
            ],
            id="limits of memory",
        ),
        pytest.param(
            OK + "vram: {hihg: 0.9}\n",
            [(3, 8, "vram.hihg", "unknown key", "did you mean high?")],
            id="key of memory",
        ),
        pytest.param(
            OK + "format: {type: objekt, properties: {a: {enum: [yes, 'no']}, b: {$ref: 'http://x/y'}}}\n",
            [
                (3, 10, "format.type",
                 "not a JSON Schema: 'objekt' is not valid under any of the given schemas", None),
                (3, 48, "format.properties.a.enum[0]", "YAML reads yes as true",
                 "write 'yes' in quotes, or true"),
            ],
            id="schema",
        ),
        pytest.param(
            OK + "format: {properties: {a: {pattern: '('}, b: {$ref: 'http://x'}, c: {$ref: '#/$defs/d'}}}\n",
            [
                (3, 27, "format.properties.a.pattern",
                 "not a regular expression: missing ), unterminated subpattern at position 0", None),
                (3, 46, "format.properties.b.$ref",
                 "a schema cannot refer to another file or URI; write it out, or use $defs", None),
                (3, 69, "format.properties.c.$ref", "#/$defs/d is not in this schema", None),
            ],
            id="schema that cannot be used",
        ),
        pytest.param(
            OK + "num_ctx: 3\noutput: csv\nexamples:\n  - user: a\n"
            + "mode: conversaton\nretries: true\nsystem:\n",
            [
                (3, 1, "num_ctx", "unknown key", "it belongs under options: options: {num_ctx: …}"),
                (4, 1, "output", '"csv" is not a list of jsonl and csv', "in brackets: output: [csv]"),
                (6, 5, "examples[0].assistant", "this key is missing: a text", None),
                (7, 1, "mode", '"conversaton" is not conversation or isolated', "did you mean conversation?"),
                (8, 1, "retries", "true is not a whole number from 0 to 20", "for example retries: 3"),
                (9, 1, "system", "nothing is not a text", "for example system: You are a strict recruiter."),
            ],
            id="many at once",
        ),
        pytest.param(
            OK + "model: n\n",
            [(3, 1, "model", "this key appears twice; first on line 1", "keep one of them")],
            id="duplicate key",
        ),
        pytest.param(
            OK + "gold: g\nformat: {properties: {a: {}, b: {}}}\n",
            [(3, 1, "gold", "the answer has several keys; answer_key must name the one to compare",
              "for example answer_key: a")],
            id="gold needs answer_key",
        ),
        pytest.param(
            "model: m\nsystem: You are: strict\n",
            [(2, 16, "", COLON, ALIGN)],
            id="colon",
        ),
        pytest.param("model: m\n  prompt: x\n", [(2, 9, "", COLON, ALIGN)], id="indentation"),
        pytest.param(
            "model: m\noptions:\nprompt:\n",
            [
                (2, 1, "options", "this key is empty",
                 "indent its keys below it; for example options: {num_ctx: 8192, num_predict: 200}"),
                (3, 1, "prompt", "this key is empty",
                 "indent the text below `prompt: |`; for example prompt: '{{ name }}, {{ years }} years'"),
            ],
            id="keys not indented",
        ),
        pytest.param(
            "model: m\n\tprompt: x\n",
            [(2, 1, "", "YAML does not allow a tab here", "indent with spaces")],
            id="tab",
        ),
        pytest.param(
            "model: m\nprompt: 'abc\nid: x\n",
            [(2, 9, "", "a quote is opened and never closed", None)],
            id="quote",
        ),
        pytest.param("", [(None, None, "", "the file is empty", "at least model and prompt")], id="empty"),
        pytest.param("- a\n", [(1, 1, "", "the file is a list", "write `key: value` lines")], id="list"),
        pytest.param(
            OK + "---\nmodel: n\n",
            [(3, 1, "", "the file contains several documents", "remove the --- line")],
            id="documents",
        ),
        pytest.param(
            b"model: m\nsystem: caf\xe9\n",
            [(2, 12, "", "byte 0xe9 is not UTF-8", "save it as UTF-8")],
            id="latin-1",
        ),
        pytest.param(
            OK.encode("utf-16"), [(None, None, "", "the file is UTF-16", "save it as UTF-8")], id="UTF-16"
        ),
        pytest.param(
            "model: !!python/name:os.system x\nprompt: x\n",
            [(1, 8, "model", "the tag !!python/name:os.system is not allowed", "remove it")],
            id="tag",
        ),
        pytest.param(
            OK + "system: &a [*a, *a]\n",
            [(None, None, "system", "aliases or nesting make this too large", None)],
            id="recursive alias",
        ),
        pytest.param(
            OK + "a: &a [1,1,1,1,1,1,1,1]\n"
            + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef")),
            [(None, None, "e", "aliases or nesting make this too large", None)],
            id="alias bomb",
        ),
    ],
)  # fmt: skip
def test_broken_sidecars(
    text: str | bytes, expected: list[tuple[int | None, int | None, str, str, str | None]]
) -> None:
    """Each problem has line, key, reason and what to write instead."""
    assert problems(text) == expected


@settings(max_examples=cases(60, 300), deadline=None)
@given(
    st.binary(max_size=80)
    | st.text(max_size=80)
    | st.lists(
        st.sampled_from([*FULL.splitlines(), "? a", "- b", "{{", "&a", "*a", "'", "|", " x: y", "<<: *a"])
    ).map("\n".join)
)
def test_nothing_but_sidecar_errors(text: str | bytes) -> None:
    """Any upload gives a sidecar or a list of problems."""
    try:
        parse_sidecar(text, "a.yaml")
    except SidecarError as error:
        said = str(error)
        assert said


@pytest.mark.parametrize("text", ["[" * 5000, "{" * 5000, "a: " + "[" * 900 + "]" * 900, "x: " + "9" * 6000])
def test_bombs(text: str) -> None:
    """Deep nesting and endless numbers are problems of the file."""
    assert problems(text)


@pytest.mark.parametrize(
    ("text", "key", "length", "most"),
    [
        ("model: {}\nprompt: x\n", "model", 501, "500"),
        (OK + "models: {{a: {}}}\n", "models.a", 501, "500"),
        (OK + "models:\n  ? {}\n  : a\n", "models.mmmm", 900_000, "500"),
        (OK + "id: {}\n", "id", 1_001, "1,000"),
        (OK + "gold: {}\n", "gold", 1_001, "1,000"),
        (OK + "format: json\nanswer_key: {}\n", "answer_key", 900_000, "1,000"),
    ],
)
def test_names_that_summary_and_metrics_repeat_have_a_limit(
    text: str, key: str, length: int, most: str
) -> None:
    """A name of 900 kB is refused, because every file and status of the job would repeat it."""
    ((line, column, p_key, message, hint),) = problems(text.format("m" * length), openai=True)
    assert message == f"this name has {length:,} characters; the limit is {most}"
    assert p_key.startswith(key)
    assert (line, hint) == (text[: text.index("{}")].count("\n") + 1, "use a shorter one")
    assert column is not None


HUGE = "0x" + "f" * 4000


@pytest.mark.parametrize(
    ("schema", "key", "words"),
    [
        ("{$schema: 3}", "format.$schema", "$schema must be the URI of a JSON Schema dialect"),
        ("{$schema: [1]}", "format.$schema", "$schema must be the URI"),
        ("{$schema: {a: 1}}", "format.$schema", "$schema must be the URI"),
        ("{$schema: 'http://['}", "format.$schema", "$schema: http://[ is not a URI"),
        ("{properties: {a: {$id: 'http://['}}}", "format.properties.a.$id", "http://[ is not a URI"),
        ("{enum: [1], $ref: '#/enum/²'}", "format.$ref", "#/enum/² is not in this schema"),
        ("{enum: [1], $ref: '#/enum/" + "9" * 5000 + "'}", "format.$ref", "is not in this schema"),
        ("{maxLength: " + HUGE + "}", "format.maxLength", "this number has more than 100 characters"),
        ("{enum: [-0b" + "1" * 15000 + "]}", "format.enum[0]", "this number has more than 100 characters"),
        ("{type: " + HUGE + "}", "format.type", "this number has more than 100 characters"),
    ],
)
def test_an_odd_schema_is_a_problem_of_its_key(schema: str, key: str, words: str) -> None:
    """A schema that would make the schema library fail is a problem at its key."""
    found = {p_key: message for _, _, p_key, message, _ in problems(f"{OK}format: {schema}\n")}

    assert words in found[key]


def test_a_schema_at_which_the_library_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception of the schema library becomes a problem at the key."""

    def fail(pattern: str) -> None:
        raise ZeroDivisionError(pattern)

    monkeypatch.setattr("spoolama.evaluation.child.schemas.re.compile", fail)

    assert [message for _, _, _, message, _ in problems(OK + "format: {pattern: odd}\n")] == [
        "this JSON Schema cannot be used: odd"
    ]


def test_every_key_has_a_hint_with_a_valid_example() -> None:
    """The hint of every key matches the model, and its example is valid."""
    keys = {
        f"{parent}.{name}" if parent else name
        for parent, model in _MODELS.items()
        for name in model.model_fields
    }
    assert keys <= set(EXPECTED)
    assert {key.removesuffix("[]") for key in EXPECTED} == keys

    top = {key: example for key, (_, example) in EXPECTED.items() if "." not in key and "[" not in key}
    text = "".join(
        f"{key}: {example}\n"
        for key, example in top.items()
        if key not in ("options", "trim", "expect", "vram")
    )
    inner_of_trim: list[tuple[str, str]] = []
    for group in ("options", "trim", "expect", "vram"):
        inner = [
            (k.split(".")[1], e)
            for k, (_, e) in EXPECTED.items()
            if k.startswith(group + ".") and "[" not in k
        ]
        if group == "trim":
            inner_of_trim = inner
        if group != "trim":
            text += f"{group}:\n" + "".join(f"  {key}: {example}\n" for key, example in inner)
    assert parse_sidecar(text, "a.yaml")
    # Some keys of `trim` go only with certain strategies.
    for strategy, fitting in STRATEGY_KEYS.items():
        own = [(k, e) for k, e in inner_of_trim if k in fitting | {"high"} and k != "important"]
        # A score needs a strategy that uses it.
        own = [(k, "important" if k == "choose" else e) for k, e in own]
        lines = [f"  {k}: {e}" for k, e in [("strategy", strategy), *own]]
        assert parse_sidecar(OK + "gold: g\ntrim:\n" + "\n".join(lines) + "\n", "a.yaml")


def test_the_published_schema_is_current_and_accepts_what_the_code_accepts() -> None:
    """config/sidecar.schema.json, which editors use, equals the schema made from the model."""
    published = json.loads((Path(__file__).parents[3] / "config/sidecar.schema.json").read_text())

    assert published == sidecar_schema()
    jsonschema.Draft202012Validator.check_schema(published)
    described = [*published["properties"].values(), *published["$defs"]["Options"]["properties"].values()]
    assert all(one.get("description") for one in described)
    validator = jsonschema.Draft202012Validator(published)
    validator.validate(json.loads(parse_sidecar(FULL, "a.yaml").model_dump_json(exclude_none=True)))
    assert not validator.is_valid({"model": "m", "prompt": "x", "modle": 1})
    assert Sidecar().model == ""
