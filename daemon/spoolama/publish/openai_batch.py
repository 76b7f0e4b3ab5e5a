"""Converts results to lines of OpenAI's batch output.

Format: https://platform.openai.com/docs/api-reference/batch/request-output
(`id`, `custom_id`, `response` with `status_code`, `request_id` and `body`, `error`). The output file has the
answered requests; the error file has the others, with `response` null and an `error`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from spoolama.publish.result_row import NEVER_ASKED, ResultRow


def batch_line(job: str, result: ResultRow, *, model: str) -> dict[str, Any]:
    """The line of one row. Its ids depend only on job and row, so writing it again gives the same line.

    Args:
        job: The name of the job.
        result: The result of the row; an answer must be a text.
        model: The model of the job, for rows that name none.
    """
    key = hashlib.sha256(f"{job}/{result.row}".encode()).hexdigest()[:24]
    line: dict[str, Any] = {"id": f"batch_req_{key}", "custom_id": result.id, "response": None, "error": None}
    if result.status != "ok":
        error = result.error or {"code": "batch_cancelled", "message": NEVER_ASKED}
        line["error"] = {"code": error["code"], "message": error["message"], "line": result.line}
        return line
    assert isinstance(result.answer, str)
    message: dict[str, Any] = {"role": "assistant", "content": result.answer, "refusal": None}
    if result.thinking:
        message["reasoning_content"] = result.thinking
    body = {
        "id": f"chatcmpl-{key}",
        "object": "chat.completion",
        "created": int(result.at or 0),
        "model": result.model or model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(result),
        "system_fingerprint": None,
    }
    line["response"] = {"status_code": 200, "request_id": f"req_{key}", "body": body}
    return line


def is_batch_output(line: object) -> bool:
    """Whether this is a line of the output or error file of a batch."""
    return isinstance(line, dict) and "custom_id" in line and "response" in line and "body" not in line


def _usage(result: ResultRow) -> dict[str, Any] | None:
    """Token counts, or None if the server did not count; they are never estimated."""
    prompt, completion = result.prompt_tokens, result.completion_tokens
    if prompt is None or completion is None:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if result.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": result.cached_tokens}
    return usage
