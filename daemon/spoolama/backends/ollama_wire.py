"""Parses Ollama's replies: answers, model descriptions and errors.

Statuses and texts come from Ollama's source (v0.24.0 to v0.33) and from recordings of a running server.
Its error body is `{"error": "text"}`; status 500 has many meanings, so its text decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spoolama.backends.base import HeldModel, LoadedModel, LoadSpec, Reply, ServerInfo
from spoolama.backends.gguf_header import MOST_KEPT, Tensor
from spoolama.backends.http import HttpReply
from spoolama.backends.replies import ErrorRules, checked_reply, count, integer, mean_logprob
from spoolama.errors import AnswerUnfinished, RequestRefused, UnexpectedReply

_REFUSED_IN_500 = ("must be of type", "invalid format", "failed to parse grammar", "failed to load grammar")
_DIED_IN_500 = (
    "model runner has unexpectedly stopped",
    "an error was encountered while running the model",
    "llama-server process has terminated",
    "error starting llama-server",
    "timed out waiting for llama-server to start",
    "llama runner process has terminated",  # up to 0.24
    "llama runner process no longer running",
    "timed out waiting for llama runner to start",
    "error starting runner",
    "mlx runner",
)

_FIXES = (
    ("does not support thinking", "Remove `think` from the sidecar, or choose a model that can think."),
    ("think value", "Set `think` to true, false, low, medium or high."),
    (
        "json schema conversion failed",
        "Change `format` in the sidecar: the server does not support this JSON Schema.",
    ),
    ("json_schema", "Change `format` in the sidecar: the server does not support this JSON Schema."),
    ("grammar", "Simplify `format` in the sidecar: the server does not support this JSON Schema."),
    ("invalid format", "Set `format` to `json` or to a JSON Schema."),
    ("must be of type", "Correct that key under `options` in the sidecar."),
    ("does not support chat", "Choose a chat model; this one computes embeddings."),
    ("does not support", "Choose a model that supports this, or remove the setting."),
)
_STAYS_HERE = "Choose a model that runs on the server: rows are never sent to a remote one."


def checked(reply: HttpReply, *, model: str | None = None) -> Mapping[str, Any]:
    """Return the body of a successful reply; raise an error for any other."""
    return checked_reply(reply, _RULES, model=model)


def _fix(status: int, reply: HttpReply, message: str, model: str | None) -> str:
    """What the user can do about a refused request."""
    lower = message.lower()
    if status == 404:
        if isinstance(reply.payload, dict) and model is not None:
            return f"On the server: ollama pull {model}"
        return "Set the backend's url to the address of Ollama, without a path."
    if status == 403:
        if "cloud" in lower:
            return _STAYS_HERE
        return "Ollama accepts only local host names: use its IP address or 127.0.0.1 in the backend's url."
    return next((fix for words, fix in _FIXES if words in lower), "")


_RULES = ErrorRules(died=_DIED_IN_500, refused=_REFUSED_IN_500, fix=_fix)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts of a model from `/api/show`."""

    can_think: bool
    trained_ctx: int | None
    sliding_window: int | None
    info: Mapping[str, Any] = field(default_factory=dict)
    """`model_info`: the keys of the GGUF header; lists are left out unless the answer is `verbose`."""
    tensors: tuple[Tensor, ...] = ()


def read_show(name: str, payload: Mapping[str, Any]) -> ModelFacts:
    """Parse the body of `/api/show`.

    Raises:
        RequestRefused: the model runs elsewhere or cannot chat.
    """
    if host := payload.get("remote_host"):
        raise RequestRefused(
            f"model {name!r} runs on {host}, not on this server",
            fix=_STAYS_HERE,
        )
    capabilities = payload.get("capabilities")
    known = capabilities if isinstance(capabilities, list) else []
    if known and "completion" not in known:
        raise RequestRefused(
            f"model {name!r} cannot chat; its capabilities are: {', '.join(map(str, known))}",
            fix="Choose a model that can chat.",
        )
    info = payload.get("model_info")
    info = info if isinstance(info, dict) else {}
    kind = info.get("general.architecture")
    # The keys are those of the GGUF header; there 0 means none.
    return ModelFacts(
        can_think="thinking" in known,
        trained_ctx=integer(info.get(f"{kind}.context_length")) or None,
        sliding_window=integer(info.get(f"{kind}.attention.sliding_window")) or None,
        info={key: value for key, value in info.items() if not _is_long(value)},
        tensors=tuple(_tensors(payload.get("tensors"))),
    )


def _is_long(value: Any) -> bool:
    """Whether a value is dropped: a `verbose` reply has vocabularies of about 30 MB, which are not used."""
    return isinstance(value, list | str) and len(value) > MOST_KEPT


def _tensors(listed: Any) -> Iterator[Tensor]:
    """Yield the valid tensors of a list; types have llama.cpp's names."""
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict):
            continue
        name, kind, shape = _str(entry.get("name")), _str(entry.get("type")), entry.get("shape")
        if name is None or not isinstance(shape, list):
            continue
        sizes = [size for item in shape if (size := integer(item)) is not None and size > 0]
        if len(sizes) == len(shape):
            yield Tensor(name, kind, tuple(sizes))


def size_of(name: str, payload: Mapping[str, Any]) -> int | None:
    """Return the size of the model's files from the body of `/api/tags`; None: it is not listed."""
    entry = listed(name, payload)
    return (integer(entry.get("size")) or None) if entry is not None else None


