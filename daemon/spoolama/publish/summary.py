"""Writes summary.txt from the metrics of a job: one screen for people."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from spoolama.clock import duration
from spoolama.publish.agreement import along_sentence
from spoolama.publish.metrics import GB, Metrics, TrimPlan
from spoolama.publish.result_counts import FirstJob
from spoolama.publish.result_row import ResultRow
from spoolama.publish.words import count, counted, percent

_WIDTH = 100
_LABEL = 11
_MAX_CODES = 8
_LEAST_PRESSURE_S = 1.0
"""Shorter times of high memory pressure are not worth a line."""
_EXTRA = {"anchor_candidates": "candidates for anchors", "withdrawn": "withdrawn because of harm"}
_ACTIONS = {
    "paused": "rows were paused",
    "idle_released": "idle models were unloaded",
    "smaller_load": "the model was loaded smaller",
    "larger_load": "the model was loaded larger again",
    "out_of_memory": "the server ran out of memory",
    "loaded_in_spite": "the model was loaded although memory seemed too small",
    "left_as_it_is": "memory stayed critical, and unloading the model would not have helped",
}

Entries = Iterator[tuple[str, str]]
"""Pairs of label and text."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The metrics and the summary of a published job."""

    metrics: Metrics
    text: str
    """The content of summary.txt."""

    @property
    def balance(self) -> str:
        """`200 rows in = 198 ok + 2 failed + 0 skipped`."""
        return balance(self.metrics)

    def outcome(self, early: str | None = None) -> str:
        """One line for status and log; it contains the harm that was found.

        Args:
            early: Why the job ended before its last row; None: it did not.
        """
        text = self.balance if early is None else early
        audit = self.metrics.audit
        warning = audit.short_warning() if audit is not None else None
        if warning is None or _harmed(self.metrics):
            return text  # or `early` contains the harm
        return f"{text.rstrip('.')}. {warning}"


def balance(m: Metrics) -> str:
    """The counts of the rows as an equation."""
    return f"{m.total:,} rows in = {m.completed:,} ok + {m.failed:,} failed + {m.skipped:,} skipped"


def summary_text(
    m: Metrics, examples: Mapping[str, ResultRow], *, directory: str, origin: FirstJob | None = None
) -> str:
    """The content of summary.txt.

    Args:
        m: The metrics of the job.
        examples: A failed row for each error code.
        directory: The job's directory, for commands.
        origin: The job that the rows were uploaded to before; None: they were not.
    """
    lines = [m.job, balance(m), ""]
    if warning := m.audit.warning() if m.audit is not None else None:
        lines += [*textwrap.wrap(warning, _WIDTH, break_on_hyphens=False), ""]
    before = ""
    for label, text in (*_job_entries(m), *_failure_entries(m, examples)):
        lines += _entry("" if label == before else label, text)
        before = label
    text, command, more = _next_step(m, directory, origin)
    lines += ["", *_entry("Next", text)]
    if command:
        lines.append(f"{' ' * _LABEL}{command}")
    if more:
        lines += _entry("", more)
    return "\n".join(lines).strip() + "\n"


def _entry(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{label:<{_LABEL}}" if len(label) < _LABEL else f"{label}: ",
        subsequent_indent=" " * _LABEL,
        break_on_hyphens=False,
    ) or [label]


def _job_entries(m: Metrics) -> Entries:
    if m.ended_early:
        yield "Ended early", _sentence(m.ended_early.message)
    for sentence in m.retired_settings or ():
        yield "Sidecar", sentence
    if m.merged_from:
        yield "Merged", _merged(m)
    else:
        yield "Model", _model(m)
        if m.completed:  # otherwise nothing was measured
            yield from _measured_entries(m)
        yield from _memory_entries(m)
    if m.completed and m.answers is not None:
        yield "Answers", m.answers.sentence()
    for sentence in agreement_sentences(m):
        yield "Agreement", sentence


def _merged(m: Metrics) -> str:
    retry = m.merged_from[1].get("job") if m.merged_from and len(m.merged_from) > 1 else "the retry"
    text = f"{counted(m.merged_answers or 0, 'answer')} from {retry}"
    if m.merged_already_answered:
        kept = counted(m.merged_already_answered, "row")
        text += f"; {kept} of it already had an answer, which stays"
    return text


