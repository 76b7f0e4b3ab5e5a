"""What a job cost besides its results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoolama.jobtools.compare import compare_jobs
from spoolama.spool.job_ledger import JobLedger
from support.published import answered
from unit.publish.effect_jobs import SEGMENT, again, line_of, own, publish, verdict

REDO = "on_harm: isolate\naudit: 5\ntrim: {strategy: window}\n"


def sampled(ledger: JobLedger, rows: Iterable[int], **unlike: Any) -> None:
    """Candidates for anchors; `unlike` their results where those were given later."""
    for n in rows:
        given = answered(n, json.dumps(own(n)), alone=True, segment=SEGMENT)
        ledger.sampled(replace(given, **unlike))


async def everything(ledger: JobLedger) -> None:
    """A pilot of 6 answers, 3 candidates, an audit of 13 that took 29 answers back."""
    again(ledger, "isolated", range(4), own)
    again(ledger, "tail-5", range(2), own)
    sampled(ledger, (2, 5, 9), latency_s=1.0)
    again(ledger, "odd", range(61, 69), own)
    await ledger.redo(2, verdict(2))
    for n in range(61, 90):
        ledger.answered(answered(n, json.dumps(own(n)), alone=True, segment=SEGMENT))
    again(ledger, "audit", range(100, 104), own)
    again(ledger, "audit-again", (100,), own)


def test_speed_and_tokens_tell_what_pilot_and_audit_took(tmp_path: Path) -> None:
    """Each with its answers, requests, tokens and seconds; the results' own numbers stay what they were."""
    summary = publish(tmp_path / "j", REDO, fill=everything)
    plain = publish(tmp_path / "plain", "trim: {strategy: window}\n")
    told = summary.metrics["besides"]

    assert {name: part["answers"] for name, part in told.items()} == {
        "pilot": 6,
        "anchors": 3,
        "audit": 13,
        "taken_back": 29,
    }
    assert told["taken_back"]["prompt_tokens"] == sum(100 + 20 * place for place in range(1, 30))
    assert told["taken_back"]["completion_tokens"] == told["taken_back"]["attempts"] * 5 == 145
    seconds = sum(0.3 + n / 100 for n in (*range(61, 69), 100, 100, 101, 102, 103))
    assert told["audit"]["seconds"] == pytest.approx(seconds)
    for name in ("attempts", "prompt_tokens", "completion_tokens", "rows_per_second"):
        assert summary.metrics[name] == plain.metrics[name]
    assert line_of(summary, "Speed").endswith(
        "in the same time 51 answers not in the results (pilot 6, candidates for anchors 3,"
        " audit 13, taken back because of harm 29)"
    )
    prompts = sum(part["prompt_tokens"] for part in told.values())
    assert f". For answers not in the results: {prompts:,} in prompts, " in line_of(summary, "Tokens")
    assert line_of(summary, "Tokens").endswith("from the cache; 255 in answers")
    assert "51 answers" in compare_jobs(tmp_path / "j", tmp_path / "plain").left.cells["Besides"]


def test_a_count_that_the_server_did_not_give_is_unknown(tmp_path: Path) -> None:
    """Of one answer in thirteen: then no sum is told, and the number of answers all the same."""

    async def fill(ledger: JobLedger) -> None:
        await everything(ledger)
        ledger.tried("audit", answered(110, '"neutral"', alone=True, segment=SEGMENT, counts=False))

    summary = publish(tmp_path / "j", REDO, fill=fill)
    assert summary.metrics["besides"]["audit"]["prompt_tokens"] is None
    assert summary.metrics["besides"]["pilot"]["prompt_tokens"] is not None
    assert "For answers not in the results: an unknown number" in line_of(summary, "Tokens")


def test_an_anchors_answer_is_not_counted_twice(tmp_path: Path) -> None:
    """It stands in the results; the candidates that were not chosen do not."""

    async def fill(ledger: JobLedger) -> None:
        sampled(ledger, range(6))  # as they stand in the results
        sampled(ledger, range(6, 24), latency_s=1.0)

    summary = publish(tmp_path / "j", "trim: {strategy: anchors}\n", says=own, fill=fill)
    assert summary.metrics["besides"]["anchors"]["answers"] == 18
    assert "(candidates for anchors 18)" in line_of(summary, "Speed")


def test_a_job_of_nothing_else_says_nothing_of_it(tmp_path: Path) -> None:
    """No words in the summary, and null with the reason."""
    summary = publish(tmp_path / "j", "mode: isolated\n")
    assert summary.metrics["besides"] is None
    assert summary.metrics["how"]["besides"] == "null: every answer that was given stands in the results"
    assert "not in the results" not in summary.text
