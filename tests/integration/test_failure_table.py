"""Every line of the table of failures, over real HTTP, in the execution of a whole job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spoolama.backends.ollama import OllamaBackend
from spoolama.clock import SystemClock
from spoolama.progress import Progress, Pulse
from spoolama.service.execution import JobExecutor
from spoolama.spool.claim import claim, random_token
from spoolama.spool.layout import Spool
from spoolama.spool.scanner import ReadyRules, Scanner
from spoolama.stopping import Stop
from support.evaluation import inline_evaluator
from support.fake_ollama import FakeOllama
from support.fake_ollama_script import Fault, Script

pytestmark = pytest.mark.slow

ROWS = 12
SIDECAR = """
model: smollm2:135m
system: Judge.
prompt: "{{ text }}"
options: {num_ctx: 2048, num_predict: 16}
retries: 2
"""
BAD = "row 05"


def recorded(case: str) -> str:
    """The recorded body of a real server's reply."""
    reply = json.loads((Path(__file__).parents[1] / "wire" / f"{case}.json").read_text())
    return json.dumps(reply["response"]["json"])


@dataclass(frozen=True)
class JobResult:
    """The result of a job."""

    where: str
    rows: list[dict[str, Any]]
    error: dict[str, Any]
    chats: list[str]
    """The last message of each chat that the server received."""
    prompts: list[list[str]]
    """All messages of each."""
    metrics: dict[str, Any]
    errors: list[dict[str, Any]]
    """The lines of errors.jsonl."""

    @property
    def bad(self) -> dict[str, Any]:
        """The row with the fault."""
        return self.rows[5]

    @property
    def others_ok(self) -> bool:
        """Whether every other row was answered."""
        return all(row["status"] == "ok" for row in self.rows if row["row"] != 6)


def run(
    base: Path,
    faults: list[Fault],
    *,
    sidecar: str = SIDECAR,
    bad: str = BAD,
    beside: Callable[[FakeOllama], Coroutine[Any, Any, None]] | None = None,
) -> JobResult:
    """Run a job of twelve rows with a fake with these faults.

    Args:
        beside: Runs at the same time and does to the server what no fault can.
    """

    async def main() -> JobResult:
        clock = SystemClock()
        spool = Spool(base / "spool")
        spool.create()
        lines = [json.dumps({"text": bad if n == 5 else f"row {n:02}"}) for n in range(ROWS)]
        (spool.incoming / "job.jsonl").write_text("".join(f"{line}\n" for line in lines))
        (spool.incoming / "job.yaml").write_text(sidecar)
        (drop,) = Scanner(spool, ReadyRules(quiet_s=0.0), clock).scan().ready
        job = claim(spool, drop, clock=clock, token=random_token)
        async with FakeOllama(Script(faults=faults)) as server:
            backend = OllamaBackend(server.url, clock=clock)
            executor = JobExecutor(spool, backend, inline_evaluator(), clock, lanes=1)
            async with asyncio.TaskGroup() as group:
                if beside is not None:
                    group.create_task(beside(server))
                ended = await executor.execute(job, Progress(job.name, clock, Pulse(clock)), Stop())
            await backend.aclose()
            prompts = [[str(message["content"]) for message in call.messages] for call in server.chats]
        assert ended.path is not None
        results, error, metrics = (ended.path / n for n in ("results.jsonl", "error.json", "metrics.json"))
        rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        return JobResult(
            where=ended.where,
            rows=rows,
            error=json.loads(error.read_text()) if error.exists() else {},
            chats=[prompt[-1] for prompt in prompts],
            prompts=prompts,
            metrics=json.loads(metrics.read_text()),
            errors=[json.loads(line) for line in (ended.path / "errors.jsonl").read_text().splitlines()],
        )

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("reset", {}),
        ("reset_body", {}),
        ("garbage", {}),
        ("busy", {}),
        ("runner_killed", {}),
        ("out_of_memory", {}),
        ("not_done", {}),
        ("no_reason", {}),
        ("not_json", {}),
        ("cut_body", {}),
        ("empty", {}),
        ("http", {"status": 500, "body": "something nobody has seen before"}),
        ("http", {"status": 499, "body": "request canceled"}),
        ("http", {"status": 502, "body": "<html>nobody behind this proxy</html>"}),
    ],
)
def test_a_temporary_failure_fails_no_row(tmp_path: Path, kind: Any, extra: dict[str, Any]) -> None:
    """After one temporary failure of any class the row is answered."""
    result = run(tmp_path, [Fault(kind, contains=BAD, times=1, **extra)])
    assert result.where == "done"
    assert result.others_ok
    assert result.bad["status"] == "ok"
    assert result.bad["attempts"] == result.chats.count(BAD) == 2
    assert len(result.chats) == ROWS + 1, "nobody else pays"


