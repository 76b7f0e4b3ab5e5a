"""The execution of a job when the disk is full or the service ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spoolama.backends.base import ChatRequest
from spoolama.backends.ollama import OllamaBackend
from spoolama.clock import SystemClock
from spoolama.errors import DiskFull, JobError, LedgerError, LedgerVersion
from spoolama.job.plan import Plan
from spoolama.progress import Progress, Pulse
from spoolama.service import execution
from spoolama.service.execution import JobExecutor
from spoolama.service.state import JobEnd
from spoolama.spool.claim import claim
from spoolama.spool.layout import Spool
from spoolama.spool.ledger_format import open_writer
from spoolama.spool.ledger_thread import LedgerThread
from spoolama.spool.scanner import Drop
from spoolama.stopping import Stop
from support.backend import ScriptedBackend
from support.evaluation import inline_evaluator
from support.fake_ollama import Call, FakeOllama, Fault, Script


@pytest.mark.parametrize("prompt", ["{{ text }}", ""], ids=["results", "error.json"])
def test_a_full_disk_while_results_are_written_leaves_the_job_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    """DiskFull while writing results or error.json holds the job, and with room it is published."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.incoming / "j.csv").write_text("text\na\nb\n")
    (spool.incoming / "j.yaml").write_text(f'model: smollm2:135m\nprompt: "{prompt}"\n')
    clock = SystemClock()
    job = claim(spool, Drop("j.csv", "j.yaml", 0.0, 9), clock=clock)

    async def execute() -> JobEnd:
        async with FakeOllama(Script()) as server:
            backend = OllamaBackend(server.url, clock=clock)
            try:
                executor = JobExecutor(spool, backend, inline_evaluator(), clock)
                return await executor.execute(job, Progress(job.name, clock, Pulse(clock)), Stop())
            finally:
                await backend.aclose()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(execution, "build_outputs", full)
        patched.setattr(Path, "write_text", full)
        with pytest.raises(DiskFull):
            asyncio.run(execute())
    ended = asyncio.run(execute())

    assert ended.where == ("done" if prompt else "failed")
    assert ended.path is not None
    assert (ended.path / "uploaded" / "j.csv").exists()


def test_a_full_disk_while_rows_are_answered_leaves_the_job_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the ledger cannot grow, the lanes raise DiskFull, and with room the job resumes."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.incoming / "j.csv").write_text("text\n" + "".join(f"row {n}\n" for n in range(300)))
    (spool.incoming / "j.yaml").write_text('model: smollm2:135m\nprompt: "{{ text }}"\n')
    clock = SystemClock()
    job = claim(spool, Drop("j.csv", "j.yaml", 0.0, 9), clock=clock)
    full = threading.Event()
    transact = LedgerThread._transact

    def on_a_full_disk(ledger: LedgerThread, ops: Sequence[Any]) -> list[Any]:
        # In the ledger's own thread, because two threads on one connection read each other's error codes.
        if full.is_set():
            ledger._db.execute("PRAGMA max_page_count=1")  # not one page more than now
        return transact(ledger, ops)

    def fill_the_disk(call: Call) -> bool:
        full.set()
        return False

    async def execute(*faults: Fault) -> tuple[JobEnd, int]:
        async with FakeOllama(Script(faults=list(faults), slots=3)) as server:
            backend = OllamaBackend(server.url, clock=clock)
            try:
                executor = JobExecutor(spool, backend, inline_evaluator(), clock, lanes=3)
                progress = Progress(job.name, clock, Pulse(clock))
                return await executor.execute(job, progress, Stop()), len(server.chats)
            finally:
                await backend.aclose()

    monkeypatch.setattr(LedgerThread, "_transact", on_a_full_disk)
    with pytest.raises(DiskFull):
        asyncio.run(execute(Fault("busy", when=fill_the_disk)))
    full.clear()
    ended, asked = asyncio.run(execute())

    assert ended.where == "done"
    assert 0 < asked < 300, "what was answered before is kept"


