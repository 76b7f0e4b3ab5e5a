"""OpenAI batch lines: which parameters are mapped or refused, and which rows share a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from spoolama.errors import RowError
from spoolama.evaluation.child.openai_lines import PARAMETERS, read_line
from spoolama.job.row import RowRequest
from support.parameter_table import parameter_table

USER = {"role": "user", "content": "hi"}


def line(messages: list[Any] | None = None, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": "r1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": messages or [USER], **body},
    }


def test_everything_mapped_arrives() -> None:
    """Each mapped parameter arrives under Ollama's name, and null counts as absent."""
    found = read_line(
        line(
            [
                {"role": "developer", "content": "Judge."},
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
            ],
            max_tokens=9,
            max_completion_tokens=7,
            temperature=1,
            top_p=0.5,
            seed=3,
            stop="END",
            presence_penalty=0.1,
            frequency_penalty=-0.1,
            reasoning_effort="minimal",
            response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
            user="someone",
            logprobs=None,
            n=1,
            stream=False,
        )
    )

    request = found.request
    assert request.messages == (("system", "Judge."), ("user", "a"))
    assert (found.model, request.num_predict, request.think) == ("m", 7, "low")
    assert request.sampling == {
        "temperature": 1,
        "top_p": 0.5,
        "seed": 3,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
    }
    assert request.format == {"type": "object"}


def test_missing_values_are_left_to_the_sidecar() -> None:
    """Absent values stay unset, so that the sidecar can set them."""
    request = read_line(line()).request

    assert request == RowRequest(request.messages)
    assert read_line(line(response_format={"type": "text"})).request.format == "text"
    assert read_line(line(response_format={"type": "json_object"})).request.format == "json"


@pytest.mark.parametrize(
    ("parameter", "broken"),
    [
        ("custom_id", {**line(), "custom_id": 7}),
        ("method", {**line(), "method": "GET"}),
        ("url", {**line(), "url": "/v1/embeddings"}),
        ("body", {**line(), "body": []}),
        ("messages", {**line(), "body": {"model": "m"}}),
        ("messages", line([{"role": "assistant", "content": "x"}])),
        ("messages[0]", line(["hi"])),
        ("messages[0].role", line([{"role": "tool", "content": "x"}, USER])),
        ("messages[0].content", line([{"role": "system", "content": None}, USER])),
        ("messages[0].tool_calls", line([{"role": "assistant", "content": "", "tool_calls": [{}]}, USER])),
        ("messages[0].content[1]", line([{"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]}])),
        ("model", line(model=7)),
        ("tools", line(tools=[{"type": "function"}])),
        ("tool_choice", line(tool_choice="required")),
        ("n", line(n=2)),
        ("n", line(n=True)),
        ("stream", line(stream=True)),
        ("logprobs", line(logprobs=True)),
        ("logit_bias", line(logit_bias={"50256": -100})),
        ("modalities", line(modalities=["text", "audio"])),
        ("max_tokens", line(max_tokens=0)),
        ("temperature", line(temperature=True)),
        ("temperature", line(temperature=2.5)),
        ("seed", line(seed=1.5)),
        ("stop", line(stop=[1])),
        ("reasoning_effort", line(reasoning_effort="extreme")),
        ("response_format", line(response_format={"type": "xml"})),
        ("response_format", line(response_format={"type": "json_schema", "json_schema": {"schema": 3}})),
        ("brand_new", line(brand_new=1)),
    ],
)  # fmt: skip
def test_unsupported_parameters_are_refused_by_name(parameter: str, broken: dict[str, Any]) -> None:
    """The error of a refused parameter names it, in the text and as a field."""
    with pytest.raises(RowError) as caught:
        read_line(broken)

    assert caught.value.code == "unsupported_request"
    assert caught.value.details == {"parameter": parameter}
    assert caught.value.message.startswith(f"{parameter}: ")


@pytest.mark.parametrize("dialect", [3, ["x"], {"a": 1}, "http://["])
def test_an_odd_schema_is_the_error_of_its_row(dialect: Any) -> None:
    """A `$schema` that the schema library does not support is refused by name and fails only its row."""
    form = {"type": "json_schema", "json_schema": {"schema": {"$schema": dialect, "type": "object"}}}

    with pytest.raises(RowError, match=r"\$schema") as caught:
        read_line(line(response_format=form))

    assert caught.value.details == {"parameter": "response_format"}


def test_a_schema_at_which_the_library_fails_is_the_error_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception of the schema library fails only its row."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("jsonschema.Draft202012Validator.check_schema", fail)

    with pytest.raises(RowError, match="not a valid JSON Schema: odd"):
        read_line(line(response_format={"type": "json_schema", "json_schema": {"schema": {"minLength": 77}}}))


def test_a_models_name_has_a_limit() -> None:
    """A model name has a maximum length, because files and status repeat it."""
    assert read_line(line(model="m" * 500)).model == "m" * 500
    with pytest.raises(RowError, match="model: has 900,000 characters; the limit is 500") as caught:
        read_line(line(model="m" * 900_000))
    assert caught.value.code == "unsupported_request"


def test_an_empty_prompt_is_an_empty_prompt() -> None:
    """An empty prompt is sent as an empty prompt, as in a job with a sidecar."""
    with pytest.raises(RowError) as caught:
        read_line(line([{"role": "user", "content": " \n"}]))

    assert caught.value.code == "empty_prompt"


def test_shape_groups_rows_that_may_share_a_conversation() -> None:
    """Lines with the same model, system and parameters have the same shape, and lines with a
    history have none.
    """
    judge = {"role": "system", "content": "Judge."}
    base = read_line(line([judge, USER], temperature=0, user="a")).shape

    assert base is not None
    assert (
        base == read_line(line([judge, {"role": "user", "content": "other"}], user="b", temperature=0)).shape
    )
    different = [
        line([judge, USER], temperature=0, model="n"),
        line([judge, USER], temperature=1),
        line([judge, USER], temperature=0, max_tokens=5),
        line([{**judge, "content": "Praise."}, USER], temperature=0),
        line([USER], temperature=0),
    ]
    assert len({read_line(one).shape for one in different} | {base}) == len(different) + 1
    assert read_line(line([judge, USER, {"role": "assistant", "content": "x"}, USER])).shape is None
    assert read_line(line([USER, judge, USER])).shape is None


def test_the_documented_table_names_every_parameter() -> None:
    """Code and documentation come from one table."""
    table = parameter_table()

    assert all(f"| `{name}` |" in table for name in PARAMETERS)
    assert "| `n` | refused: each row has one answer (accepted: `1`) |" in table
