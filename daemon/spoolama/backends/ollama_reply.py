"""Ollama's answer, read with suspicion: HTTP 200 alone does not say that a generation ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from spoolama.backends.base import MOST_COUNTED, Reply
from spoolama.errors import AnswerUnfinished, RequestRefused, UnexpectedReply

__all__ = ["read_reply"]


def read_reply(payload: Mapping[str, Any], *, counts_whole_prompt: bool = True) -> Reply:
    """The answer of `/api/chat`.

    Success is `done: true` and a `done_reason` of `stop` or `length`. A body without `done: true` is what
    Ollama sends when its engine stopped in the middle (a chunk repeated too often, an error after a token).

    Args:
        payload: The body.
        counts_whole_prompt: Whether `prompt_eval_count` has the cached tokens too; if not, it is no length.
    """
    if host := payload.get("remote_host"):
        raise RequestRefused(
            f"the answer came from {host}, not from this server",
            status=200,
            mend="Choose a model that runs on the server: rows are never sent to a remote one.",
        )
    if payload.get("done") is not True:
        raise AnswerUnfinished("the answer ended without `done`", status=200)
    reason = payload.get("done_reason")
    finish: Literal["stop", "length"]
    if reason == "stop":
        finish = "stop"
    elif reason == "length":
        finish = "length"
    else:
        raise AnswerUnfinished(f"the answer ended with done_reason {reason!r}", status=200)
    message = payload.get("message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise UnexpectedReply("the answer has no message with text", status=200)
    thinking = message.get("thinking")
    return Reply(
        text=message["content"],
        finish=finish,
        prompt_tokens=_count(payload, "prompt_eval_count") if counts_whole_prompt else None,
        # Since 0.33.3. Absent is not zero: absent means that this server does not count.
        cached_tokens=_count(payload, "prompt_eval_cached_count"),
        completion_tokens=_count(payload, "eval_count"),
        load_s=_seconds(payload, "load_duration"),
        prompt_s=_seconds(payload, "prompt_eval_duration"),
        eval_s=_seconds(payload, "eval_duration"),
        total_s=_seconds(payload, "total_duration"),
        thinking=thinking if isinstance(thinking, str) and thinking else None,
        raw=payload,
    )


def _count(payload: Mapping[str, Any], key: str) -> int | None:
    value = payload.get(key)
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNTED
    return value if known else None


def _seconds(payload: Mapping[str, Any], key: str) -> float | None:
    nanoseconds = _count(payload, key)
    return None if nanoseconds is None else nanoseconds / 1e9
