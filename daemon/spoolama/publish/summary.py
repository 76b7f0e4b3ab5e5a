"""summary.txt: one screen for a person. Made from metrics.json, so that the two cannot disagree."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spoolama.clock import duration
from spoolama.publish.agreed import weakness
from spoolama.publish.conversation_metrics import server_sentences
from spoolama.publish.effects import effect_sentences, harm_in_short, stood_alone, warnings_of
from spoolama.publish.extra_requests import besides_tokens, besides_words
from spoolama.publish.memory import memory_lines
from spoolama.publish.record import Record

__all__ = ["Summary", "balance", "count", "merged_text", "summary_text"]

_WIDTH = 100
_LABEL = 11
_MAX_CLASSES = 8


@dataclass(frozen=True, slots=True)
class Summary:
    """What is left to say of a published job."""

    total: int
    ok: int
    failed: int
    skipped: int
    text: str
    """summary.txt."""
    metrics: Mapping[str, Any]
    """metrics.json."""

    @property
    def balance(self) -> str:
        """`200 rows in = 198 ok + 2 failed + 0 skipped`."""
        return balance(self.total, self.ok, self.failed, self.skipped)

    def outcome(self, early: str | None = None) -> str:
        """What became of the job, in one line for status and log: harm that was seen is part of it.

        Args:
            early: Why it ended before its last row, in words; None: it did not.
        """
        said = self.balance if early is None else early
        harm = harm_in_short(self.metrics)
        if harm is None or (self.metrics["ended_early"] or {}).get("code") in (
            "harm",
            "collapsed",
        ):  # it says so itself
            return said
        return f"{said.rstrip('.')}. {harm}"


def count(number: int | None) -> str:
    """`1,234,567`, or `not counted`."""
    return "not counted" if number is None else f"{number:,}"


def balance(total: int, ok: int, failed: int, skipped: int) -> str:
    """The sentence in which the books balance."""
    return f"{count(total)} rows in = {count(ok)} ok + {count(failed)} failed + {count(skipped)} skipped"


def summary_text(
    metrics: Mapping[str, Any],
    *,
    examples: Mapping[str, Record],
    answers: str,
    agreement: Sequence[str],
    openai: bool,
) -> str:
    """The text.

    Args:
        metrics: metrics.json.
        examples: A failed row of each class.
        answers: The spread of the answers, as a sentence.
        agreement: What there is to say of gold.
        openai: Whether the input was OpenAI batch requests.
    """
    m = metrics
    books = balance(m["total"], m["completed"], m["failed"], m["skipped"])
    lines = [str(m["job"] or ""), books, "", *_warned(m)]
    if m["ended_early"]:
        lines += _entry("Ended early", _early(m["ended_early"]))
    for sentence in m["retired_settings"] or ():
        lines += _entry("Sidecar", sentence)
    lines += _entry("Model", _model(m))
    if m["completed"]:  # else there was nothing to measure
        lines += _entry("Speed", _speed(m))
        lines += _entry("Tokens", _tokens(m))
        lines += _entry("Context", _context(m))
        for label, sentence in effect_sentences(m):
            lines += _entry(label, sentence)
        for number, sentence in enumerate(server_sentences(m)):
            lines += _entry("Server" if number == 0 else "", sentence)
    for number, sentence in enumerate(memory_lines(m)):
        lines += _entry("Memory" if number == 0 else "", sentence)
    if m["completed"]:
        lines += _entry("Answers", answers)
    for number, sentence in enumerate(agreement):
        lines += _entry("Agreement" if number == 0 else "", sentence)
    lines += _failures(m["errors"], examples)
    lines += ["", *_entry("Next", _next(m, openai=openai))]
    if m["failed"] + m["skipped"] and not m["ended_early"]:
        lines.append(f"{' ' * _LABEL}spoolama merge {m['job']} RETRY -o OUT")
    return "\n".join(lines).strip() + "\n"


def merged_text(
    metrics: Mapping[str, Any],
    *,
    retry: str,
    answered_before: int,
    examples: Mapping[str, Record],
    answers: str,
    agreement: Sequence[str],
    openai: bool,
) -> str:
    """summary.txt of a job and a retry of its errors.

    Args:
        metrics: metrics.json of the merged directory.
        retry: The retry's name.
        answered_before: Rows of it that had an answer already.
        examples, answers, agreement, openai: As for `summary_text`.
    """
    m = metrics
    books = balance(m["total"], m["completed"], m["failed"], m["skipped"])
    lines = [str(m["job"]), books, "", *_warned(m)]
    brought = f"{count(m['brought_home'])} answers from {retry}"
    if answered_before:
        brought += f"; {count(answered_before)} rows of it had an answer already, which stays"
    lines += _entry("Merged", brought)
    if m["completed"]:
        lines += _entry("Answers", answers)
    for number, sentence in enumerate(agreement):
        lines += _entry("Agreement" if number == 0 else "", sentence)
    lines += _failures(m["errors"], examples)
    lines += ["", *_entry("Next", _next(m, openai=openai))]
    if m["failed"] + m["skipped"]:
        lines.append(f"{' ' * _LABEL}spoolama merge {m['job']} RETRY -o OUT")
    return "\n".join(lines).strip() + "\n"


def _warned(m: Mapping[str, Any]) -> list[str]:
    """It comes before all else."""
    texts = warnings_of(m)
    return [line for text in texts for line in (*textwrap.wrap(text, _WIDTH, break_on_hyphens=False), "")]


def _entry(label: str, text: str) -> list[str]:
    indent = " " * _LABEL
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{label:<{_LABEL}}" if len(label) < _LABEL else f"{label} ",
        subsequent_indent=indent,
        break_on_hyphens=False,
    ) or [label]


def _early(ended: Mapping[str, Any]) -> str:
    fix, message = ended.get("fix"), str(ended.get("message", ""))
    dot = "" if message.endswith((".", "!", "?")) else "."
    return f"{message}{dot} {fix}" if fix else message


def _model(m: Mapping[str, Any]) -> str:
    if m["model"] is None:
        return "never loaded"
    digest = f" ({m['model_digest'][:19]})" if m["model_digest"] else ""
    server = f", {m['server']} {m['server_version'] or ''}".rstrip() if m["server"] else ""
    return f"{m['model']}{digest}{server}"


def _speed(m: Mapping[str, Any]) -> str:
    if m["rows_per_second"] is None:
        return "not measured"
    parts = [f"{m['rows_per_second']:.2f} rows/s"]
    if m["tokens_per_second"] is not None:
        parts.append(f"{m['tokens_per_second']:.1f} answer tokens/s")
    parts.append(f"{duration(m['active_s'])} of answering")
    if m["waited_s"]:
        parts.append(f"and {duration(m['waited_s'])} of waiting for the server")
    if m["held_s"]:
        parts.append(f"and {duration(m['held_s'])} of waiting for memory")
    text = ", ".join(parts)
    if m["latency_p50_s"] is not None:
        shown = [f"{m[f'latency_p{p}_s']:.2f} s (p{p})" for p in (50, 90, 99)]
        text += f"; a row took {', '.join(shown)}"
    if m["retries"]:
        text += f"; {count(m['retries'])} retries"
    if besides := besides_words(m):
        text += f"; in the same time {besides}"
    return text


def _tokens(m: Mapping[str, Any]) -> str:
    if m["cache_hit_rate"] is None:
        cached = "the server does not count cached ones"
    else:
        cached = f"{count(m['cached_tokens'])} of them from the cache ({m['cache_hit_rate'] * 100:.1f} %)"
    text = f"{count(m['prompt_tokens'])} in prompts, {cached}; {count(m['completion_tokens'])} in answers"
    if besides := besides_tokens(m):
        text += f". For answers not in the results: {besides}"
    return text


def _context(m: Mapping[str, Any]) -> str:
    peak = "not counted" if m["context_peak"] is None else f"at most {count(m['context_peak'])}"
    if stood_alone(m):
        return f"{peak} of {count(m['context_limit'])} tokens"
    trims = "" if m["trim_count"] is None else f"; {count(m['trim_count'])} trims"
    return f"{peak} of {count(m['context_limit'])} tokens{trims}; {count(m['segments'])} segments"


def _failures(errors: Mapping[str, int], examples: Mapping[str, Record]) -> list[str]:
    lines: list[str] = []
    for number, (code, rows) in enumerate(errors.items()):
        label = "Failures" if number == 0 else ""
        if number == _MAX_CLASSES:
            rest = sum(list(errors.values())[number:])
            return lines + _entry(
                label, f"{count(rest)} of {len(errors) - number} more classes: see metrics.json"
            )
        example = examples.get(code)
        shown = "" if example is None else f", e.g. {_example(example)}"
        lines += _entry(label, textwrap.shorten(f"{count(rows)} × {code}{shown}", 240, placeholder=" …"))
    return lines


def _example(record: Record) -> str:
    name = "" if record.id is None else f", id {textwrap.shorten(record.id, 40, placeholder='…')}"
    message = record.error["message"] if record.error else ""
    return f"row {record.row} (line {record.line}{name}): {message}"


def _next(m: Mapping[str, Any], *, openai: bool) -> str:
    if m.get("ended_early"):
        return "See why it ended early, above. The answers there are stand in the results."
    if not m["total"]:
        return "The data file had no rows."
    # Beside a warning the agreement tells nothing: answers that follow each other agree by chance.
    weak = None if warnings_of(m) else weakness(m.get("agreement"))
    if m["failed"] + m["skipped"] == 0:
        if warnings_of(m):
            return "Mind the warning at the top."
        return f"Every row has its answer. {weak}" if weak else "Nothing: every row has its answer."
    if openai:
        what = "Correct retry.jsonl where needed and upload it again."
    elif m["failed"] and m["skipped"]:
        what = (
            "Correct errors.jsonl where needed."
            " Drop it with errors.yaml, and skipped.jsonl with skipped.yaml."
        )
    elif m["failed"]:
        what = "Correct errors.jsonl, or the settings in errors.yaml, and upload both again."
    else:
        what = "Drop skipped.jsonl with skipped.yaml to go on."
    return f"{weak + ' ' if weak else ''}{what} Then bring the new answers home:"