def _model(m: Metrics) -> str:
    if m.model is None:
        return "never loaded"
    digest = f" ({m.model_digest[:19]})" if m.model_digest else ""
    server = f", {m.server} {m.server_version or ''}".rstrip() if m.server else ""
    return f"{m.model}{digest}{server}"


def _measured_entries(m: Metrics) -> Entries:
    yield "Speed", _speed(m)
    if m.latency_p50_s is not None:
        tail = f"{m.latency_p90_s:.2f} s (p90), {m.latency_p99_s:.2f} s (p99)"
        yield "Latency", f"{m.latency_p50_s:.2f} s (median), {tail}"
    waits = [
        f"{duration(seconds)} for {what}"
        for seconds, what in ((m.server_wait_s, "the server"), (m.memory_pause_s, "memory"))
        if seconds
    ]
    if waits:
        yield "Waiting", ", ".join(waits)
    if m.cache_hit_rate is None:
        cached = "the server does not count cached tokens"
    else:
        cached = f"{count(m.cached_tokens)} of them from the cache ({m.cache_hit_rate * 100:.1f} %)"
    yield "Tokens", f"{count(m.prompt_tokens)} in prompts, {cached}; {count(m.completion_tokens)} in answers"
    if words := extra_requests_words(m):
        yield "Extra", f"{words}; {_extra_tokens(m)}"
    peak = "not counted" if m.context_peak is None else f"at most {count(m.context_peak)}"
    context = f"{peak} of {count(m.context_limit)} tokens"
    if not m.isolated:
        context += f"; {counted(m.trim_count or 0, 'trim')} in {counted(m.segments or 0, 'segment')}"
    yield "Context", context
    yield from context_sentences(m)
    if m.external_changes is not None:
        for kind, times in m.external_changes.counts.items():
            first = [each["message"] for each in m.external_changes.first if each["kind"] == kind]
            yield "Server", f"{times:,} × {kind}" + (f": {first[0]}" if first else "")
    if m.second_pass is not None:
        window = f"a context window of {m.second_pass.num_ctx:,} tokens"
        yield "Long rows", f"{counted(m.second_pass.rows, 'row')} answered with {window}"


def _speed(m: Metrics) -> str:
    if m.rows_per_second is None or m.active_s is None:
        return "not measured"
    parts = [f"{m.rows_per_second:.2f} rows/s"]
    if m.tokens_per_second is not None:
        parts.append(f"{m.tokens_per_second:.1f} answer tokens/s")
    parts.append(f"{duration(m.active_s)} of answering{_pilot_time(m)}")
    if m.retries:
        parts.append("1 retry" if m.retries == 1 else f"{m.retries:,} retries")
    return ", ".join(parts)


def _pilot_time(m: Metrics) -> str:
    """The part of the answering that the pilot took; of the requests where several lanes overlap."""
    if m.pilot is None or not m.pilot.seconds:
        return ""
    if m.lanes == 1:
        return f" ({duration(m.pilot.seconds)} of it for the pilot)"
    return f" ({percent(m.pilot.time_share)} of all request time for the pilot)" if m.pilot.time_share else ""


def extra_requests_words(m: Metrics) -> str | None:
    """`147 answers that are not in the results (pilot 118, audit 29)`; None if there are none."""
    if not m.extra_requests:
        return None
    each = ", ".join(f"{_EXTRA.get(name, name)} {part.answers:,}" for name, part in m.extra_requests.items())
    answers = sum(part.answers for part in m.extra_requests.values())
    return f"{counted(answers, 'answer')} not in the results ({each})"


def _extra_tokens(m: Metrics) -> str:
    """`12,300 tokens in prompts, 590 in answers`."""
    parts = (m.extra_requests or {}).values()
    prompts, answers = [part.prompt_tokens for part in parts], [part.completion_tokens for part in parts]
    if None in prompts or None in answers:
        return "the server did not count all of their tokens"
    return f"{sum(filter(None, prompts)):,} tokens in prompts, {sum(filter(None, answers)):,} in answers"


