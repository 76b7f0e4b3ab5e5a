"""Reading what a ledger has of pilot and audit."""

from __future__ import annotations

import asyncio
from pathlib import Path

from spoolama.job.plan import Plan
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_read import LedgerReader
from support.hand_clock import HandClock
from support.published import answered
from unit.spool.test_spool_ledger import row


async def job(path: Path) -> None:
    """Six answered rows in two segments of three, and everything that can be compared of them."""
    ledger = JobLedger(path, HandClock())
    await ledger.take_in([row(n) for n in range(8)])
    await ledger.add_plan(1, Plan(1, 0, 3, "anchors", anchors=(7,)).to_json())
    for n in range(6):
        ledger.answered(answered(n, f"given {n}", segment=3))
    for kind, ordinals in (("isolated", (0, 1)), ("tail-1", (1,)), ("odd", (4,)), ("audit", (0, 1, 2, 4))):
        for n in ordinals:
            ledger.tried(kind, answered(n, f"{kind} {n}", alone=True, segment=3))
    ledger.sampled(answered(6, "sample 6", alone=True, segment=3))
    await ledger.audited(0, None)
    await ledger.redo(1, {"segment": 1, "harm": True})
    ledger.answered(answered(4, "redone 4", alone=True, segment=3))
    await ledger.close()


def test_what_can_be_compared_is_what_a_conversation_answered(tmp_path: Path) -> None:
    """Not its first row, which saw no other; and what was taken back as it was."""
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        found = ledger.compared("audit")
        assert [(c.ordinal, c.given, c.isolated, c.depth) for c in found] == [
            (1, "given 1", "audit 1", 1),
            (2, "given 2", "audit 2", 2),
            (4, "given 4", "audit 4", 1),
        ]
        assert ledger.in_company() == 2
        assert ledger.trial_answers("odd") == {4: "odd 4"}
        assert ledger.sample_answers() == {6: "sample 6"}


def test_rows_that_had_a_part_in_the_choice_are_known(tmp_path: Path) -> None:
    """Rows of the named trials, candidates for anchors, and anchors; not those of the audit."""
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        assert ledger.chosen_with(("isolated", "tail-1")) == {0, 1, 6, 7}
        assert ledger.chosen_with(()) == {6, 7}


def test_what_was_audited_and_redone_is_counted(tmp_path: Path) -> None:
    """Segments, verdicts, rows taken back and those of them that are answered again."""
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        found = ledger.audited_segments()
        assert found.looked_at == 2
        assert (found.replaced, found.answered_again) == (2, 1)
        assert found.verdicts == [{"segment": 1, "harm": True}]
        assert [outcome.ordinal for outcome in ledger.outcomes() if outcome.redone] == [4, 5]


def test_every_answer_costs_its_time_once(tmp_path: Path) -> None:
    """Results, trials, answers taken back and samples; each answer took 0.3 s and a hundredth a row."""
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        assert ledger.requests(("isolated", "tail-1")).answers == 3
        assert ledger.requests(("isolated", "tail-1"), samples="all").answers == 4
        assert round(ledger.requests(("isolated",)).seconds, 6) == 0.61
        assert ledger.all_requests().answers == 5 + 8 + 2 + 1


def test_tokens_are_added_up_only_where_each_answer_was_counted(tmp_path: Path) -> None:
    """A sum over some of them would look like one over all."""

    async def fill() -> None:
        ledger = JobLedger(tmp_path / "l.sqlite", HandClock())
        for n in range(3):
            ledger.tried("audit", answered(n, "a", alone=True, segment=3))
            ledger.tried("odd", answered(n, "a", alone=True, segment=3, counts=n != 1))
        await ledger.close()

    asyncio.run(fill())
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        audit, guard = ledger.requests(("audit",)), ledger.requests(("odd",))
        assert (audit.answers, audit.attempts) == (guard.answers, guard.attempts) == (3, 3)
        assert (audit.prompt_tokens, audit.cached_tokens, audit.completion_tokens) == (360, 280 - 80 + 20, 15)
        assert (guard.prompt_tokens, guard.cached_tokens, guard.completion_tokens) == (None, None, None)


def test_the_engine_reads_what_a_conversation_answered_as_the_report_does(tmp_path: Path) -> None:
    """Taken back or not; and a job that an earlier version began has its segments audited once more."""

    async def read() -> None:
        await job(tmp_path / "l.sqlite")
        ledger = JobLedger(tmp_path / "l.sqlite", HandClock())
        found = await ledger.given_in_company("audit")
        assert [(row.ordinal, row.answer) for row in found] == [
            (1, "given 1"),
            (2, "given 2"),
            (4, "given 4"),
        ]
        assert await ledger.any_in_company()
        assert await ledger.unaudited() == []
        await ledger.forget_audits()
        assert await ledger.unaudited() == [0], "what has a verdict keeps it"
        await ledger.close()

    asyncio.run(read())
