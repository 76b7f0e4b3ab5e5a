"""Converts OpenAI batch lines into requests to the local model, and refuses unsupported parameters.

A line is `{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}`. `PARAMETERS`
defines the keys of the body; the table in docs/openai-batch.md has the same content. A parameter that would
change the answer is never ignored: it is mapped, or the line is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jsonschema

from spoolama.errors import RowError
from spoolama.evaluation.child.schemas import dialect_problem
from spoolama.job.row import LineRequest, RowRequest
from spoolama.job.sidecar import MOST_OF_MODEL
from spoolama.job.strict_json import canonical, parse_json

_URL = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A key of the request body and its treatment."""

    name: str
    treatment: Literal["mapped", "ignored", "refused"]
    note: str
    """`mapped`: the target. `ignored` and `refused`: the reason."""
    convert: Callable[[Any], Any] | None = None
    """`mapped`: validates and converts the value; raises ValueError."""
    option: str = ""
    """`mapped` to a sampling option: the name of that option."""
    harmless: tuple[Any, ...] = ()
    """`refused`: values that have no effect and are accepted."""


def _number(low: float, high: float) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return value

    return convert


def _whole(low: int, high: int = 2**63 - 1) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError("must be a whole number" + (f" from {low}" if low >= 0 else ""))
        return value

    return convert


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("must be text or a list of texts")
    return stops


def _think(value: Any) -> bool | str:
    levels: dict[Any, bool | str] = {
        "none": False,
        "minimal": "low",
        "low": "low",
        "medium": "medium",
        "high": "high",
    }
    if not isinstance(value, str) or value not in levels:
        raise ValueError(f"must be one of {', '.join(levels)}")
    return levels[value]


_ONE = "each row has one answer"
_TEXT = "text only"

PARAMETERS: Mapping[str, Parameter] = {
    p.name: p
    for p in (
        Parameter(
            "messages",
            "mapped",
            "the conversation; `developer` means `system`; text parts are joined",
        ),
        Parameter("model", "mapped", "the model; default: the sidecar's"),
        Parameter(
            "max_completion_tokens", "mapped", "`num_predict`; default: the sidecar's, or 256", _whole(1)
        ),
        Parameter("max_tokens", "mapped", "`num_predict`, if `max_completion_tokens` is missing", _whole(1)),
        Parameter(
            "temperature",
            "mapped",
            "`temperature`; default: the sidecar's, or 0",
            _number(0, 2),
            "temperature",
        ),
        Parameter("top_p", "mapped", "`top_p`", _number(0, 1), "top_p"),
        Parameter("seed", "mapped", "`seed`; default: the sidecar's, or 7", _whole(-(2**63)), "seed"),
        Parameter("stop", "mapped", "`stop`", _stops, "stop"),
        Parameter("presence_penalty", "mapped", "`presence_penalty`", _number(-2, 2), "presence_penalty"),
        Parameter("frequency_penalty", "mapped", "`frequency_penalty`", _number(-2, 2), "frequency_penalty"),
        Parameter(
            "response_format", "mapped", "`format`: `json_object`, `json_schema` (validated again) or `text`"
        ),
        Parameter("reasoning_effort", "mapped", "`think`: `none` is off, `minimal` is `low`", _think),
        Parameter("user", "ignored", "names an end user for OpenAI"),
        Parameter("safety_identifier", "ignored", "names an end user for OpenAI"),
        Parameter("metadata", "ignored", "for OpenAI's own records"),
        Parameter("store", "ignored", "for OpenAI's own records"),
        Parameter("service_tier", "ignored", "OpenAI's prices"),
        Parameter("prompt_cache_key", "ignored", "OpenAI's cache; local rows with the same prefix share it"),
        Parameter("prompt_cache_retention", "ignored", "OpenAI's cache"),
        Parameter("prediction", "ignored", "changes the speed at OpenAI, not the answer"),
        Parameter("stream_options", "ignored", "has no effect without `stream`"),
        Parameter("parallel_tool_calls", "ignored", "has no effect without `tools`"),
        Parameter("n", "refused", _ONE, harmless=(1,)),
        Parameter("stream", "refused", "answers are written to files", harmless=(False,)),
        Parameter("logprobs", "refused", "log probabilities are not returned", harmless=(False,)),
        Parameter("top_logprobs", "refused", "log probabilities are not returned", harmless=(0,)),
        Parameter("logit_bias", "refused", "token ids differ between models", harmless=({},)),
        Parameter("tools", "refused", "spoolama runs no tools", harmless=([],)),
        Parameter("tool_choice", "refused", "spoolama runs no tools", harmless=("none", "auto")),
        Parameter("functions", "refused", "spoolama runs no tools", harmless=([],)),
        Parameter("function_call", "refused", "spoolama runs no tools", harmless=("none", "auto")),
        Parameter("web_search_options", "refused", "spoolama has no web search"),
        Parameter("modalities", "refused", _TEXT, harmless=(["text"],)),
        Parameter("audio", "refused", _TEXT),
        Parameter(
            "verbosity",
            "refused",
            "local models have no such setting; put it into the prompt",
            harmless=("medium",),
        ),
    )
}