@pytest.mark.parametrize("sidecar", ["", "novelty: 1\n"], ids=["known sidecar", "unknown key in the sidecar"])
def test_a_ledger_of_a_newer_version_is_never_published(tmp_path: Path, sidecar: str) -> None:
    """Neither execution nor rejection of the job takes a newer ledger out of processing/."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.incoming / "j.csv").write_text("text\na\n")
    (spool.incoming / "j.yaml").write_text(f'model: m\nprompt: "{{{{ text }}}}"\n{sidecar}')
    clock = SystemClock()
    job = claim(spool, Drop("j.csv", "j.yaml", 0.0, 9), clock=clock)
    with contextlib.closing(open_writer(job.ledger)) as db:
        db.execute("PRAGMA user_version=9")
    before = {path.name: path.read_bytes() for path in job.path.iterdir()}
    executor = JobExecutor(spool, ScriptedBackend(clock), inline_evaluator(), clock)
    with pytest.raises(LedgerVersion, match=f"The ledger of {job.name} has format 9"):
        asyncio.run(executor.execute(job, Progress(job.name, clock, Pulse(clock)), Stop()))
    for error in (JobError("cancelled", code="cancelled"), LedgerError("damaged")):
        with pytest.raises(LedgerVersion):
            asyncio.run(executor.reject(job, error))
    assert {name: (job.path / name).read_bytes() for name in before} == before
    assert [*spool.done.iterdir(), *spool.failed.iterdir()] == []


def test_a_job_whose_sidecar_this_version_refuses_keeps_its_results(tmp_path: Path) -> None:
    """A job whose sidecar an older version accepted waits in processing/, and not even a cancel
    publishes it.
    """
    spool = Spool(tmp_path)
    spool.create()
    (spool.incoming / "j.csv").write_text("text\na\nb\nc\n")
    (spool.incoming / "j.yaml").write_text("model: m\nprompt: '{{ text }}'\n")
    clock = SystemClock()
    job = claim(spool, Drop("j.csv", "j.yaml", 0.0, 9), clock=clock)
    stop = Stop()

    def answer(_: ChatRequest) -> str:
        stop.set()
        return "yes"

    backend = ScriptedBackend(clock, answer=answer, latency_s=0.0)
    executor = JobExecutor(spool, backend, inline_evaluator(), clock)
    assert asyncio.run(executor.execute(job, Progress(job.name, clock, Pulse(clock)), stop)).where == "left"
    assert job.sidecar is not None
    job.sidecar.write_text("model: m\nprompt: '{{ text }}'\ntimeout: 0.05\n")

    with pytest.raises(LedgerVersion, match=r"refuses the sidecar .*timeout: 0.05 is not a number"):
        asyncio.run(executor.execute(job, Progress(job.name, clock, Pulse(clock)), Stop()))
    with pytest.raises(LedgerVersion):
        asyncio.run(executor.reject(job, JobError("cancelled", code="cancelled")))
    assert job.ledger.exists()
    assert [*spool.done.iterdir(), *spool.failed.iterdir()] == []


@pytest.mark.parametrize(
    ("learned", "visible", "expected"),
    [
        (None, 11, "this job trimmed every 30 rows, the default"),
        (3, 3, "this job trimmed every 3 rows, as an earlier version learned"),
    ],
)
def test_a_job_begun_with_a_retired_setting_continues(
    tmp_path: Path, learned: int | None, visible: int, expected: str
) -> None:
    """The job continues by the unchanged plans in its ledger, and summary.txt and metrics.json say so."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.incoming / "j.csv").write_text("text\n" + "a\n" * 24)
    trim = "segment: 12\ntrim: {strategy: window, keep: 1, every: auto}\n"
    (spool.incoming / "j.yaml").write_text("model: m\nprompt: '{{ text }}'\n" + trim)
    clock = SystemClock()
    job = claim(spool, Drop("j.csv", "j.yaml", 0.0, 9), clock=clock)
    first = Plan(1, 0, 12, "window", every=30, keep=1).to_json()
    second = first | {"version": 2, "from_segment": 1, "every": learned}
    plans = [] if learned is None else [first, second]
    with contextlib.closing(open_writer(job.ledger)) as db:
        for plan in plans:
            db.execute("INSERT INTO plan VALUES (?, ?)", (plan["version"], json.dumps(plan)))
    executor = JobExecutor(spool, ScriptedBackend(clock, latency_s=0.0), inline_evaluator(), clock)

    ended = asyncio.run(executor.execute(job, Progress(job.name, clock, Pulse(clock)), Stop()))

    assert ended.where == "done"
    assert ended.path is not None
    rows = [json.loads(line) for line in (ended.path / "results.jsonl").read_text().splitlines()]
    metrics = json.loads((ended.path / "metrics.json").read_text())
    sentence = f"The setting `every: auto` no longer exists: {expected}."
    assert max(sum(last - first + 1 for first, last in row["visible_rows"]) for row in rows[12:]) == visible
    assert metrics["retired_settings"] == [sentence]
    assert sentence in " ".join((ended.path / "summary.txt").read_text().split())
    assert metrics["plans"][: len(plans)] == plans


