"""What Ollama refuses before it uses a model, with its statuses and texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from support.fake_ollama_answers import bad_schema
from support.fake_ollama_script import FakeModel, Script

_INTEGERS = {
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "num_predict", "seed", "top_k",
    "repeat_last_n",
}  # fmt: skip
_FLOATS = {
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
}
_DURATION = re.compile(r"-?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+")


class Refused(Exception):
    """A status and an `error` text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def nested(code: int, message: str, kind: str, **fields: int) -> str:
    """Return an error of the engine in Ollama's form: JSON inside a JSON string."""
    return json.dumps(
        {"error": {"code": code, "message": message, "type": kind, **fields}}, separators=(",", ":")
    )


def read_body(raw: bytes) -> dict[str, Any]:
    """The body as JSON."""
    if not raw:
        raise Refused(400, "missing request body")
    try:
        body = json.loads(raw)
    except ValueError:
        raise Refused(400, "unexpected EOF") from None
    if not isinstance(body, dict):
        raise Refused(400, "json: cannot unmarshal into Go value of type api.ChatRequest")
    keep_alive(body)
    return body


def keep_alive(body: Mapping[str, Any]) -> float | None:
    """Return seconds; negative means unlimited, None not given."""
    value = body.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return -1.0 if value.startswith("-") else 0.0 if float(re.findall(r"\d+", value)[0]) == 0 else 300.0
    raise Refused(400, f'time: missing unit in duration "{value}"')


def find_model(script: Script, name: str, *, show: bool = False) -> FakeModel:
    """Return a model that exists and runs here."""
    if not name:
        raise Refused(400, "model is required")
    tag = name.rpartition(":")[2] if ":" in name else ""
    if tag == "cloud" or tag.endswith("-cloud"):
        raise Refused(403, "ollama cloud is disabled: remote model is unavailable")
    full = name if ":" in name else f"{name}:latest"
    for model in script.models:
        if full in {model.name, f"{model.name}:latest"}:
            return model
    if script.any_model and script.models:
        first = script.models[0]
        return FakeModel(full, context_length=first.context_length, window=first.window, load_s=first.load_s)
    raise Refused(404, f"model '{full if show else name}' not found")


def check_options(options: Mapping[str, Any]) -> None:
    """Check the types of known options; unknown ones are ignored."""
    for name, value in options.items():
        if name in _INTEGERS and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise Refused(500, f'option "{name}" must be of type integer')
        if name in _FLOATS and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise Refused(500, f'option "{name}" must be of type float32')
        if name == "use_mmap" and not isinstance(value, bool):
            raise Refused(500, f'option "{name}" must be of type boolean')
        if name == "stop" and not isinstance(value, list):
            raise Refused(500, f'option "{name}" must be of type array')


def check_think(model: FakeModel, think: Any) -> None:
    """Refuse thinking for a model that cannot think."""
    if think is None or isinstance(think, bool):
        pass
    elif think not in {"low", "medium", "high", "max"}:
        raise Refused(
            400, f'invalid think value: "{think}" (must be "high", "medium", "low", "max", true, or false)'
        )
    if think and "thinking" not in model.capabilities:
        raise Refused(400, f'"{model.name}" does not support thinking')


def check_format(form: Any) -> None:
    """Check that the format is `json` or a schema that llama.cpp supports."""
    if form is None or form in ("", "json"):
        return
    if not isinstance(form, dict):
        quoted = json.dumps(json.dumps(form))
        raise Refused(500, f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
    if problem := bad_schema(form):
        message = f"Field 'json_schema': \"json_schema\": JSON schema conversion failed:\n{problem}"
        raise Refused(400, nested(400, message, "invalid_request_error"))
