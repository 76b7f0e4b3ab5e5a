"""What servers say when they cannot answer, in the forms that several of them share.

Where there is a structure it decides (`exceed_context_size_error`, `context_length_exceeded`); sentences are
read only where a server gives nothing else, and every sentence known stands here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from spoolama.errors import ContextOverflow

__all__ = ["error_object", "is_out_of_memory", "overflow"]

# (what it says) -> the prompt's tokens, the window's. First the forms with both sizes.
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
    # vLLM, three generations, and the second form of SGLang; the sizes stand in either order.
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

# As Ollama itself recognises it (llm/status.go), and as the kernel's or CUDA's own words reach a log.
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
    """The message and the fields of an error body, however deep it stands.

    Ollama hands llama-server's error on as JSON inside a JSON string: `{"error": "{\\"error\\": {...}}"}`.
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
    """The prompt did not fit: with the server's own counts where it gives them."""
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
    """Whether a text says that memory was short."""
    lower = text.lower()
    return any(words in lower for words in _MEMORY_WORDS)


def _count(value: Any) -> int | None:
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