@pytest.mark.parametrize(
    ("kind", "extra", "code", "calls"),
    [
        ("not_done", {}, "answer_unfinished", 3),
        ("no_reason", {}, "answer_unfinished", 3),
        ("empty", {}, "answer_empty", 3),
        ("text", {"body": "word " * 40}, "answer_cut", 3),
        ("not_json", {}, "unexpected", 3),
        ("runner_killed", {}, "server_died", 3),
        # Of two windows the larger one is tried twice, which does not count against the row.
        ("out_of_memory", {}, "server_died", 5),
        ("http", {"status": 500, "body": "something nobody has seen before"}, "unexpected", 3),
    ],
)
def test_a_permanent_failure_is_the_rows_error(
    tmp_path: Path, kind: Any, extra: dict[str, Any], code: str, calls: int
) -> None:
    """After its attempts the row fails with its class and message, and every other row is answered."""
    result = run(tmp_path, [Fault(kind, contains=BAD, **extra)])
    assert result.where == "done"
    assert result.others_ok
    assert result.bad["error"]["code"] == code
    assert result.bad["error"]["message"]
    assert result.bad["attempts"] == result.chats.count(BAD) == calls
    assert len(result.chats) == ROWS - 1 + calls, "nobody else pays"
    assert not any(BAD in prompt for prompt in result.prompts if prompt[-1] != BAD), "no trace of it"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("missing"), "not found"),
        (Fault("cloud"), ""),
        (Fault("remote"), ""),
        (Fault("http", status=500, body='option "temperature" must be of type float32'), "temperature"),
        (
            Fault("http", status=500, body='invalid format: "xml"; expected "json" or a valid JSON Schema'),
            "format",
        ),
        (Fault("http", status=400, body=recorded("chat_schema_bad_pattern")), "Pattern must start with '^'"),
        (Fault("http", status=400, body=recorded("chat_think_unsupported")), "does not support thinking"),
    ],
)
def test_a_refusal_of_every_row_ends_the_job(tmp_path: Path, fault: Fault, words: str) -> None:
    """The job ends with one error and its fix, and no second row is sent."""
    result = run(tmp_path, [fault])
    assert result.where == "failed"
    assert result.error["code"] == "request_refused"
    assert words in result.error["message"]
    assert result.error["fix"]
    assert len(result.chats) == 1
    assert {row["status"] for row in result.rows} == {"skipped"}


def test_a_model_in_the_cloud_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """A cloud model is refused before a row leaves the machine."""
    result = run(tmp_path, [], sidecar=SIDECAR.replace("smollm2:135m", "gpt-oss:120b-cloud"))
    assert (result.where, result.chats) == ("failed", [])
    assert "cloud" in result.error["message"]


def test_a_missing_model_ends_the_job_before_a_row_is_sent(tmp_path: Path) -> None:
    """A missing model ends the job at its load, with the command that pulls it."""
    result = run(tmp_path, [], sidecar=SIDECAR.replace("smollm2:135m", "gemma3:12b"))
    assert (result.where, result.error["code"], result.chats) == ("failed", "request_refused", [])
    assert "ollama pull gemma3:12b" in result.error["fix"]


def test_a_permanent_hang_is_the_rows_error(tmp_path: Path) -> None:
    """If a row stalls each time while the server works for others, the row fails."""
    sidecar = SIDECAR.replace("retries: 2", "retries: 1") + "timeout: 0.3\n"
    result = run(tmp_path, [Fault("hang", contains=BAD)], sidecar=sidecar)
    assert result.others_ok
    assert result.bad["error"]["code"] == "stalled"
    assert result.bad["attempts"] == result.chats.count(BAD) == result.chats.count("Say OK.") == 2


def test_a_hang_is_cancelled_and_asked_again(tmp_path: Path) -> None:
    """A request without a byte in time is cancelled, and asked again once a real generation works."""
    result = run(tmp_path, [Fault("hang", contains=BAD, times=1)], sidecar=SIDECAR + "timeout: 1\n")
    assert result.others_ok
    assert result.bad["status"] == "ok"
    assert result.chats.count("Say OK.") == 1


