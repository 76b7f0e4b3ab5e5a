"""Questions, plans and answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from spoolama.backends.base import Message
from spoolama.errors import RowError
from spoolama.evaluation.asking import MessageBuilder
from spoolama.evaluation.child.openai_lines import read_line
from spoolama.job.answer import gold_answers, label_of
from spoolama.job.plan import Plan, first_plan
from spoolama.job.row import RowRequest
from spoolama.job.sidecar import Example, Options, Sidecar, Trim
from support.evaluation import inline_job_evaluator

SIDECAR = Sidecar(
    model="m",
    system="Judge.",
    prompt="{{ name }}",
    examples=(Example(user="a", assistant="b"),),
    options=Options(num_ctx=512, num_predict=9, temperature=0.5, stop=["END"], num_gpu=3),
    format={"type": "object"},
    think=True,
)
PREFIX = (Message("system", "Judge."), Message("user", "a"), Message("assistant", "b"))


def request(messages: list[dict[str, str]], **body: Any) -> RowRequest:
    body = {"messages": messages, **body}
    line = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return read_line(line).request


def test_a_rows_question_is_prefix_and_prompt() -> None:
    """System and examples are shared, load options are not sampling options, and unset values
    are not sent.
    """
    asker = MessageBuilder(SIDECAR, inline_job_evaluator())

    ask = asyncio.run(asker.ask({"name": "Ann"}, 2))

    assert (ask.prefix, ask.own) == (PREFIX, (Message("user", "Ann"),))
    assert (ask.num_predict, ask.format, ask.think) == (9, {"type": "object"}, True)
    assert ask.sampling == {"temperature": 0.5, "seed": 7, "stop": ["END"]}
    spec = asker.load_spec("n", 4)
    assert (spec.model, spec.num_ctx, spec.load_options, spec.slots) == ("n", 512, {"num_gpu": 3}, 4)


def test_openai_lines_take_missing_values_from_the_sidecar() -> None:
    """A value of the line overrides the sidecar, and a single user message gets the sidecar's instruction."""
    asker = MessageBuilder(SIDECAR, inline_job_evaluator())
    user = {"role": "user", "content": "hi"}

    bare = asyncio.run(asker.ask({}, 2, request([user])))
    assert (bare.prefix, bare.own, bare.num_predict) == (PREFIX, (Message("user", "hi"),), 9)
    own = asyncio.run(
        asker.ask(
            {},
            2,
            request(
                [{"role": "system", "content": "S"}, user],
                max_tokens=3,
                temperature=1,
                response_format={"type": "text"},
                reasoning_effort="none",
            ),
        )
    )
    assert (own.prefix, own.num_predict, own.format, own.think) == ((Message("system", "S"),), 3, None, False)
    assert own.sampling == {"temperature": 1, "seed": 7, "stop": ["END"]}
    history = asyncio.run(asker.ask({}, 2, request([user, {"role": "assistant", "content": "x"}, user])))
    assert (len(history.prefix), history.own) == (2, (Message("user", "hi"),))


def test_plans_survive_json() -> None:
    """A plan read back from the ledger equals the one that was used."""
    plan = first_plan(SIDECAR)

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    later = plan.next_version(from_segment=3, tokens_per_byte=0.4)
    assert (later.version, later.from_segment, later.tokens_per_byte, later.high) == (2, 3, 0.4, plan.high)
    with pytest.raises(ValueError, match=r"missing \['high'\], unknown \['hihg'\]"):
        Plan.from_json({**{k: v for k, v in plan.to_json().items() if k != "high"}, "hihg": 1})


@pytest.mark.parametrize(
    ("changes", "rows"),
    [({}, 200), ({"segment": 7}, 7), ({"segment": "all"}, 0), ({"segment": 7, "mode": "isolated"}, 1)],
)
def test_segments_of_the_first_plan(changes: dict[str, Any], rows: int) -> None:
    """Each isolated row is its own segment."""
    sidecar = SIDECAR.model_copy(update={**changes, "trim": Trim(strategy="window", keep=5)})

    plan = first_plan(sidecar)

    assert (plan.segment_rows, plan.strategy, plan.keep, plan.tokens_per_byte) == (rows, "window", 5, 1.0)


BAD_ID = {"$id": "http://a/", "$ref": "#/$defs/x", "$defs": {"x": {"$id": "http://[", "type": "object"}}}
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [(None, " good ", None), ("json", "[1]", [1]), (SCHEMA, '{"score": 4}\n', {"score": 4})],
)
def test_valid_answers(form: Any, text: str, expected: object) -> None:
    """A valid answer is returned as it was parsed."""
    assert asyncio.run(inline_job_evaluator().check(form, text, 2)) == expected


@pytest.mark.parametrize(
    ("form", "text", "code", "words"),
    [
        (None, " \n", "answer_empty", "is empty"),
        (SCHEMA, "", "answer_empty", "is empty"),
        ("json", '{"a": ', "answer_invalid", "ends too early (character 7)"),
        ("json", "NaN", "answer_invalid", "NaN"),
        (SCHEMA, '{"score": "4"}', "answer_invalid", "$.score: '4' is not of type 'integer'"),
        (SCHEMA, "{}", "answer_invalid", "$: 'score' is a required property"),
        ("json", "[" * 100_000, "answer_invalid", "levels deep"),
        ({"$ref": "http://127.0.0.1:9/x"}, "1", "answer_invalid", "the schema cannot be applied"),
        ({"multipleOf": 0.5}, "1" + "0" * 310, "answer_invalid", "cannot be applied: int too large"),
        (BAD_ID, "1", "answer_invalid", "cannot be applied: Invalid IPv6 URL"),
    ],
)
def test_invalid_answers(form: Any, text: str, code: str, words: str) -> None:
    """An invalid answer has a short reason and its raw text, and no schema opens a connection."""
    with pytest.raises(RowError) as caught:
        asyncio.run(inline_job_evaluator().check(form, text, 2))

    assert (caught.value.code, caught.value.answer) == (code, text)
    assert words in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("parsed", "key", "expected"),
    [
        (None, None, "free text"),
        ({"score": 4}, None, "4"),
        ({"score": 4.0, "why": "x"}, "score", "4"),
        ({"score": 4.5}, None, "4.5"),
        ({"fit": True}, None, "true"),
        ({"label": " good "}, None, "good"),
        ({"a": 1, "b": 2}, None, None),
        ({"a": 1}, "b", None),
        ({"a": None}, None, None),
        ({"a": [1, "é"]}, None, '[1,"é"]'),
        (7, None, "7"),
        ("word", None, "word"),
    ],
)
def test_labels_are_spelled_as_a_cell_would(parsed: object, key: str | None, expected: str | None) -> None:
    """A label is spelled like a cell, so that it can be compared with a gold column."""
    assert label_of(parsed, " free text\n", key) == expected


@pytest.mark.parametrize("form", [None, {"type": "object", "properties": {"label": {"type": "string"}}}])
@pytest.mark.parametrize("blank", [None, "", "   ", "\t\n"])
def test_a_blank_gold_cell_is_no_gold(form: Any, blank: str | None) -> None:
    """A blank gold cell counts as no gold, so that no anchor has an empty answer."""
    sidecar = SIDECAR.model_copy(update={"gold": "g", "format": form})

    assert gold_answers(sidecar, {"g": blank}, '{"label": "good"}') == []
    assert gold_answers(sidecar, {"g": " bad "}, '{"label": "good"}')
