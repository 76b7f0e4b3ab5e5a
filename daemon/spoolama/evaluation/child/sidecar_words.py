"""What the sidecar's keys expect, in words with an example, and which keys are to come or were renamed."""

from __future__ import annotations

from collections.abc import Mapping

_TEXT = "a text"
_COLUMN = "the name of a column"

EXPECTED: Mapping[str, tuple[str, str]] = {
    "model": ("the model's name, as a text", "gemma3:12b"),
    "models": ("a mapping from a name in OpenAI lines to a model here", "{gpt-4o-mini: gemma3:12b}"),
    "system": (_TEXT, "You are a strict recruiter."),
    "prompt": ("a template, as a text", "'{{ name }}, {{ years }} years'"),
    "examples": ("a list of turns with user and assistant", "[{user: Great phone!, assistant: positive}]"),
    "examples[]": ("a turn with user and assistant", "{user: Great phone!, assistant: positive}"),
    "examples[].user": (_TEXT, "Great phone!"),
    "examples[].assistant": (_TEXT, "positive"),
    "mode": ("conversation or isolated", "conversation"),
    "id": (_COLUMN, "candidate_id"),
    "options": ("a mapping of the model's options", "{num_ctx: 8192, num_predict: 200}"),
    "options.num_ctx": ("a whole number of tokens from 128 to 10000000", "8192"),
    "options.num_predict": ("a whole number of tokens from 1 to 10000000", "200"),
    "options.temperature": ("a number from 0 to 100", "0.7"),
    "options.seed": ("a whole number from -2^53 to 2^53", "7"),
    "options.top_k": ("a whole number from 0", "40"),
    "options.top_p": ("a number from 0 to 1", "0.9"),
    "options.min_p": ("a number from 0 to 1", "0.05"),
    "options.repeat_penalty": ("a number from 0 to 100", "1.1"),
    "options.repeat_last_n": ("a whole number from -1", "64"),
    "options.presence_penalty": ("a number from -100 to 100", "0.5"),
    "options.frequency_penalty": ("a number from -100 to 100", "0.5"),
    "options.stop": ("a list of up to 64 texts", "['END']"),
    "options.stop[]": (_TEXT, "END"),
    "options.num_batch": ("a whole number from 1", "512"),
    "options.num_gpu": ("a whole number from -1", "99"),
    "options.main_gpu": ("a whole number from 0", "0"),
    "options.use_mmap": ("true or false", "true"),
    "options.num_thread": ("a whole number from 1", "8"),
    "format": (
        "a JSON Schema, or json",
        "{type: object, properties: {score: {type: integer}}, required: [score]}",
    ),
    "think": ("true, false, low, medium, high or max", "false"),
    "trim": ("a mapping with strategy", "{strategy: window, keep: 20}"),
    "trim.strategy": ("auto, reset, window, anchors, important, hybrid or budget", "anchors"),
    "trim.every": ("a whole number of rows from 1 to 100000", "20"),
    "trim.keep": ("a whole number of rows from 1 to 100000", "20"),
    "trim.anchors": ("a whole number of rows from 1 to 24", "6"),
    "trim.choose": ("spread, important, or a list of row ids", "spread"),
    "trim.choose[]": ("a row's id", "17"),
    "trim.important": ("a whole number of rows from 1 to 100000", "6"),
    "trim.score": ("spread, uncertain, or an expression, as a text", "answer.score"),
    "trim.tokens": ("a whole number of tokens from 1 to 10000000", "1500"),
    "trim.high": ("a share above 0 and up to 1", "0.75"),
    "trim.low": ("a share from 0 and below 1", "0.375"),
    "trim.pilot": ("a whole number of answers from 0 to 1000000, or auto", "400"),
    "trim.margin": ("a share above 0 and up to 0.5", "0.05"),
    "prime": ("auto, always or never", "auto"),
    "long_rows": ("fail or second_pass", "second_pass"),
    "vram": ("a mapping with high, critical or keep_free_gb", "{critical: 0.9}"),
    "vram.high": ("a share of the card up to 1, or GB above it", "0.8"),
    "vram.critical": ("a share of the card up to 1, or GB above it", "14.5"),
    "vram.keep_free_gb": ("a number of GB from 0", "1"),
    "repair": ("a mapping with temperature", "{temperature: 0.3}"),
    "repair.temperature": ("a number from 0 to 100", "0.3"),
    "segment": ("a whole number of rows from 1 to 10000000, or all", "200"),
    "lanes": ("a whole number from 1 to 256", "4"),
    "gold": (_COLUMN, "human_rating"),
    "audit": ("auto, off, or a whole number of rows from 0 to 1000000", "200"),
    "on_harm": ("report, isolate or fail", "isolate"),
    "answer_key": ("a key of the answer, as a text", "score"),
    "retries": ("a whole number from 0 to 20", "3"),
    "timeout": ("a number of seconds from 0.1 to 86400", "120"),
    "max_failed": ("a number of rows from 0, or a share from 0.0 to 1.0", "0.01"),
    "expect": ("a mapping with rows or sha256", "{rows: 170000}"),
    "expect.rows": ("a whole number of rows from 0", "170000"),
    "expect.sha256": ("64 hexadecimal digits in quotes, as sha256sum prints them", "'" + "ab" * 32 + "'"),
    "output": ("a list of jsonl and csv", "[jsonl, csv]"),
    "output[]": ("jsonl or csv", "jsonl"),
    "priority": ("a whole number from -100 to 100", "10"),
}
"""Dotted key (`[]` for any item) to what it expects and an example, both as a person would write them."""

NOT_YET: Mapping[str, str] = {}
"""Keys of later versions, and what to do until then."""

RENAMED: Mapping[str, tuple[str, str]] = {
    "on_collapse": (
        "on_collapse is called on_harm now: report, isolate (was redo) or fail",
        "for example on_harm: isolate",
    )
}
"""Keys of earlier versions, what to say, and what to write instead."""