@pytest.mark.parametrize("then", ["report", "fail"])
def test_harm_is_part_of_the_result_of_a_job(tmp_path: Path, then: str) -> None:
    """Status, log and the last line of `run` say that the conversation changed answers."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.incoming / "j.csv").write_text("text\n" + "".join(f"{'abc'[n % 3]} {n}\n" for n in range(40)))
    (spool.incoming / "j.yaml").write_text(
        f'model: m\nprompt: "{{{{ text }}}}"\ntrim: {{strategy: window, every: 5}}\non_harm: {then}\n'
    )
    clock = SystemClock()
    job = claim(spool, Drop("j.csv", "j.yaml", 0.0, 9), clock=clock)

    def follows(request: ChatRequest) -> str:
        given = [m.content for m in request.messages if m.role == "assistant"]
        return given[-1] if given else request.messages[-1].content[0]

    executor = JobExecutor(
        spool, ScriptedBackend(clock, answer=follows, latency_s=0.0), inline_evaluator(), clock
    )
    ended = asyncio.run(executor.execute(job, Progress(job.name, clock, Pulse(clock)), Stop()))

    assert ended.message.lower().count("the conversation changes about") == 1
    assert ended.message.startswith("40 rows in") == (then == "report")


@pytest.mark.parametrize("stop_at", [43, 48], ids=["audit begins", "amid the audit"])
def test_a_job_stopped_after_its_last_row_is_audited_after_the_restart(tmp_path: Path, stop_at: int) -> None:
    """The audit of a job stopped after its last row is finished before anything is published."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.incoming / "j.csv").write_text("text\n" + "".join(f"row {n}\n" for n in range(40)))
    (spool.incoming / "j.yaml").write_text(
        'model: smollm2:135m\nprompt: "{{ text }}"\naudit: 12\ntrim: {strategy: reset}\n'
    )
    clock, stop = SystemClock(), Stop()
    job = claim(spool, Drop("j.csv", "j.yaml", 0.0, 9), clock=clock)

    async def execute(signal: Stop) -> JobEnd:
        async with FakeOllama(Script(faults=[Fault("busy", when=stops)])) as server:
            asked.append(server)
            backend = OllamaBackend(server.url, clock=clock)
            try:
                executor = JobExecutor(spool, backend, inline_evaluator(), clock)
                return await executor.execute(job, Progress(job.name, clock, Pulse(clock)), signal)
            finally:
                await backend.aclose()

    asked: list[FakeOllama] = []

    def stops(call: Call) -> bool:
        del call
        if len(asked[-1].chats) >= stop_at:
            stop.set()
        return False

    assert asyncio.run(execute(stop)).where != "done"
    ended = asyncio.run(execute(Stop()))

    assert ended.where == "done"
    assert ended.path is not None
    audit = json.loads((ended.path / "metrics.json").read_text())["audit"]
    assert (audit["rows"], audit["asked"]) == (12, 12)
