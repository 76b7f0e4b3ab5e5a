"""The ledger: ordered, durable before counted, and complete after any end of the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spoolama.answer.store import completed
from spoolama.clock import SystemClock
from spoolama.errors import LedgerError, RowError
from spoolama.job.row import Answered, Failed, Row, RowFault, RowRequest
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import LedgerReader
from spoolama.spool.ledger_rows import NewRow
from spoolama.spool.ledger_thread import Durable


def row(ordinal: int, name: str | None = None, *, fault: RowFault | None = None) -> NewRow:
    """A row named `name`, or by its number."""
    fields = None if fault else {"text": f"row {ordinal}"}
    new = Row(ordinal, ordinal + 2, fields, b"raw \xff", fault=fault)
    return NewRow(new, name or str(ordinal + 1), unique=name is not None)


def answered(ordinal: int, *, segment: int = 0, isolated: bool = False, attempts: int = 1) -> Answered:
    """An answer with plain counts."""
    return Answered(
        ordinal=ordinal,
        answer=f"answer {ordinal}",
        finish="stop",
        segment=segment,
        place=ordinal,
        visible_rows=((0, ordinal - 1),) if ordinal else (),
        isolated=isolated,
        trimmed=False,
        plan_version=1,
        turn_tokens=20,
        own_bytes=40,
        own_tokens=12 + ordinal,
        prompt_tokens=100 + ordinal,
        cached_tokens=None,
        completion_tokens=5,
        load_s=2.0 if ordinal == 0 else 0.0,
        prompt_s=0.1,
        eval_s=0.2,
        latency_s=float(ordinal),
        attempts=attempts,
    )


async def filled(path: Path, rows: int, **kwargs: object) -> JobLedger:
    """A ledger with this many rows."""
    ledger = JobLedger(path, SystemClock(), **kwargs)  # type: ignore[arg-type]
    await ledger.take_in([row(i) for i in range(rows)])
    return ledger


def test_rows_are_announced_only_once_the_disk_has_them(tmp_path: Path) -> None:
    """`on_durable` gets exactly the rows that ended, after the commit that reaches the disk."""

    async def main() -> None:
        announced: list[Durable] = []
        ledger = await filled(tmp_path / "l", 5, on_durable=announced.append, group_s=60.0)
        await ledger.flush()
        ledger.answered(answered(0))
        ledger.answered(answered(1))
        ledger.failed(Failed(2, "answer_cut", "cut", 4))
        assert announced == []
        await ledger.flush()
        assert announced == [Durable(2, {"answer_cut": 1})]
        assert await ledger.meta("syncs") == 2, "one for each flush, none for each row"
        await ledger.close()

    asyncio.run(main())


def test_committed_rows_survive_kill_9(tmp_path: Path) -> None:
    """After a kill the ledger has everything that its thread committed, marks of attempts included."""
    program = f"""
import asyncio, os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from pathlib import Path
from test_spool_ledger import filled, answered
async def main():
    ledger = await filled(Path({str(tmp_path / "l")!r}), 10)
    for i in range(4):
        await ledger.begin(i, 1)
        ledger.answered(answered(i))
    await ledger.begin(4, 1)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with LedgerReader(tmp_path / "l") as reader:
        assert reader.counts() == {"pending": 6, "ok": 4, "failed": 0, "skipped": 0}

    async def resume() -> None:
        ledger = JobLedger(tmp_path / "l", SystemClock())
        first = (await ledger.pending(0, 9, None, 1))[0]
        assert (first.ordinal, [a.code for a in first.attempts]) == (4, ["open"])
        with sqlite3.connect(tmp_path / "l") as db:
            assert db.execute("SELECT ordinal FROM attempts").fetchall() == [(4,)], (
                "ended rows leave no marks"
            )
        db.close()
        await ledger.close()

    asyncio.run(resume())