def context_sentences(m: Metrics) -> Entries:
    """What was in the prompts, and what pilot and audit found; or why there was no pilot or audit."""
    trim = m.trim
    chosen = trim is not None and trim.asked == "auto"
    if trim is not None and not (chosen and m.isolated):
        yield "Trims", _trims(m)
    if m.pilot is not None:
        yield "Pilot", m.pilot.sentence(m.gold)
    elif chosen and (why := m.notes.get("pilot")):
        yield "Pilot", f"None: {why}."
    if m.audit is not None:
        yield "Audit", m.audit.sentence(m.gold)
    elif (why := m.notes.get("audit")) and (
        "audit" in m.sidecar or (trim is not None and m.visible_rows_peak)
    ):
        yield "Audit", f"None: {why}."


def _trims(m: Metrics) -> str:
    """The strategy, how often the conversation was trimmed, and what stayed."""
    trim = m.trim
    assert trim is not None
    parts = [f"strategy {'auto' if trim.asked == 'auto' else trim.strategy}"]
    if m.anchors:
        gold = " with their known answers" if trim.gold else ""
        parts.append(f"{counted(len(m.anchors), 'anchor')}{gold}")
    if trim.keep:
        parts.append(_kept(trim, latest=trim.score == "uncertain" and not m.logprobs))
    if trim.tokens is not None:
        parts.append(f"at most {trim.tokens:,} tokens of earlier rows")
    if trim.every == 1:
        parts.append("no earlier rows")
    elif trim.every and not trim.keep:
        parts.append(f"a trim every {trim.every} rows")
    if m.visible_rows_peak and (m.anchors or trim.every != 1):  # else harm ended the conversations
        parts.append(f"up to {counted(m.visible_rows_peak, 'other row')} in a prompt")
    if trim.score == "uncertain" and not m.logprobs:
        parts.append("the server returned no log probabilities, so the latest rows were kept")
    return "; ".join(parts)


def _kept(trim: TrimPlan, *, latest: bool) -> str:
    """`every 30 rows a trim keeps the latest 20`.

    Args:
        trim: The rules.
        latest: Whether the latest rows were kept because no row has a score.
    """
    every = f"every {trim.every} rows " if trim.every > 1 else ""
    if latest:
        return f"{every}a trim keeps the latest {trim.keep}"
    if trim.strategy == "important":
        return f"{every}a trim keeps {counted(trim.keep, 'row')}, chosen by score"
    if trim.important:
        return f"{every}a trim keeps {counted(trim.keep, 'row')}, {trim.important} of them by score"
    return f"{every}a trim keeps the latest {trim.keep}"


def _memory_entries(m: Metrics) -> Entries:
    if m.memory is None:
        return
    if m.peak_vram_gb is not None:
        of = f" of {m.memory.total_bytes / GB:.1f}" if m.memory.total_bytes else ""
        yield "Memory", f"{m.peak_vram_gb:.1f}{of} GB at most, {m.mean_vram_gb or 0:.1f} GB on average"
    pressure = [
        f"{level} for {m.memory.seconds[level]:.0f} s"
        for level in ("high", "critical")
        if m.memory.seconds.get(level, 0) >= _LEAST_PRESSURE_S
    ]
    if pressure:
        yield "Memory", f"pressure was {' and '.join(pressure)}"
    for action, times in m.memory.actions.items():
        if action in _ACTIONS:
            yield "Memory", f"{_ACTIONS[action]}{'' if times == 1 else f' ({times:,} times)'}"


def agreement_sentences(m: Metrics) -> list[str]:
    """The agreement with gold, and along the job; empty without gold."""
    if m.agreement is None:
        return []
    along = along_sentence(m.agreement_along_job)
    return [*m.agreement.sentences(), *([] if along is None else [along])]