def test_a_prompt_that_the_server_cuts_silently_is_detected(tmp_path: Path) -> None:
    """A longer prompt with the same count reveals that HTTP 200 came with a prompt cut to half the window."""
    long = BAD + " word" * 900
    cut = run(tmp_path / "cut", [Fault("silent_cut", contains=BAD)], bad=long)
    assert cut.others_ok
    assert cut.bad["error"]["code"] == "prompt_truncated"
    # A prompt that really has this length does not fail.
    whole = run(tmp_path / "whole", [], bad=long[: (1026 - 4 - 6 - 4) * 4])
    assert whole.bad["status"] == "ok"
    assert whole.bad["prompt_tokens"] - 1024 in range(9)


def test_a_row_longer_than_the_window_fails_with_its_sizes(tmp_path: Path) -> None:
    """A row that the server refuses with counts, or that is too long before, is neither cut nor answered."""
    result = run(tmp_path, [], bad="word " * 4000)
    assert result.others_ok
    assert result.bad["error"] == {
        "code": "context_overflow",
        "message": "the prompt has 5,013 tokens: num_ctx 2,048 less 16 for the answer leaves room for 2,031. "
        "Shorten the row, or set a larger options.num_ctx.",
    }
    assert result.bad["attempts"] == 1


def test_an_answer_that_violates_the_schema_is_saved_with_its_error(tmp_path: Path) -> None:
    """The answer is checked against the schema again, whatever the server promised."""
    sidecar = SIDECAR + "format: {type: string, enum: [good, bad]}\n"
    result = run(tmp_path, [Fault("text", contains=BAD, body='"ugly"')], sidecar=sidecar)
    assert result.others_ok
    assert result.bad["error"]["code"] == "answer_invalid"
    assert [error["_spoolama"]["answer"] for error in result.errors] == ['"ugly"']


def test_a_template_that_fits_no_row_ends_the_job_early(tmp_path: Path) -> None:
    """After ten failed rows the job ends, and nothing is sent."""
    result = run(tmp_path, [], sidecar=SIDECAR.replace("{{ text }}", "{{ txet }}"))
    assert (result.where, result.error["code"], result.chats) == ("failed", "first_rows_failed", [])


async def _away_for_a_moment(server: FakeOllama) -> None:
    """Refuse connections from the fourth row on, and restart with nothing loaded."""
    await server.wait_for_calls(4)
    await server.stop()
    await asyncio.sleep(0.3)
    await server.start()


def test_the_job_waits_for_a_server_that_goes_away(tmp_path: Path) -> None:
    """On a refused connection the job waits, loads again and continues, and no row fails."""
    result = run(tmp_path, [], sidecar=SIDECAR.replace("retries: 2", "retries: 0"), beside=_away_for_a_moment)
    assert result.where == "done"
    assert [row["status"] for row in result.rows] == ["ok"] * ROWS
    assert result.metrics["server_wait_s"] >= 1.0
    assert len(result.chats) - ROWS in (0, 1), "at most the call in flight is repeated"


def test_the_job_waits_for_a_server_that_starts_later(tmp_path: Path) -> None:
    """The job starts when the server does."""

    async def late(server: FakeOllama) -> None:
        await server.stop()
        await asyncio.sleep(0.5)
        await server.start()

    result = run(tmp_path, [], beside=late)
    assert result.where == "done"
    assert len(result.chats) == ROWS


def test_a_model_that_vanishes_while_the_server_is_away_ends_the_job(tmp_path: Path) -> None:
    """If the repeated load is refused, the job ends with instructions to fix it."""

    async def remove(server: FakeOllama) -> None:
        await server.wait_for_calls(1 + 6)
        while server.calls[-1].slot is None:  # with a slot the call has found its model
            await asyncio.sleep(0.001)
        server.script.models = ()

    result = run(tmp_path, [Fault("reset", contains=BAD, times=1, delay_s=0.2)], beside=remove)
    assert (result.where, result.error["code"]) == ("failed", "request_refused")
    assert "ollama pull" in result.error["fix"]
    assert [row["status"] for row in result.rows] == ["ok"] * 5 + ["skipped"] * 7


def test_a_probe_without_an_end_does_not_count(tmp_path: Path) -> None:
    """After a stall a generation without `done` does not count as a working server, and the next one does."""
    faults = [Fault("hang", contains=BAD, times=1), Fault("not_done", contains="Say OK.", times=1)]
    result = run(tmp_path, faults, sidecar=SIDECAR + "timeout: 0.3\n")
    assert [row["status"] for row in result.rows] == ["ok"] * ROWS
    assert result.chats[5:9] == [BAD, "Say OK.", "Say OK.", BAD]