def test_the_error_of_a_failed_row_has_bounded_length(tmp_path: Path) -> None:
    """The error of a failed row is cut, as for a name of 900 kB in a template, and the model's
    answer is complete.
    """
    long = "a" * 900_000
    error = RowError("template_undefined", long, details={"field": long})
    assert len(error.message) + len(str(error.details)) < 4_000

    async def main() -> None:
        ledger = await filled(tmp_path / "l", 50)
        details = {long: 1, "field": long, "in": [{"it": long}], "tokens": 7, "answer": long}
        await ledger.begin(0, 1)
        ledger.end(0, 1, "answer_invalid", long, counted=True)
        ledger.failed(Failed(0, "answer_invalid", long, 1, details))
        for ordinal in range(1, 50):
            ledger.failed(Failed(ordinal, "template_undefined", long, 0, {"field": long}))
        await ledger.close()

    asyncio.run(main())
    with LedgerReader(tmp_path / "l") as reader:
        outcome, *_ = reader.outcomes()
    assert outcome.details["answer"] == long
    assert outcome.details["tokens"] == 7
    assert len(json.dumps(outcome.details)) < 910_000
    assert outcome.details["field"].startswith("aaa")
    assert "(899,000 characters left out)" in outcome.details["field"]
    assert (tmp_path / "l").stat().st_size < 2_000_000


def test_ids_are_unique_and_faults_end_rows_at_once(tmp_path: Path) -> None:
    """The second row with an id fails with the line of the first one, and an unreadable row
    keeps its bytes.
    """

    async def main() -> None:
        ledger = JobLedger(tmp_path / "l", SystemClock())
        await ledger.take_in(
            [row(0, "a"), row(1, "b"), row(2, "a"), row(3, fault=RowFault("ragged", "2 of 3"))]
        )
        await ledger.close()

    asyncio.run(main())
    with LedgerReader(tmp_path / "l") as reader:
        outcomes = list(reader.outcomes())
        assert reader.failures() == {"duplicate_id": 1, "ragged": 1}
    assert [o.state for o in outcomes] == ["pending", "pending", "failed", "failed"]
    assert "line 2" in (outcomes[2].message or "")
    assert (outcomes[2].id, outcomes[2].fields) == ("a", {"text": "row 2"})
    assert outcomes[3].raw == b"raw \xff"


def test_totals_and_percentiles_are_those_of_the_rows(tmp_path: Path) -> None:
    """Sums, retries, reloads and nearest-rank percentiles are exact, with None where nothing was counted."""

    async def main() -> None:
        ledger = await filled(tmp_path / "l", 12)
        for i in range(10):
            ledger.answered(answered(i, attempts=1 + (i == 3)))
        ledger.failed(Failed(10, "stalled", "s", 4))
        ledger.failed(Failed(11, "template_undefined", "t", 0))
        await ledger.close()

    asyncio.run(main())
    with LedgerReader(tmp_path / "l") as reader:
        totals = reader.totals()
        assert (totals.prompt_tokens, totals.prompt_rows) == (1045, 10)
        assert (totals.cached_tokens, totals.cached_rows) == (None, 0)
        assert (totals.attempts, totals.retries, totals.reloads) == (15, 4, 0)
        assert [reader.percentile("latency_s", q) for q in (0.0, 0.5, 0.9, 0.99, 1.0)] == [0, 4, 8, 9, 9]


def test_segments_with_rows_left_are_found_in_order(tmp_path: Path) -> None:
    """Each segment with open rows comes once in order, also one long segment."""

    async def main() -> None:
        ledger = await filled(tmp_path / "l", 50)
        for i in [*range(10), *range(20, 30), 41]:
            ledger.answered(answered(i))
        assert await ledger.pending_segments(-1, 10, None, 10) == [1, 3, 4]
        assert await ledger.pending_segments(1, 10, None, 1) == [3]
        assert await ledger.pending_segments(-1, 1 << 61, None, 10) == [0]
        assert await ledger.pending_segments(0, 1 << 61, None, 10) == []
        assert await ledger.pending_segments(-1, 10, "other", 10) == []
        await ledger.close()

    asyncio.run(main())


def test_an_isolated_row_is_not_the_last_of_the_conversation(tmp_path: Path) -> None:
    """A resume continues from the last row that later rows see, not from an isolated one."""

    async def main() -> None:
        ledger = await filled(tmp_path / "l", 5)
        for i, isolated in enumerate((False, False, True)):
            ledger.answered(answered(i, isolated=isolated))
        last = await ledger.last_turn(0)
        assert last is not None
        assert last.ordinal == 1
        assert [r.ordinal for r in await ledger.turns(((0, 4),))] == [0, 1]
        await ledger.close()

    asyncio.run(main())


