"""Two published jobs over the same data, side by side: what did it cost, and did the answers change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spoolama.clock import duration
from spoolama.errors import InputError
from spoolama.jobtools.published import Published, open_published
from spoolama.publish.conversation_metrics import trim_sentence
from spoolama.publish.effects import warnings_of
from spoolama.publish.extra_requests import besides_words
from spoolama.publish.labels import label_of_record
from spoolama.publish.result_counts import ResultCounts
from spoolama.publish.summary import count

__all__ = ["Comparison", "Side", "compare_jobs"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two jobs, in words ready to be shown."""

    job: str
    mode: str
    """`conversation` or `isolated`."""
    ok: int
    failed: int
    skipped: int
    cells: Mapping[str, str]
    """Name of a line of the table to what this job has there."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both, and what lies between them."""

    left: Side
    right: Side
    both: int
    """Rows that both jobs answered."""
    different: int
    """Rows of those whose answers differ (with `format`: in the compared key, or anywhere if none is)."""

    def sentences(self) -> list[str]:
        """What stands below the table: did answers change, and what did each way cost."""
        if not self.both:
            return ["No row was answered by both jobs."]
        share = f"{self.different / self.both * 100:.0f} %"
        rows = f"{count(self.different)} of {count(self.both)} rows ({share})"
        changed = f"The same rows got a different answer in {rows}."
        if not self.different:
            changed = f"All {count(self.both)} rows that both answered got the same answer."
        return [changed, self._cost()]

    def _cost(self) -> str:
        parts = []
        alike = self.left.mode == self.right.mode
        for side in (self.left, self.right):
            speed, tokens = side.cells["Rows/s"], side.cells["Tokens evaluated"]
            shown = "speed not measured" if speed == "-" else f"{speed} rows/s"
            who = side.job if alike else _name(side)
            evaluated = "uncounted" if tokens == "-" else tokens
            parts.append(f"{who}: {shown}, {evaluated} prompt tokens evaluated")
        return f"{'. '.join(parts)}."


def compare_jobs(left: Path, right: Path) -> Comparison:
    """Compare two published jobs, row by row.

    Raises:
        InputError: they are not about the same data.
    """
    first, second = open_published(left), open_published(right)
    shas = {job.metrics["data_sha256"] for job in (first, second)}
    if len(shas) != 1:
        raise InputError(
            f"{first.job} and {second.job} are about different data: they cannot be compared row by row.",
            fix="Name two jobs whose data files were the same.",
            code="different_data",
        )
    tallies = [ResultCounts(job.sidecar, job.parsed) for job in (first, second)]
    both = different = 0
    choosers: list[str] = []
    for pair in zip(first.records(), second.records(), strict=True):
        labels = []
        # Out of both, so that both are held against the same known answers.
        used = any(record.gold_used for record in pair)
        if used and len(choosers) < len(pair):
            jobs = zip((first, second), pair, strict=True)
            choosers += [job.job for job, record in jobs if record.gold_used and job.job not in choosers]
        for job, tally, record in zip((first, second), tallies, pair, strict=True):
            tally.add(record, gold_used=used)
            label = label_of_record(record, parsed=job.parsed, key=job.sidecar.answer_key)
            labels.append(record.answer if label is None else label)
        if pair[0].status == pair[1].status == "ok":
            both += 1
            different += labels[0] != labels[1]
    sides = [_side(job, tally, choosers) for job, tally in zip((first, second), tallies, strict=True)]
    return Comparison(sides[0], sides[1], both, different)


def _name(side: Side) -> str:
    return {"conversation": "In conversation", "isolated": "Alone"}.get(side.mode, side.job)


def _side(job: Published, tally: ResultCounts, choosers: Sequence[str]) -> Side:
    m, by = job.metrics, tally.by_status
    agreement = tally.answers.agreement()
    mode = "isolated" if job.sidecar.mode == "isolated" or _chose_alone(m) else "conversation"
    cells = {
        "Job": job.job,
        "Rows are answered": "in conversation" if mode == "conversation" else "isolated",
        "In sight of": trim_sentence({**m, "sight_peak": tally.sight_peak})
        or ("nothing else" if job.sidecar.mode == "isolated" else "-"),
        "Model": str(m.get("model") or job.sidecar.model),
        "Rows": f"{count(by['ok'])} ok, {count(by['failed'])} failed, {count(by['skipped'])} skipped",
        "Rows/s": _number(m.get("rows_per_second"), "{:.2f}"),
        "Time of answering": "-" if m.get("active_s") is None else duration(m["active_s"]),
        "Tokens in prompts": _tokens(m.get("prompt_tokens")),
        "Tokens evaluated": _tokens(m.get("evaluated_tokens")),
        "From the cache": _number(m.get("cache_hit_rate"), "{:.1%}"),
        "Longest context": _tokens(m.get("context_peak")),
        "Answers": tally.answers.spread().sentence(),
    }
    if besides := besides_words(m):
        cells["Besides"] = besides
    if agreement is not None:
        cells["Agreement"] = "\n".join(agreement.sentences(choosers))
    if warnings := warnings_of(m):
        cells["Mind"] = "\n".join(warnings)
    return Side(job.job, mode, by["ok"], by["failed"], by["skipped"], cells)


def _chose_alone(m: Mapping[str, Any]) -> bool:
    """Whether `auto` asked each row alone, from the first one to the last."""
    trim = m.get("trim") or {}
    return trim.get("asked") == "auto" and (m.get("pilot") or {"form": "isolated"})["form"] == "isolated"


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _tokens(value: int | None) -> str:
    return "-" if value is None else count(value)
