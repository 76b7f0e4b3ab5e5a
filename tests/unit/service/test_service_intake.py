"""Reading a job's rows into its ledger."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

from spoolama.clock import SystemClock
from spoolama.job.rows.data_file import detect
from spoolama.job.rows.reader import RowLimits
from spoolama.job.sidecar import Sidecar
from spoolama.progress import Progress, Pulse
from spoolama.service.intake import take_in
from spoolama.spool.claim import JobDir
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import LedgerReader
from support.evaluation import inline_evaluator


def test_long_documents_are_not_all_in_memory_at_once(tmp_path: Path) -> None:
    """A hundred documents of 200 kB take the memory of a few."""
    data = tmp_path / "job.csv"
    data.write_bytes(b"text\n" + b"".join(b"%0200000d\n" % n for n in range(100)))
    job = JobDir(tmp_path, "job", data, None, data.name, claimed_at=0.0, arrived=0.0)
    clock = SystemClock()
    sidecar = Sidecar(model="m", prompt="{{ text }}")

    async def main() -> int:
        ledger = JobLedger(job.ledger, clock)
        tracemalloc.start()
        try:
            await take_in(
                job,
                detect(data, data.name),
                sidecar,
                ledger,
                inline_evaluator(),
                Progress("job", clock, Pulse(clock)),
                limits=RowLimits(),
                newline_required=True,
            )
            peak = tracemalloc.get_traced_memory()[1]
            assert (await ledger.counts())["pending"] == 100
        finally:
            tracemalloc.stop()
            await ledger.close()
        return peak

    peak = asyncio.run(main())

    assert 1_000_000 < peak < 25_000_000, "all of them would be 40 MB and more"


def test_openai_requests_have_their_model_and_shape_or_their_fault(tmp_path: Path) -> None:
    """An invalid request fails its row under its name, and the others share a shape."""

    def request(name: str, **body: Any) -> dict[str, Any]:
        body = {"model": "m", "messages": [{"role": "user", "content": name}], **body}
        return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}

    lines = [request("a"), request("b"), request("c", n=4), {"a": 1}]
    data = tmp_path / "job.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = JobDir(tmp_path, "job", data, None, data.name, claimed_at=0.0, arrived=0.0)
    clock = SystemClock()

    async def main() -> None:
        ledger = JobLedger(job.ledger, clock)
        try:
            await take_in(
                job,
                detect(data, data.name),
                Sidecar(),
                ledger,
                inline_evaluator(),
                Progress("job", clock, Pulse(clock)),
                limits=RowLimits(),
                newline_required=True,
            )
        finally:
            await ledger.close()

    asyncio.run(main())
    with LedgerReader(job.ledger) as reader:
        rows = list(reader.outcomes())

    assert [(row.id, row.model, row.code, row.isolated) for row in rows] == [
        ("a", "m", None, False),
        ("b", "m", None, False),
        ("c", None, "unsupported_request", True),
        (None, None, "unsupported_request", True),
    ]
    assert rows[2].message == "n: is not supported: each row has one answer"
    assert str(rows[3].message).startswith("custom_id:")
