"""Requests whose answers are not in the results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoolama.jobtools.comparison import compare_jobs
from spoolama.publish.summary import Summary
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import Requests
from support.published import answered
from unit.publish.effect_jobs import SEGMENT, line_of, own, publish, store_answers, verdict

REDO = "on_harm: isolate\naudit: 5\ntrim: {strategy: window}\n"


def sampled(ledger: JobLedger, rows: Iterable[int], **unlike: Any) -> None:
    """Candidates for anchors; `unlike` gives their results where those came later."""
    for n in rows:
        given = answered(n, json.dumps(own(n)), alone=True, segment=SEGMENT)
        ledger.sampled(replace(given, **unlike))


async def everything(ledger: JobLedger) -> None:
    """A pilot of 6 answers, 3 candidates, and an audit of 13 that replaced 29 answers."""
    store_answers(ledger, "isolated", range(4), own)
    store_answers(ledger, "tail-5", range(2), own)
    sampled(ledger, (2, 5, 9), latency_s=1.0)
    store_answers(ledger, "odd", range(61, 69), own)
    await ledger.withdraw_answers(2, verdict(2))
    for n in range(61, 90):
        ledger.answered(answered(n, json.dumps(own(n)), alone=True, segment=SEGMENT))
    store_answers(ledger, "audit", range(100, 104), own)
    store_answers(ledger, "audit-again", (100,), own)


def extra_of(summary: Summary) -> Mapping[str, Requests]:
    assert summary.metrics.extra_requests is not None
    return summary.metrics.extra_requests


def test_pilot_and_audit_are_counted_separately_from_the_results(tmp_path: Path) -> None:
    """Each has its answers, requests, tokens and seconds, and the numbers of the results do not change."""
    summary = publish(tmp_path / "j", REDO, fill=everything)
    plain = publish(tmp_path / "plain", "trim: {strategy: window}\n")
    found = extra_of(summary)

    assert {name: part.answers for name, part in found.items()} == {
        "pilot": 6,
        "anchor_candidates": 3,
        "audit": 13,
        "withdrawn": 29,
    }
    assert found["withdrawn"].prompt_tokens == sum(100 + 20 * place for place in range(1, 30))
    assert found["withdrawn"].completion_tokens == found["withdrawn"].attempts * 5 == 145
    seconds = sum(0.3 + n / 100 for n in (*range(61, 69), 100, 100, 101, 102, 103))
    assert found["audit"].seconds == pytest.approx(seconds)
    for name in ("attempts", "prompt_tokens", "completion_tokens", "rows_per_second"):
        assert getattr(summary.metrics, name) == getattr(plain.metrics, name)
    line = line_of(summary, "Extra")
    assert line.startswith("51 answers not in the results (pilot 6, candidates for anchors 3, audit 13,")
    prompts = sum(part.prompt_tokens or 0 for part in found.values())
    assert f"{prompts:,} tokens in prompts, 255 in answers" in line
    assert "51 answers" in compare_jobs(tmp_path / "j", tmp_path / "plain").left.cells["Extra"]


def test_a_count_that_the_server_did_not_give_is_unknown(tmp_path: Path) -> None:
    """If one answer in thirteen has no count, the sum is null and the number of answers is known."""

    async def fill(ledger: JobLedger) -> None:
        await everything(ledger)
        ledger.add_trial("audit", answered(110, '"neutral"', alone=True, segment=SEGMENT, counts=False))

    summary = publish(tmp_path / "j", REDO, fill=fill)
    assert extra_of(summary)["audit"].prompt_tokens is None
    assert extra_of(summary)["pilot"].prompt_tokens is not None
    assert "52 answers" in line_of(summary, "Extra")
    assert "the server did not count all of their tokens" in line_of(summary, "Extra")


def test_an_anchors_answer_is_not_counted_twice(tmp_path: Path) -> None:
    """An anchor's answer counts with the results, and those of other candidates as extra requests."""

    async def fill(ledger: JobLedger) -> None:
        sampled(ledger, range(6))  # the same answers as in the results
        sampled(ledger, range(6, 24), latency_s=1.0)

    summary = publish(tmp_path / "j", "trim: {strategy: anchors}\n", says=own, fill=fill)
    assert extra_of(summary)["anchor_candidates"].answers == 18
    assert "(candidates for anchors 18)" in line_of(summary, "Extra")


def test_a_job_without_extra_requests_has_no_line_for_them(tmp_path: Path) -> None:
    """The value is null with the reason."""
    summary = publish(tmp_path / "j", "mode: isolated\n")
    assert summary.metrics.extra_requests is None
    assert summary.metrics.how()["extra_requests"] == "null: every answer is in the results"
    assert line_of(summary, "Extra") == ""
