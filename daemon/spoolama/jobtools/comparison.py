"""Compares two published jobs over the same data: their costs and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spoolama.clock import duration
from spoolama.errors import InputError
from spoolama.jobtools.published import Published, open_published
from spoolama.publish.agreement import Agreement
from spoolama.publish.result_counts import ResultCounts
from spoolama.publish.result_row import label_of_result
from spoolama.publish.summary import context_sentences, extra_requests_words
from spoolama.publish.words import count


@dataclass(frozen=True, slots=True)
class ComparedJob:
    """One of the two jobs."""

    job: str
    isolated: bool
    """Whether every row was asked in isolation."""
    merged: bool
    """Whether `merge` created it; then it has no costs of its own."""
    cells: Mapping[str, str]
    """The column of this job in the table: text by the name of the line."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two jobs."""

    left: ComparedJob
    right: ComparedJob
    both: int
    """Rows that both jobs answered."""
    different: int
    """Those of them whose answers differ; with `format`: in the compared key, or anywhere without one."""

    def sentences(self) -> list[str]:
        """Whether the answers differ, and what each job cost."""
        if not self.both:
            return ["No row was answered by both jobs."]
        share = f"{self.different / self.both * 100:.0f} %"
        changed = f"{count(self.different)} of {count(self.both)} rows ({share}) got different answers."
        if not self.different:
            changed = f"All {count(self.both)} rows that both jobs answered got the same answer."
        return [changed, self._cost()]

    def _cost(self) -> str:
        parts = []
        for side in (self.left, self.right):
            name = side.job
            if self.left.isolated != self.right.isolated:
                name = "Isolated" if side.isolated else "In conversation"
            if side.merged:
                parts.append(f"{name}: speed and tokens are those of the merged jobs")
                continue
            speed, tokens = side.cells["Rows/s"], side.cells["Tokens evaluated"]
            shown = "speed not measured" if speed == "-" else f"{speed} rows/s"
            evaluated = "an unknown number of" if tokens == "-" else tokens
            parts.append(f"{name}: {shown}, {evaluated} prompt tokens evaluated")
        return f"{'. '.join(parts)}."


def compare_jobs(left: Path, right: Path) -> Comparison:
    """Compare two published jobs, row by row.

    Raises:
        InputError: their data differs.
    """
    jobs = (open_published(left), open_published(right))
    if jobs[0].metrics.data_sha256 != jobs[1].metrics.data_sha256:
        raise InputError(
            f"{jobs[0].job} and {jobs[1].job} have different data and cannot be compared row by row.",
            fix="Use two jobs with the same data file.",
            code="different_data",
        )
    counts = [ResultCounts(job.sidecar, job.parsed) for job in jobs]
    both = different = 0
    choosers: list[str] = []
    for pair in zip(jobs[0].results(), jobs[1].results(), strict=True):
        # Left out of both, so that both are compared with the same known answers.
        used = any(result.gold_used for result in pair)
        labels = []
        for job, counted, result in zip(jobs, counts, pair, strict=True):
            if result.gold_used and job.job not in choosers:
                choosers.append(job.job)
            counted.add(replace(result, gold_used=used))
            label = label_of_result(result, parsed=job.parsed, key=job.sidecar.answer_key)
            labels.append(result.answer if label is None else label)
        if pair[0].status == pair[1].status == "ok":
            both += 1
            different += labels[0] != labels[1]
    sides = [
        _side(job, counted.answers.agreement(), choosers) for job, counted in zip(jobs, counts, strict=True)
    ]
    return Comparison(sides[0], sides[1], both, different)


def _side(job: Published, agreement: Agreement | None, choosers: Sequence[str]) -> ComparedJob:
    m = job.metrics
    context = [f"{label}: {sentence}" for label, sentence in context_sentences(m) if label != "Audit"]
    merged = m.merged_from is not None
    name = job.path.resolve().name if merged else job.job  # a merged one has the name of the first job
    cells = {
        "Job": name,
        "Mode": "isolated" if m.isolated else "conversation",
        "Context": "\n".join(context) or "-",
        "Model": m.model or job.sidecar.model,
        "Rows": f"{count(m.completed)} ok, {count(m.failed)} failed, {count(m.skipped)} skipped",
        "Rows/s": "-" if m.rows_per_second is None else f"{m.rows_per_second:.2f}",
        "Time of answering": "-" if m.active_s is None else duration(m.active_s),
        "Tokens in prompts": _tokens(m.prompt_tokens),
        "Tokens evaluated": _tokens(m.evaluated_tokens),
        "From the cache": "-" if m.cache_hit_rate is None else f"{m.cache_hit_rate:.1%}",
        "Longest context": _tokens(m.context_peak),
        "Answers": "-" if m.answers is None else m.answers.sentence(),
    }
    if words := extra_requests_words(m):
        cells["Extra"] = words
    if agreement is not None:
        cells["Agreement"] = "\n".join(agreement.sentences(choosers))
    if warning := m.audit.warning() if m.audit is not None else None:
        cells["Warning"] = warning
    return ComparedJob(name, m.isolated, merged, cells)


def _tokens(value: int | None) -> str:
    return "-" if value is None else count(value)