def _failure_entries(m: Metrics, examples: Mapping[str, ResultRow]) -> Entries:
    for number, (code, rows) in enumerate(m.errors.items()):
        if number == _MAX_CODES:
            rest = sum(list(m.errors.values())[number:])
            codes = counted(len(m.errors) - number, "other code")
            yield "Failures", f"{rest:,} × {codes}: see metrics.json"
            return
        shown = ""
        if (row := examples.get(code)) is not None:
            name = "" if row.id is None else f", id {textwrap.shorten(row.id, 40, placeholder='…')}"
            message = row.error["message"] if row.error else ""
            shown = f", e.g. row {row.row} (line {row.line}{name}): {message}"
        yield "Failures", textwrap.shorten(f"{rows:,} × {code}{shown}", 240, placeholder=" …")


def _next_step(m: Metrics, directory: str, origin: FirstJob | None) -> tuple[str, str, str]:
    """What to do next; then the command for it, and what else to know about that. Both may be empty."""
    if origin is not None and m.completed and not (m.ended_early and _harmed(m)):
        return _merge_into(m, directory, origin)
    into = directory if origin is None else origin.directory
    command = f"spoolama merge {shlex.quote(into)} done/RETRY -o OUT"
    # After a warning the agreement means nothing: answers that copy each other can agree by chance.
    warned = m.audit is not None and m.audit.harm is not None
    advice = m.agreement.advice() if m.agreement is not None and not warned else None
    if m.ended_early:
        sentences = _after_early_end(m)
        if _harmed(m) or not m.failed + m.skipped:
            return " ".join(sentences), "", ""
        return " ".join([*sentences, "Then merge the new answers into the job:"]), command, ""
    if not m.total:
        return "The data file had no rows.", "", ""
    if m.failed + m.skipped == 0:
        if warned:
            return "Read the warning at the top.", "", ""
        return (
            f"Every row has an answer. {advice}" if advice else "Nothing: every row has an answer.",
            "",
            "",
        )
    if m.openai:
        step = "Correct retry.jsonl where needed and upload it."
    elif m.failed and m.skipped:
        step = "Upload errors.jsonl (corrected) with errors.yaml, and skipped.jsonl with skipped.yaml."
    elif m.failed:
        step = "Correct errors.jsonl, or the settings in errors.yaml, and upload both."
    else:
        step = "Upload skipped.jsonl with skipped.yaml to continue."
    step = f"{advice + ' ' if advice else ''}{step} Then merge the new answers into the job:"
    return step, command, ""


def _merge_into(m: Metrics, directory: str, origin: FirstJob) -> tuple[str, str, str]:
    """The next step of a retry: its answers belong to the job that its rows came from."""
    advice = f"{_sentence(m.ended_early.fix)} " if m.ended_early and m.ended_early.fix else ""
    command = f"spoolama merge {shlex.quote(origin.directory)} {shlex.quote(directory)} -o OUT"
    more = (
        "If you have already merged another retry into it, use the merged directory instead of "
        f"{origin.directory}."
    )
    if m.failed + m.skipped:
        more += " The summary.txt in OUT says what to do with the rows that have no answer."
    return f"{advice}Merge these answers into {origin.job}:", command, more


def _after_early_end(m: Metrics) -> list[str]:
    """What to do after a job ended before its last row."""
    assert m.ended_early is not None
    sentences = [_sentence(m.ended_early.fix)] if m.ended_early.fix else []
    if m.completed and not _harmed(m):
        sentences.append(f"The results have {counted(m.completed, 'answer')} so far.")
    if _harmed(m) or not m.failed + m.skipped:
        return sentences
    pairs = [
        (f"{stem}.jsonl", f"{stem}.yaml")
        for stem, rows in (("errors", m.failed), ("skipped", m.skipped))
        if rows
    ]
    if m.openai:
        pairs = [("retry.jsonl", "retry.yaml")] if m.sidecar_name else [("retry.jsonl", "")]
    settings = " and ".join(side for _, side in pairs if side)
    files = " and ".join(name for pair in pairs for name in pair if name)
    if m.ended_early.fix and settings:
        sentences.append(f"Correct the settings in {settings} where needed, and upload {files} again.")
    else:
        sentences.append(f"Upload {files} to continue.")
    return sentences


def _harmed(m: Metrics) -> bool:
    """Whether the job ended because of harm: then its answers are not worth a retry of the others."""
    return m.ended_early is not None and m.ended_early.code in ("harm", "collapsed")


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
