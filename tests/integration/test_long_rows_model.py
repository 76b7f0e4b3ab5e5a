"""A row of 1,050 tokens among short ones, with a real model in the embedded engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from spoolama.backends.embedded import EmbeddedBackend
from spoolama.clock import SystemClock
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.row import Row
from spoolama.progress import Progress, Pulse
from spoolama.run.runner import JobRunner
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import LedgerReader
from spoolama.spool.ledger_rows import NewRow
from spoolama.stopping import Stop
from support.evaluation import inline_job_evaluator

SIDECAR = """
model: gemma3:270m
system: Say what this is about.
prompt: "{{ text }}"
long_rows: second_pass
format: {enum: [battery, other]}
options: {num_ctx: 512, num_predict: 16}
"""


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_long_row_is_answered_in_a_second_pass(tmp_path: Path) -> None:
    """The row is counted exactly without an evaluation, waits for the end, and costs one more load."""
    sidecar = parse_sidecar(SIDECAR, "job.yaml")
    texts = ["A short row.", "The battery died after two days. " * 150, "Another short one."]

    async def run() -> int:
        clock = SystemClock()
        backend = EmbeddedBackend(clock=clock, threads=1, cache_dir=tmp_path / "cache")
        loads = 0
        load = backend.load

        async def counted(spec: object) -> object:
            nonlocal loads
            loads += 1
            return await load(spec)  # type: ignore[arg-type]  # handed on as it came

        backend.load = counted  # type: ignore[method-assign,assignment]  # counts, and loads
        ledger = JobLedger(tmp_path / "ledger.sqlite", clock)
        await ledger.take_in(
            [NewRow(Row(i, i + 2, {"text": t}, b""), str(i + 1), unique=False) for i, t in enumerate(texts)]
        )
        runner = JobRunner(
            evaluator=inline_job_evaluator(),
            sidecar=sidecar,
            store=ledger,
            backend=backend,
            clock=clock,
            progress=Progress("job", clock, Pulse(clock)),
            lanes=1,
            stop=Stop(),
        )
        try:
            assert (await runner.run()).finished
        finally:
            await ledger.close()
            await backend.aclose()
        return loads

    assert asyncio.run(run()) == 2
    with LedgerReader(tmp_path / "ledger.sqlite") as reader:
        outcomes = list(reader.outcomes())
        assert (reader.second_pass(512) or {})["rows"] == 1
    assert [o.state for o in outcomes] == ["ok"] * 3
    assert (outcomes[1].prompt_tokens or 0) > 1_050
