"""Parses Ollama's answers and rejects incomplete ones, which also have HTTP status 200."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from spoolama.backends.base import MOST_COUNTED, Reply
from spoolama.backends.logprobs import mean_logprob
from spoolama.errors import AnswerUnfinished, RequestRefused, UnexpectedReply

__all__ = ["read_generated", "read_rendered", "read_reply"]


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
            fix="Choose a model that runs on the server: rows are never sent to a remote one.",
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
        prompt_tokens=_count(payload, "prompt_eval_count") if counts_whole_prompt else None,
        # Since 0.33.3. If it is absent, the server does not count cached tokens.
        cached_tokens=_count(payload, "prompt_eval_cached_count"),
        completion_tokens=_count(payload, "eval_count"),
        load_s=_seconds(payload, "load_duration"),
        prompt_s=_seconds(payload, "prompt_eval_duration"),
        eval_s=_seconds(payload, "eval_duration"),
        thinking=thinking,
        raw=payload,
        logprob=mean_logprob(payload.get("logprobs")),
    )


def _count(payload: Mapping[str, Any], key: str) -> int | None:
    value = payload.get(key)
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNTED
    return value if known else None


def _seconds(payload: Mapping[str, Any], key: str) -> float | None:
    nanoseconds = _count(payload, key)
    return None if nanoseconds is None else nanoseconds / 1e9
