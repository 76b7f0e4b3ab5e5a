"""Recognizes error messages that several servers share: prompt too long, out of memory.

Structured codes take precedence (`exceed_context_size_error`, `context_length_exceeded`). Message texts are
parsed only if a server gives nothing else; all known texts are listed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from spoolama.errors import ContextOverflow

__all__ = ["error_object", "is_out_of_memory", "overflow"]

# Groups: tokens of the prompt, tokens of the window. The forms with both sizes come first.
_OVERFLOW_FORMS = (
    # llama-server: "request (351 tokens) exceeds the available context size (256 tokens)"
    re.compile(
        r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<window>\d+) tokens\)"
    ),
    # Ollama's MLX runner: "input length (N tokens) exceeds the model's maximum context length (M tokens)"
    re.compile(
        r"input length \((?P<prompt>\d+) tokens\) exceeds .*context length \((?P<window>\d+) tokens\)"
    ),
    # SGLang says "The input (N tokens) is longer than the model's context length (M tokens)"
    re.compile(
        r"input \((?P<prompt>\d+) tokens\) is longer than .*context length \((?P<window>\d+) tokens\)"
    ),
    # vLLM, three generations, and the second form of SGLang; the sizes come in either order.
    re.compile(r"(?P<prompt>\d+) input tokens.*maximum context length of (?P<window>\d+)", re.DOTALL),
    re.compile(
        r"maximum context length (?:is|of) (?P<window>\d+)(?:.*?(?P<prompt>\d+) (?:tokens )?"
        r"(?:in the messages|input tokens|from the input messages))?",
        re.DOTALL,
    ),
    # Ollama up to 0.24 and, with context shift off, later ones: no sizes.
    re.compile(r"the input length exceeds the context length"),
    re.compile(r"the prompt is longer than the context length currently available"),
)

# Texts that Ollama itself recognizes (llm/status.go), and messages of the kernel or CUDA in a log.
_MEMORY_WORDS = (
    "out of memory",
    "out of device memory",
    "out-of-memory",
    "outofmemory",
    "cudamalloc failed",
    "hipmalloc failed",
    "failed to allocate",
    "unable to allocate",
    "allocation failed",
    "not enough memory",
    "insufficient memory",
    "cannot allocate memory",
    "requires more system memory",
    "std::bad_alloc",
    "erroroutofdevicememory",
    "vk_error_out_of_device_memory",
)


def error_object(payload: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the message and the fields of an error body at any nesting depth.

    Ollama forwards llama-server's error as JSON inside a JSON string: `{"error": "{\\"error\\": {...}}"}`.
    """
    fields: Mapping[str, Any] = {}
    message = ""
    found = payload
    for _ in range(8):
        if isinstance(found, str):
            message = found
            try:
                inner = json.loads(found)
            except ValueError:
                break
            if not isinstance(inner, dict):
                break
            found = inner
        elif isinstance(found, dict):
            fields = found
            for key in ("error", "message", "detail"):
                if isinstance(found.get(key), str | dict):
                    found = found[key]
                    break
            else:
                break
        else:
            break
    return message, fields


def overflow(message: str, fields: Mapping[str, Any], *, status: int | None) -> ContextOverflow | None:
    """Return the error for a prompt that does not fit, with the server's counts if known; None otherwise."""
    prompt = _count(fields.get("n_prompt_tokens"))
    window = _count(fields.get("n_ctx"))
    structured = (
        fields.get("type") == "exceed_context_size_error" or fields.get("code") == "context_length_exceeded"
    )
    for form in _OVERFLOW_FORMS:
        if match := form.search(message):
            sizes = match.groupdict()
            prompt = prompt if prompt is not None else _count(sizes.get("prompt"))
            window = window if window is not None else _count(sizes.get("window"))
            structured = True
            break
    if not structured:
        return None
    return ContextOverflow(message, status=status, prompt_tokens=prompt, num_ctx=window)


def is_out_of_memory(text: str) -> bool:
    """Whether a text reports a lack of memory."""
    lower = text.lower()
    return any(words in lower for words in _MEMORY_WORDS)


def _count(value: Any) -> int | None:
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
