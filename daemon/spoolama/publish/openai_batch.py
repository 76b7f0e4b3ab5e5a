"""Rows as lines of OpenAI's batch output.

The form is that of OpenAI's Batch API: https://platform.openai.com/docs/api-reference/batch/request-output
(`id`, `custom_id`, `response` with `status_code`, `request_id` and `body`, `error`). Answered requests stand
in the output file; those without an answer in the error file, with `response` null and `error` filled.
"""

from __future__ import annotations

import hashlib
from typing import Any

from spoolama.publish.record import Record

__all__ = ["batch_line", "is_batch_output"]


def batch_line(job: str, record: Record, *, model: str) -> dict[str, Any]:
    """The line of one row. Its ids are made from job and row, so that writing again gives the same file.

    Args:
        job: The job's name.
        record: How the row ended.
        model: The job's model, for rows that did not ask for one.
    """
    key = hashlib.sha256(f"{job}/{record.row}".encode()).hexdigest()[:24]
    line: dict[str, Any] = {"id": f"batch_req_{key}", "custom_id": record.id, "response": None, "error": None}
    if record.status != "ok":
        error = record.error or {
            "code": "batch_cancelled",
            "message": "never tried: the job ended before its turn",
        }
        line["error"] = {"code": error["code"], "message": error["message"], "line": record.line}
        return line
    message: dict[str, Any] = {"role": "assistant", "content": _text(record), "refusal": None}
    if record.thinking:
        message["reasoning_content"] = record.thinking
    body = {
        "id": f"chatcmpl-{key}",
        "object": "chat.completion",
        "created": int(record.at or 0),
        "model": record.model or model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(record),
        "system_fingerprint": None,
    }
    line["response"] = {"status_code": 200, "request_id": f"req_{key}", "body": body}
    return line


def is_batch_output(line: object) -> bool:
    """Whether this is a line of a batch's output or error file."""
    return isinstance(line, dict) and "custom_id" in line and "response" in line and "body" not in line


def _text(record: Record) -> str:
    assert isinstance(record.answer, str)
    return record.answer


def _usage(record: Record) -> dict[str, Any] | None:
    """Token counts, or null where the server did not count: they are never estimated."""
    prompt, completion = record.prompt_tokens, record.completion_tokens
    if prompt is None or completion is None:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if record.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": record.cached_tokens}
    return usage
