"""Converts a streamed chat completion into the body of the same request without streaming."""

from __future__ import annotations

import json
from typing import Any

from spoolama.errors import UnexpectedReply

__all__ = ["fold"]


def fold(text: str) -> dict[str, Any]:
    """Combine a whole event stream into one body.

    An error in the stream becomes the `error` of the body; if the stream ends early, `finish_reason` is null.
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
            raise UnexpectedReply("the stream has a line that is not JSON", status=200) from None
        if not isinstance(chunk, dict):
            raise UnexpectedReply("the stream has a line that is not an object", status=200)
        found.append(chunk if name == "data" else {"error": chunk.get("error", chunk)})
    return found
