"""Reading a job's rows into its ledger."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

from spoolama.clock import SystemClock
from spoolama.engine.progress import Progress, Pulse
from spoolama.job.rows import Limits, detect
from spoolama.job.sidecar import Sidecar
from spoolama.service.intake import take_in
from spoolama.spool.claim import JobDir
from spoolama.spool.job_ledger import JobLedger


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
                Progress("job", clock, Pulse(clock)),
                limits=Limits(),
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
