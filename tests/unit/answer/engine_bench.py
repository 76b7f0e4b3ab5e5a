"""Run jobs with a real ledger, a scripted server and a simulated clock, for the tests of the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spoolama.backends.base import LoadedModel, Reply, ServerInfo
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.evaluation.evaluator import Evaluator
from spoolama.job.row import Row
from spoolama.progress import Progress, Pulse
from spoolama.run.runner import JobRunner, RunEnd
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import LedgerReader, Outcome
from spoolama.spool.ledger_rows import NewRow
from spoolama.stopping import Stop
from support.backend import Call, ScriptedBackend
from support.clock import VirtualClock
from support.evaluation import InlineRunner

SIDECAR = """
model: m
system: Judge.
prompt: "{{ text }}"
options: {num_ctx: 512, num_predict: 16}
"""


class Bench:
    """One job with a ledger in a directory; a second call of `run` acts like a restart."""

    def __init__(self, path: Path, texts: list[str], sidecar: str = SIDECAR, **backend: Any) -> None:
        self.clock = VirtualClock()
        if "trim:" not in sidecar:  # most tests of the engine are about conversations,
            sidecar += "trim: {strategy: reset}\n"
        if "audit:" not in sidecar:  # not about the requests of the audit
            sidecar += "audit: off\n"
        self.sidecar = parse_sidecar(sidecar, "job.yaml")
        self.backend = ScriptedBackend(self.clock, **backend)
        self.path = path / "ledger.sqlite"
        self.texts = texts
        self.stop = Stop()
        self.runner = InlineRunner()
        self.on_notice: Callable[[str, str], None] = lambda _kind, _message: None
        self.progress = Progress("job", self.clock, Pulse(self.clock))

    async def _run(self, lanes: int) -> RunEnd:
        fresh = not self.path.exists()
        self.progress = Progress("job", self.clock, Pulse(self.clock), on_notice=self.on_notice)
        ledger = JobLedger(
            self.path, self.clock, on_durable=lambda d: self.progress.durable(ok=d.ok, failed=d.failed)
        )
        try:
            if fresh:
                await ledger.take_in(
                    [
                        NewRow(Row(i, i + 2, {"text": text}, text.encode()), str(i + 1), unique=False)
                        for i, text in enumerate(self.texts)
                    ]
                )
            self.progress.total = len(self.texts)
            runner = JobRunner(
                evaluator=Evaluator(self.runner).of_job(stops=self.stop.is_set),
                sidecar=self.sidecar,
                store=ledger,
                backend=self.backend,
                clock=self.clock,
                progress=self.progress,
                lanes=lanes,
                stop=self.stop,
            )
            return await runner.run()
        finally:
            await ledger.close()

    def run(self, lanes: int = 1) -> RunEnd:
        async def main() -> RunEnd:
            self.stop = Stop()
            return await self.clock.run(self._run(lanes))

        return asyncio.run(main())

    @property
    def outcomes(self) -> list[Outcome]:
        with LedgerReader(self.path) as reader:
            return list(reader.outcomes())

    @property
    def prompts(self) -> dict[str, list[str]]:
        """All prompts sent, by the text of their row."""
        sent: dict[str, list[str]] = {}
        for call in self.backend.calls:
            sent.setdefault(call.text, []).append(json.dumps([m.wire() for m in call.request.messages]))
        return sent


def texts(number: int) -> list[str]:
    return [f"row {i} " + "x" * (i % 7) for i in range(number)]


ANCHORS = SIDECAR + "trim: {strategy: anchors, anchors: 4}\n"
LONG = SIDECAR.replace("512", "256") + "long_rows: second_pass\n"
HELD = LoadedModel("m", "d1", 512, 1, ServerInfo("scripted", "1"), size_bytes=1000, vram_bytes=1000)


def plans_of(bench: Bench) -> list[dict[str, Any]]:
    with LedgerReader(bench.path) as reader:
        return reader.plans()


def meta_of(bench: Bench, key: str) -> Any:
    with LedgerReader(bench.path) as reader:
        return reader.meta(key)


def visible_to(outcome: Outcome) -> list[int]:
    return [n for first, last in outcome.visible_rows or () for n in range(first, last + 1)]


def reloads(bench: Bench, at: str, held: LoadedModel | None) -> Callable[[Call], Reply | None]:
    """A reload happens during the reply for one row; the server reports this state from then on."""

    def fault(call: Call) -> Reply | None:
        if call.text.startswith(at) and not met:
            met.append(call)
            bench.backend.held = held
            return replace(bench.backend.reply_to(call.request), load_s=0.4)
        return None

    met: list[Call] = []
    return fault


def primed(tmp_path: Path, side: str = "", **backend: Any) -> Bench:
    """An isolated job on a model with sliding-window attention."""
    rows = [
        f"{i % 10} {i} a row with a text that is longer than the window of attention" * 2 for i in range(40)
    ]
    text = SIDECAR.replace("Judge.", "Judge " + "with great care " * 20) + "mode: isolated\n" + side
    return Bench(tmp_path, rows, text, caches=True, sliding=30, **backend)


def primer_of(bench: Bench) -> dict[str, Any]:
    (notes,) = meta_of(bench, "watch")
    found: dict[str, Any] = notes["primer"]
    return found