def test_a_write_that_fails_while_the_ledger_is_closed_does_not_keep_it_open(tmp_path: Path) -> None:
    """If the last write of a closing ledger fails, closing does not wait for another one."""

    async def main() -> None:
        ledger = await filled(tmp_path / "l", 2)
        held, go = threading.Event(), threading.Event()

        def hold(_: sqlite3.Connection) -> None:
            held.set()
            go.wait(30)

        ledger._thread.post(hold)
        await asyncio.to_thread(held.wait, 30)
        ledger.answered(answered(0))
        ledger.answered(answered(0))  # fails, in one batch with the end
        closing = asyncio.create_task(ledger.close())
        await asyncio.sleep(0)  # has queued the end
        go.set()
        async with asyncio.timeout(30):
            await closing

    asyncio.run(main())


def test_a_failed_write_is_final(tmp_path: Path) -> None:
    """After a failed write the ledger accepts nothing more, because a second sync may report a
    false success.
    """

    async def main() -> None:
        ledger = await filled(tmp_path / "l", 2)
        ledger.answered(answered(0))
        ledger.answered(answered(0))  # the same row twice is an error of the program
        with pytest.raises(LedgerError):
            await ledger.flush()
        with pytest.raises(LedgerError):
            await ledger.begin(1, 1)
        await ledger.close()

    asyncio.run(main())


def test_openai_lines_of_another_shape_are_isolated(tmp_path: Path) -> None:
    """Only lines with the most common shape and no history share a conversation."""

    async def main() -> None:
        ledger = JobLedger(tmp_path / "l", SystemClock())
        shapes = ["s1", "s2", None, "s1"]
        await ledger.take_in(
            [NewRow(Row(i, i + 1, {}, b"", shape=s), None, unique=False) for i, s in enumerate(shapes)]
        )
        await ledger.isolate_other_shapes()
        rows = await ledger.pending(0, 9, None, 9)
        assert [r.isolated for r in rows] == [False, True, True, False]
        await ledger.close()

    asyncio.run(main())


def test_the_request_of_a_row_is_read_back_instead_of_its_fields(tmp_path: Path) -> None:
    """A request counts like fields: a large one is not loaded until the row is asked."""
    long = RowRequest(
        (("system", "S"), ("user", "ü" * 200_000)), 7, {"stop": ["END"]}, {"type": "object"}, think=False
    )
    short = RowRequest((("user", "hi"),), format="text")

    async def main() -> None:
        async with JobLedger(tmp_path / "l", SystemClock()) as ledger:
            rows = [
                Row(0, 1, {"body": 0}, b"", request=long),
                Row(1, 2, {"body": 1}, b"", request=short),
                Row(2, 3, {"body": 2}, b""),
            ]
            await ledger.take_in([NewRow(new, None, unique=False) for new in rows])
            (part,) = await ledger.pending(0, 9, None, 9)
            assert (part.complete, part.request, part.fields) == (False, None, {})
            assert part.memory >= 200_000
            assert (await completed(part, ledger)).request == long
            assert [row.request for row in await ledger.pending(1, 9, None, 9)] == [short, None]
            await ledger.add_requests({2: short})
            assert [row.request for row in await ledger.pending(2, 9, None, 9)] == [short]

    asyncio.run(main())
    with LedgerReader(tmp_path / "l") as reader:
        found = list(reader.outcomes())
    assert [row.fields for row in found] == [{"body": 0}, {"body": 1}, {"body": 2}]
    assert [row.request for row in found] == [long, short, short]


def test_large_rows_are_read_one_by_one_and_their_fields_only_when_their_turn_comes(tmp_path: Path) -> None:
    """The lanes hold few bytes of large rows before they ask, and every row is complete."""
    texts = ["a" * 30_000, "b" * 30_000, "c" * 30_000, "d" * 200_000, "e"]

    async def main() -> None:
        ledger = JobLedger(tmp_path / "l", SystemClock())
        rows = [Row(i, i + 1, {"text": text}, b"") for i, text in enumerate(texts)]
        await ledger.take_in([NewRow(new, None, unique=False) for new in rows])
        await ledger.begin(3, 1)
        ledger.end(3, 1, "busy", "m", counted=False)
        chunks, after = [], 0
        while found := await ledger.pending(after, 9, None, 64):
            chunks.append([r.ordinal for r in found])
            for row in found:
                whole = await completed(row, ledger)
                assert whole.fields == {"text": texts[row.ordinal]}
                assert [a.code for a in whole.attempts] == (["busy"] if row.ordinal == 3 else [])
                assert row.complete == (row.ordinal != 3)
                assert row.memory == whole.memory
            after = found[-1].ordinal + 1
        assert chunks == [[0, 1], [2], [3], [4]]
        await ledger.close()

    asyncio.run(main())
