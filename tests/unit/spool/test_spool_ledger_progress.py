"""How far a job is, counted in its ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolama.job.record import Failed
from spoolama.job.row import RowFault
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_progress import JobProgress, job_progress
from support.hand_clock import HandClock
from support.published import answered
from unit.spool.test_spool_ledger import row


def test_rows_and_every_kind_of_answer_count(tmp_path: Path) -> None:
    """Answered and failed rows, samples, trials and replaced answers; not deferred rows."""
    path = tmp_path / "l.sqlite"
    seen: list[JobProgress] = []

    async def main() -> None:
        ledger = JobLedger(path, HandClock())

        async def look() -> None:
            await ledger.flush()
            seen.append(job_progress(path))

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
        ledger.tried("isolated", answered(6, "three", alone=True, segment=3))
        await look()
        await ledger.redo(1, {"segment": 1, "harm": True})
        await look()
        await ledger.skip_rest()
        await look()
        await ledger.close()

    asyncio.run(main())
    assert seen[:3] == [
        JobProgress(3, 1, 1),
        JobProgress(9, 4, 4, all_read=True),
        JobProgress(9, 4, 6, all_read=True),
    ]
    replaced = seen[2].ended - seen[3].ended
    assert (replaced > 0, seen[3].answers) == (True, 6)
    assert (seen[4].ended, seen[4].beyond(seen[3])) == (9, True)


@pytest.mark.parametrize(
    "make",
    [lambda _: None, lambda p: p.write_bytes(b"no database" * 100), lambda p: p.mkdir()],
    ids=["missing", "damaged", "a directory"],
)
def test_a_ledger_that_cannot_be_read_has_no_progress(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """And nothing is raised, since it is asked at every start."""
    make(tmp_path / "l.sqlite")
    assert job_progress(tmp_path / "l.sqlite") == JobProgress()