def listed(name: str, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the model's entry in the body of `/api/ps` or `/api/tags`; None: it is not listed."""
    full = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    models = payload.get("models")
    for entry in models if isinstance(models, list) else []:
        if isinstance(entry, dict) and full.lower() in {
            str(entry.get("name")).lower(),
            str(entry.get("model")).lower(),
        }:
            return entry
    return None


def held_models(payload: Mapping[str, Any]) -> tuple[HeldModel, ...]:
    """Return every model in the body of `/api/ps`."""
    models = payload.get("models")
    return tuple(
        HeldModel(
            str(entry.get("name")),
            integer(entry.get("size")),
            integer(entry.get("size_vram")),
            integer(entry.get("context_length")),
        )
        for entry in (models if isinstance(models, list) else [])
        if isinstance(entry, dict)
    )


def loaded_model(
    name: str, entry: Mapping[str, Any], facts: ModelFacts, server: ServerInfo, *, load_s: float | None = None
) -> LoadedModel:
    """Combine an entry of `/api/ps` with the facts of the model."""
    return LoadedModel(
        name=name,
        digest=_str(entry.get("digest")),
        num_ctx=integer(entry.get("context_length")),
        slots=None,  # no route reports OLLAMA_NUM_PARALLEL
        server=server,
        size_bytes=integer(entry.get("size")),
        vram_bytes=integer(entry.get("size_vram")),
        can_think=facts.can_think,
        load_s=load_s,
        sliding_window=facts.sliding_window,
        trained_ctx=facts.trained_ctx,
    )


def refuse_cloud_name(name: str) -> None:
    """Refuse names that Ollama forwards to a remote service (`modelref.go`)."""
    tag = name.rpartition("/")[2].partition(":")[2].lower()
    if tag == "cloud" or tag.endswith("-cloud"):
        raise RequestRefused(
            f"model {name!r} is a cloud model",
            fix=_STAYS_HERE,
        )


def too_small(spec: LoadSpec, window: int, trained: int | None) -> RequestRefused:
    """Return the error for a model that the server loaded with a smaller window than requested."""
    own = f"; the maximum of the model is {trained}" if trained is not None else ""
    fix = f"Set options.num_ctx to {window} or less"
    if trained is None or window < trained:
        fix += ", or give the server more memory"
    return RequestRefused(
        f"the server loaded {spec.model!r} with a window of {window} tokens instead of {spec.num_ctx}{own}",
        fix=f"{fix}.",
    )


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def read_reply(payload: Mapping[str, Any], *, counts_whole_prompt: bool = True) -> Reply:
    """Parse the answer of `/api/chat`.

    Success is `done: true` and a `done_reason` of `stop` or `length`. Ollama sends a body without
    `done: true` if its engine stopped early (too many repetitions, or an error after the first token).

    Args:
        payload: The body.
        counts_whole_prompt: Whether `prompt_eval_count` includes cached tokens; if not, it is not used.
    """
    finish = _finish(payload)
    message = payload.get("message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise UnexpectedReply("the answer has no message with text", status=200)
    thinking = message.get("thinking")
    return _reply(
        payload,
        text=message["content"],
        finish=finish,
        thinking=thinking if isinstance(thinking, str) and thinking else None,
        counts_whole_prompt=counts_whole_prompt,
    )


def read_generated(payload: Mapping[str, Any], *, counts_whole_prompt: bool = True) -> Reply:
    """Parse the answer of `/api/generate`, which has the text in another key."""
    finish = _finish(payload)
    text = payload.get("response")
    if not isinstance(text, str):
        raise UnexpectedReply("the answer has no `response` text", status=200)
    return _reply(payload, text=text, finish=finish, thinking=None, counts_whole_prompt=counts_whole_prompt)


def read_rendered(payload: Mapping[str, Any]) -> str | None:
    """Return the rendered prompt of a chat with `_debug_render_only`; None: the server did not render."""
    info = payload.get("_debug_info")
    rendered = info.get("rendered_template") if isinstance(info, dict) else None
    return rendered if isinstance(rendered, str) else None


def _finish(payload: Mapping[str, Any]) -> Literal["stop", "length"]:
    if host := payload.get("remote_host"):
        raise RequestRefused(
            f"the answer came from {host}, not from this server",
            status=200,
            fix=_STAYS_HERE,
        )
    if payload.get("done") is not True:
        raise AnswerUnfinished("the answer ended without `done`", status=200)
    match reason := payload.get("done_reason"):
        case "stop":
            return "stop"
        case "length":
            return "length"
        case _:
            raise AnswerUnfinished(f"the answer ended with done_reason {reason!r}", status=200)


def _reply(
    payload: Mapping[str, Any],
    *,
    text: str,
    finish: Literal["stop", "length"],
    thinking: str | None,
    counts_whole_prompt: bool,
) -> Reply:
    return Reply(
        text=text,
        finish=finish,
        prompt_tokens=count(payload, "prompt_eval_count") if counts_whole_prompt else None,
        # Since 0.33.3. If it is absent, the server does not count cached tokens.
        cached_tokens=count(payload, "prompt_eval_cached_count"),
        completion_tokens=count(payload, "eval_count"),
        load_s=_seconds(payload, "load_duration"),
        prompt_s=_seconds(payload, "prompt_eval_duration"),
        eval_s=_seconds(payload, "eval_duration"),
        thinking=thinking,
        raw=payload,
        logprob=mean_logprob(payload.get("logprobs")),
    )


def _seconds(payload: Mapping[str, Any], key: str) -> float | None:
    nanoseconds = count(payload, key)
    return None if nanoseconds is None else nanoseconds / 1e9
