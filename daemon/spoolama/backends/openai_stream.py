"""A streamed chat completion, folded into the body that the same request gives unstreamed."""

from __future__ import annotations

import json
from typing import Any

from spoolama.errors import UnexpectedReply

__all__ = ["fold"]


def fold(text: str) -> dict[str, Any]:
    """The body of a whole event stream, collected.

    An error in the middle becomes the body's `error`; a stream that just ends leaves `finish_reason` null.
    """
    body: dict[str, Any] = {}
    content: list[str] = []
    reasoning: list[str] = []
    logprobs: list[Any] = []
    finish: Any = None
    for chunk in _events(text):
        if "error" in chunk:
            return {"error": chunk["error"]}
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            content.append(delta.get("content") or "")
            reasoning.append(delta.get("reasoning_content") or "")
            logprobs += (choice.get("logprobs") or {}).get("content") or []
            finish = choice.get("finish_reason") or finish
        body.update({key: value for key, value in chunk.items() if key != "choices"})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(content)}
    if any(reasoning):
        message["reasoning_content"] = "".join(reasoning)
    whole: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
    if logprobs:
        whole["logprobs"] = {"content": logprobs}
    return {**body, "object": "chat.completion", "choices": [whole]}


def _events(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in text.split("\n"):
        name, _, data = line.partition(":")
        data = data.strip()
        if name not in {"data", "error"} or not data or data == "[DONE]":
            continue
        try:
            chunk = json.loads(data)
        except ValueError:
            raise UnexpectedReply("the stream has a line that is no JSON", status=200) from None
        if not isinstance(chunk, dict):
            raise UnexpectedReply("the stream has a line that is no object", status=200)
        found.append(chunk if name == "data" else {"error": chunk.get("error", chunk)})
    return found