def read_line(line: Mapping[str, Any]) -> LineRequest:
    """Parse a line.

    Raises:
        RowError: `unsupported_request` with the parameter's name, or `empty_prompt`.
    """
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise _refused("custom_id", "must be a text that names the row")
    if line.get("method") != "POST":
        raise _refused("method", "must be POST")
    if line.get("url") != _URL:
        raise _refused("url", f"only {_URL} is supported, not {_shown(line.get('url'))}")
    body = line.get("body")
    if not isinstance(body, dict):
        raise _refused("body", "must be an object")
    given = {key: value for key, value in body.items() if value is not None}
    sampling: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for key, value in given.items():
        parameter = PARAMETERS.get(key)
        if parameter is None:
            raise _refused(key, "is not a known parameter of chat completions")
        if parameter.treatment == "refused" and not any(_same(value, ok) for ok in parameter.harmless):
            raise _refused(key, f"is not supported: {parameter.note}")
        if parameter.convert is not None:
            try:
                values[key] = parameter.convert(value)
            except ValueError as error:
                raise _refused(key, str(error)) from None
            if parameter.option:
                sampling[parameter.option] = values[key]
    model = given.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        raise _refused("model", "must be the model's name")
    if model is not None and len(model) > MOST_OF_MODEL:
        raise _refused("model", f"has {len(model):,} characters; the limit is {MOST_OF_MODEL}")
    messages = _messages(given.get("messages"))
    form = _format(given["response_format"]) if "response_format" in given else None
    num_predict = values.get("max_completion_tokens", values.get("max_tokens"))
    think = values.get("reasoning_effort")
    shape = None
    if [role for role, _ in messages[:-1]] in ([], ["system"]):
        same = [model, messages[:-1], num_predict, sampling, form, think]
        shape = hashlib.sha256(canonical(same).encode()).hexdigest()[:16]
    return LineRequest(RowRequest(messages, num_predict, sampling, form, think), model, shape)


def _messages(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise _refused("messages", "must be a list of at least one message")
    messages = tuple(_message(message, f"messages[{place}]") for place, message in enumerate(value))
    if messages[-1][0] != "user":
        raise _refused("messages", "must end with a user message")
    if not messages[-1][1].strip():
        raise RowError("empty_prompt", "the last message is empty")
    return messages


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise _refused(where, "must be an object")
    role = message.get("role")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise _refused(f"{where}.role", f"{_shown(role)} is not supported; use system, user or assistant")
    for key in ("tool_calls", "function_call", "audio", "refusal"):
        if message.get(key):
            raise _refused(f"{where}.{key}", "is not supported: text only")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{place}]") for place, part in enumerate(content))
    if not isinstance(content, str):
        raise _refused(f"{where}.content", "must be text")
    return str(role), content


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text":
        raise _refused(where, f"a part of type {_shown(kind)} is not supported: text only")
    if not isinstance(text, str):
        raise _refused(f"{where}.text", "must be text")
    return text


def _format(value: Any) -> Mapping[str, Any] | Literal["json", "text"]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return "text"
    if kind == "json_object":
        return "json"
    if kind != "json_schema":
        raise _refused("response_format", "its type must be text, json_object or json_schema")
    wrapper = value.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise _refused("response_format", "json_schema.schema must be a JSON Schema")
    if problem := _schema_problem(canonical(schema)):
        raise _refused("response_format", f"json_schema.schema is not a valid JSON Schema: {problem}")
    return schema


@lru_cache(maxsize=8)
def _schema_problem(schema: str) -> str | None:
    """Return what is wrong with a schema; cached, because the lines of a file often have the same one."""
    parsed = parse_json(schema)
    if problem := dialect_problem(parsed):
        return problem
    try:
        validator = jsonschema.validators.validator_for(parsed, default=jsonschema.Draft202012Validator)
        validator.check_schema(parsed)
    except jsonschema.SchemaError as error:
        return f"{error.json_path}: {error.message[:200]}"
    except MemoryError:  # reported by the caller
        raise
    except Exception as error:  # the library may raise anything for an invalid schema
        return str(error)[:200] or type(error).__name__
    return None


def _refused(parameter: str, why: str) -> RowError:
    return RowError("unsupported_request", f"{parameter}: {why}", details={"parameter": parameter})


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def _shown(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 60 else text[:60] + "…"
