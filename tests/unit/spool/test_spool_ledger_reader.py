"""Reading a ledger without changing it: comparisons, audits and the progress of the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolama.job.plan import Plan
from spoolama.job.row import Failed, RowFault
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import JobProgress, LedgerReader, job_progress
from support.hand_clock import HandClock
from support.published import answered
from unit.spool.test_spool_ledger import row


async def job(path: Path) -> None:
    """Six answered rows in two segments of three, with every kind of comparison."""
    ledger = JobLedger(path, HandClock())
    await ledger.take_in([row(n) for n in range(8)])
    await ledger.add_plan(1, Plan(1, 0, 3, "anchors", anchors=(7,)).to_json())
    for n in range(6):
        ledger.answered(answered(n, f"given {n}", segment=3))
    for kind, ordinals in (("isolated", (0, 1)), ("tail-1", (1,)), ("odd", (4,)), ("audit", (0, 1, 2, 4))):
        for n in ordinals:
            ledger.add_trial(kind, answered(n, f"{kind} {n}", alone=True, segment=3))
    ledger.sampled(answered(6, "sample 6", alone=True, segment=3))
    await ledger.audited(0, None)
    await ledger.withdraw_answers(1, {"segment": 1, "harm": True})
    ledger.answered(answered(4, "redone 4", alone=True, segment=3))
    await ledger.close()


def test_comparable_rows_are_those_answered_in_conversation(tmp_path: Path) -> None:
    """Comparable rows exclude the first, which saw no other, and include replaced answers."""
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        found = ledger.compared("audit")
        assert [(c.ordinal, c.given, c.isolated, c.depth) for c in found] == [
            (1, "given 1", "audit 1", 1),
            (2, "given 2", "audit 2", 2),
            (4, "given 4", "audit 4", 1),
        ]
        assert ledger.conversation_rows() == 2
        assert ledger.trial_answers("odd") == {4: "odd 4"}
        assert ledger.sample_answers() == {6: "sample 6"}


def test_rows_that_had_a_part_in_the_choice_are_known(tmp_path: Path) -> None:
    """Rows of the named trials, candidates and anchors took part in the choice, and audited rows did not."""
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        assert ledger.chosen_with(("isolated", "tail-1")) == {0, 1, 6, 7}
        assert ledger.chosen_with(()) == {6, 7}


def test_audited_and_redone_rows_are_counted(tmp_path: Path) -> None:
    """Segments, verdicts, replaced rows and those answered again are counted."""
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        found = ledger.audited_segments()
        assert found.audited == 2
        assert (found.replaced, found.answered_again) == (2, 1)
        assert found.verdicts == [{"segment": 1, "harm": True}]
        assert [outcome.ordinal for outcome in ledger.outcomes() if outcome.redone] == [4, 5]


def test_every_answer_costs_its_time_once(tmp_path: Path) -> None:
    """Results, trials, replaced answers and samples each count once; an answer took 0.3 s plus 0.01 s per row
    number.
    """
    asyncio.run(job(tmp_path / "l.sqlite"))
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        assert ledger.requests(("isolated", "tail-1")).answers == 3
        assert ledger.requests(("isolated", "tail-1"), samples="all").answers == 4
        assert round(ledger.requests(("isolated",)).seconds, 6) == 0.61
        assert ledger.all_requests().answers == 5 + 8 + 2 + 1


def test_tokens_are_added_up_only_where_each_answer_was_counted(tmp_path: Path) -> None:
    """A sum is given only if every answer was counted."""

    async def fill() -> None:
        ledger = JobLedger(tmp_path / "l.sqlite", HandClock())
        for n in range(3):
            ledger.add_trial("audit", answered(n, "a", alone=True, segment=3))
            ledger.add_trial("odd", answered(n, "a", alone=True, segment=3, counts=n != 1))
        await ledger.close()

    asyncio.run(fill())
    with LedgerReader(tmp_path / "l.sqlite") as ledger:
        audit, guard = ledger.requests(("audit",)), ledger.requests(("odd",))
        assert (audit.answers, audit.attempts) == (guard.answers, guard.attempts) == (3, 3)
        assert (audit.prompt_tokens, audit.cached_tokens, audit.completion_tokens) == (360, 280 - 80 + 20, 15)
        assert (guard.prompt_tokens, guard.cached_tokens, guard.completion_tokens) == (None, None, None)


def test_the_engine_and_the_report_read_the_same_answers(tmp_path: Path) -> None:
    """The engine reads replaced answers too, and a job of an earlier version has its segments
    audited again.
    """

    async def read() -> None:
        await job(tmp_path / "l.sqlite")
        ledger = JobLedger(tmp_path / "l.sqlite", HandClock())
        found = await ledger.conversation_answers("audit")
        assert [(row.ordinal, row.answer) for row in found] == [
            (1, "given 1"),
            (2, "given 2"),
            (4, "given 4"),
        ]
        assert await ledger.has_conversation_answers()
        assert await ledger.unaudited() == []
        await ledger.forget_audits()
        assert await ledger.unaudited() == [0], "what has a verdict keeps it"
        await ledger.close()

    asyncio.run(read())


def test_rows_and_every_kind_of_answer_count(tmp_path: Path) -> None:
    """Answered and failed rows, samples, trials and replaced answers are progress, and deferred
    rows are not.
    """
    path = tmp_path / "l.sqlite"
    readings: list[JobProgress] = []

    async def main() -> None:
        ledger = JobLedger(path, HandClock())

        async def look() -> None:
            await ledger.flush()
            readings.append(job_progress(path))

        await ledger.take_in([row(0), row(1), row(2, fault=RowFault("ragged", "2 of 3"))])
        await look()
        await ledger.take_in([row(n) for n in range(3, 9)])
        await ledger.note(intake_done=True)
        ledger.failed(Failed(0, "stalled", "s", 4))
        ledger.answered(answered(3, "one", segment=3))
        ledger.answered(answered(4, "two", segment=3))
        ledger.defer(8, 5000)
        await look()
        ledger.sampled(answered(6, "three", alone=True, segment=3))
        ledger.add_trial("isolated", answered(6, "three", alone=True, segment=3))
        await look()
        await ledger.withdraw_answers(1, {"segment": 1, "harm": True})
        await look()
        await ledger.skip_rest()
        await look()
        await ledger.close()

    asyncio.run(main())
    assert readings[:3] == [
        JobProgress(3, 1, 1),
        JobProgress(9, 4, 4, all_read=True),
        JobProgress(9, 4, 6, all_read=True),
    ]
    replaced = readings[2].ended - readings[3].ended
    assert (replaced > 0, readings[3].answers) == (True, 6)
    assert (readings[4].ended, readings[4].beyond(readings[3])) == (9, True)


@pytest.mark.parametrize(
    "make",
    [lambda _: None, lambda p: p.write_bytes(b"no database" * 100), lambda p: p.mkdir()],
    ids=["missing", "damaged", "a directory"],
)
def test_a_ledger_that_cannot_be_read_has_no_progress(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """An unreadable ledger has no progress and raises nothing, because every start reads it."""
    make(tmp_path / "l.sqlite")
    assert job_progress(tmp_path / "l.sqlite") == JobProgress()
