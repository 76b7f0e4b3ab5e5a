"""The evaluation process: its limits, its end and its replacement, with the real process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolama.errors import EvaluationFailed, JobError, RowError, SidecarError
from spoolama.evaluation.child.templates import SandboxEnvironment
from spoolama.evaluation.connection import Connection, ProcessLimits
from spoolama.evaluation.evaluator import Evaluator
from spoolama.evaluation.process import EvaluationProcess, ProcessPair
from spoolama.evaluation.protocol import Abandoned, LimitExceeded
from support.evaluation import InlineRunner
from support.thorough import cases

pytestmark = pytest.mark.slow

SOON = 0.3
"""CPU seconds for a task here, enough for any valid one."""
FREEZE = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ a }}"
MEMORY = "{% set n = namespace(s='a' * 999) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}x"


def with_process(work: Callable[[EvaluationProcess], Awaitable[None]], **options: Any) -> None:
    """Run this with a process that is closed afterwards."""

    async def main() -> None:
        process = EvaluationProcess(**options)
        try:
            await work(process)
        finally:
            await process.aclose()

    asyncio.run(main())


async def render(process: EvaluationProcess, template: str, **fields: Any) -> Any:
    return await process.run("render", template, [fields], SOON)


def status_of(process: EvaluationProcess) -> dict[str, str]:
    """Return the status of the process in /proc."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return dict(re.findall(r"^(\w+):\t\s*(.*)$", text, re.MULTILINE))


async def computing(process: EvaluationProcess) -> None:
    """Wait until the process has used CPU time for a task."""

    def ticks() -> int:
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11])

    async with asyncio.timeout(20):
        while process.pid is None:
            await asyncio.sleep(0.005)
        began = ticks()
        while ticks() < began + 2:
            await asyncio.sleep(0.005)


def test_tasks_of_all_lanes_share_one_process() -> None:
    """One small, restricted process answers a thousand concurrent rows in order."""

    async def work(process: EvaluationProcess) -> None:
        replies = await asyncio.gather(*(render(process, "a {{ a }}", a=n) for n in range(1000)))
        assert replies == [["ok", f"a {n}"] for n in range(1000)]
        status = status_of(process)
        assert (status["Seccomp"], status["NoNewPrivs"], process.starts) == ("2", "1", 1)
        assert int(status["VmHWM"].split()[0]) < 100_000
        assert {fd.name for fd in Path(f"/proc/{process.pid}/fd").iterdir()} == {"0", "1", "2"}

    with_process(work)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (FREEZE, f"took longer than {SOON:g} s"),
        (MEMORY, "needed more than 240 MB of memory"),
    ],
)
def test_a_task_that_hits_a_limit_fails_no_other(template: str, words: str) -> None:
    """Only the caller of the task that hits a limit gets the error; all other tasks have results."""

    async def work(process: EvaluationProcess) -> None:
        tasks = [render(process, template if n == 3 else "{{ a }}", a=n) for n in range(8)]
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(reply) for reply in replies if isinstance(reply, LimitExceeded)] == [words]
        assert isinstance(replies[3], LimitExceeded)
        assert [reply for n, reply in enumerate(replies) if n != 3] == [
            ["ok", str(n)] for n in range(8) if n != 3
        ]
        assert await render(process, "{{ a }}", a="after") == ["ok", "after"]

    with_process(work)


def test_memory_of_earlier_tasks_fails_no_later_task() -> None:
    """A task that runs out of memory after earlier tasks left garbage is repeated in a new process."""
    leaves = "{% set n = namespace(big='x' * size) %}{% set n.me = n %}{{ n.big | length }}"

    async def work(process: EvaluationProcess) -> None:
        # Python's collector may free the garbage between two of them, but not between all.
        rounds = 0
        while process.starts < 2:
            rounds += 1
            assert rounds < 50
            for _ in range(2):
                assert await process.run("render", leaves, [{"size": 70_000_000}], 5.0) == ["ok", "70000000"]
            tasks = [
                process.run("render", "{{ ('y' * size) | length }}", [{"size": 60_000_000}], 5.0)
                for _ in range(6)
            ]
            assert await asyncio.gather(*tasks) == [["ok", "60000000"]] * 6

    with_process(work)


def test_a_task_that_crashes_the_process_is_named_by_the_signal() -> None:
    """A segmentation fault fails its row only if it repeats in a new process."""

    async def work(process: EvaluationProcess) -> None:
        await render(process, "{{ a }}", a=1)
        waiting = asyncio.ensure_future(process.run("render", FREEZE, [{"a": 1}], 30.0))
        await asyncio.sleep(0)
        for starts in (1, 2):
            async with asyncio.timeout(20):
                while process.starts < starts or process.pid is None:
                    await asyncio.sleep(0.005)
            await computing(process)
            os.kill(process.pid, signal.SIGSEGV)
        with pytest.raises(LimitExceeded, match=r"crashed the evaluation process \(SIGSEGV\)"):
            await waiting

    with_process(work)


def test_a_process_killed_from_outside_fails_no_row() -> None:
    """After a SIGKILL from outside the tasks are sent again to a new process and no row fails."""

    async def work(process: EvaluationProcess) -> None:
        await render(process, "{{ a }}", a=1)
        for _ in range(2):
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            replies = await asyncio.gather(*(render(process, "{{ a }}", a=n) for n in range(5)))
            assert replies == [["ok", str(n)] for n in range(5)]
        assert process.starts == 3

    with_process(work)


def test_a_task_whose_process_is_killed_each_time_is_given_up_without_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task whose process is killed each time fails its row with lack of memory as the reason, and the job
    continues.
    """
    monkeypatch.setattr("spoolama.evaluation.process._AFTER_DEATH_S", (0.0, 0.0, 0.0))
    reported: list[tuple[str, str]] = []

    async def work(process: EvaluationProcess) -> None:
        await render(process, "{{ a }}", a=1)
        rows = Evaluator(process).of_job("data.csv")
        for line in (7, 8, 9):
            waiting = asyncio.ensure_future(rows.render(FREEZE, {"a": 1}, line))
            for _ in range(3):
                await computing(process)
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                ended = process.pid
                while process.pid in (ended, None) and not waiting.done():
                    await asyncio.sleep(0.005)
            with pytest.raises(RowError) as raised:
                await waiting
            assert raised.value.code == "evaluation_failed"
            assert str(raised.value) == (
                f"the template failed on line {line} of data.csv: the evaluation process ended "
                "3 times; the last time it was killed (SIGKILL, by the kernel where memory runs out)"
            )
        assert await rows.render("{{ a }}", {"a": 2}, 10) == "2"
        assert {event for event, _ in reported} == {"evaluation.ended"}
        assert len(reported) == 9

    with_process(work, report=lambda event, text: reported.append((event, text)))


def test_a_process_that_does_not_answer_is_replaced() -> None:
    """A stopped process is killed after its wall time, and its tasks are repeated."""

    async def work(process: EvaluationProcess) -> None:
        await render(process, "{{ a }}", a=1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        assert await render(process, "{{ a }}", a=2) == ["ok", "2"]
        assert process.starts == 2

    with_process(work, limits=ProcessLimits(wall_factor=1.0, wall_spare_s=0.2))


def test_waiting_tasks_can_be_given_up() -> None:
    """A cancelled task that waits does not start, so that a hundred slow rows do not take two
    seconds each.
    """

    async def work(process: EvaluationProcess) -> None:
        met: list[LimitExceeded] = []

        async def one() -> None:
            try:
                await process.run("render", FREEZE, [{"a": 1}], 0.1, lambda: len(met) >= 2)
            except LimitExceeded as limit:
                met.append(limit)

        done = await asyncio.gather(*(one() for _ in range(100)), return_exceptions=True)
        assert len(met) == 2
        assert sum(isinstance(one, Abandoned) for one in done) == 98

    with_process(work)


def test_a_cancelled_task_leaves_the_process_usable() -> None:
    """A cancelled task does not give its result to another."""

    async def work(process: EvaluationProcess) -> None:
        await render(process, "{{ a }}", a=1)
        cancelled = asyncio.ensure_future(render(process, "{{ a }}", a=2))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await render(process, "{{ a }}", a=3) == ["ok", "3"]

    with_process(work)


def test_an_idle_process_is_stopped_and_started_again() -> None:
    """An idle process is stopped, which frees its memory, and started again on demand."""

    async def work(process: EvaluationProcess) -> None:
        await render(process, "{{ a }}", a=1)
        async with asyncio.timeout(20):
            while process.pid is not None:
                await asyncio.sleep(0.01)
        assert await render(process, "{{ a }}", a=2) == ["ok", "2"]
        assert process.starts == 2

    with_process(work, idle_s=0.1)


def test_warnings_about_patterns_are_not_logged() -> None:
    """Warnings of `re` about odd patterns do not reach the service's standard error."""
    schema = {"type": "string", "pattern": "[[a]" * 100}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = {"messages": [{"role": "user", "content": "a"}], "response_format": form}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    sidecar = "model: m\nprompt: '{{ a }}'\nformat: " + json.dumps(schema)
    reading, writing = os.pipe()
    ours = os.dup(2)

    async def work(process: EvaluationProcess) -> None:
        await process.run("check", json.dumps(schema), ['"b"'], 2.0)
        await process.run("line", "", [line], 2.0)
        await process.run("sidecar", "", [sidecar, "s.yaml", False], 2.0)

    os.dup2(writing, 2)
    try:
        with_process(work)
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read().decode() == ""


def test_a_process_that_does_not_start_is_reported_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """After several failed starts the caller gets the reason, and the next call tries again."""
    monkeypatch.setattr("spoolama.evaluation.process._START_DELAYS_S", (0.0, 0.0))

    async def work(process: EvaluationProcess) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", "/bin/false")
            with pytest.raises(EvaluationFailed, match=r"does not start: .*exit status 1"):
                await render(process, "{{ a }}", a=1)
        assert process.starts == 3
        assert await render(process, "{{ a }}", a=2) == ["ok", "2"]

    with_process(work)


def test_after_the_end_nothing_runs() -> None:
    """A closed process is gone, and a later call raises an error."""

    async def main() -> None:
        process = EvaluationProcess()
        await render(process, "{{ a }}", a=1)
        pid = process.pid
        await process.aclose()
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(EvaluationFailed, match="closed"):
            await render(process, "{{ a }}", a=1)

    asyncio.run(main())


def test_a_definition_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema of 300 kB is not sent, read and compiled again for each row."""
    sizes: list[int] = []
    ask = Connection.ask

    async def counted(self: Connection, body: bytes, wall_s: float) -> list[list[Any]]:
        sizes.append(len(body))
        return await ask(self, body, wall_s)

    monkeypatch.setattr(Connection, "ask", counted)

    async def work(process: EvaluationProcess) -> None:
        schema = json.dumps({"enum": [1, "x" * 300_000]})
        for _ in range(3):
            assert (await process.run("check", schema, ["1"], 2.0))[0] == "ok"

    with_process(work)
    assert sizes[0] > 300_000
    assert max(sizes[1:]) < 1_000


def test_a_batch_may_have_many_definitions() -> None:
    """Hundreds of schemas, as OpenAI lines may have, can be used repeatedly."""

    async def work(process: EvaluationProcess) -> None:
        templates = [f"{n} {{{{ a }}}}" for n in range(300)]
        for _ in range(2):
            replies = await asyncio.gather(*(render(process, template, a=1) for template in templates))
            assert replies == [["ok", f"{n} 1"] for n in range(300)]
        assert len(process.definitions) <= 64

    with_process(work)


def test_long_definitions_do_not_fill_the_memory() -> None:
    """A hundred schemas of 500 kB, each on its own line, are not kept in memory."""

    async def work(process: EvaluationProcess) -> None:
        for n in range(100):
            schema = json.dumps({"enum": [n, "x" * 500_000]})
            assert (await process.run("check", schema, [str(n)], 2.0))[0] == "ok"
        assert sum(map(len, process.definitions)) < 3_000_000
        assert (int(status_of(process)["VmHWM"].split()[0]), process.starts) < (120_000, 2)

    with_process(work)


def test_a_second_process_serves_while_the_first_is_busy() -> None:
    """A slow sidecar does not delay the rows of a running job, nor the reverse."""

    async def main() -> None:
        first, second = EvaluationProcess(), EvaluationProcess()
        both = ProcessPair(first, second)
        try:
            await both.run("render", "{{ a }}", [{"a": 1}], SOON)
            assert (first.starts, second.starts) == (1, 0)
            busy = asyncio.ensure_future(first.run("render", FREEZE, [{"a": 1}], 60.0))
            await asyncio.sleep(0)
            assert await both.run("render", "{{ a }}", [{"a": 2}], SOON) == ["ok", "2"]
            assert not busy.done()
        finally:
            await both.aclose()
            await first.aclose()
        with pytest.raises(EvaluationFailed, match="closed"):
            await busy

    asyncio.run(main())


# --- the same results as inline ----------------------------------------------------------------------------

FILTER_ARGUMENTS = {
    "replace": "('a', 'b')",
    "groupby": "('k')",
    "format": "(1)",
    "map": "('upper')",
    "selectattr": "('k')",
    "rejectattr": "('k')",
    "round": "(1)",
}


def test_every_filter_works_without_files() -> None:
    """Everything that a filter imports at its first use is loaded before the process gives up files."""
    filters = [name for name in SandboxEnvironment().filters if not name.startswith("_")]
    values: list[Any] = ["a <b> 'c' é\n%s", 2.5, [3, 1], ["b", "a", "a"], {"k": 1}, [{"k": 1}, {"k": 0}]]

    async def work(process: EvaluationProcess) -> None:
        inline = InlineRunner()
        for name in filters:
            source = "{{ a | NAME }}".replace("NAME", name + FILTER_ARGUMENTS.get(name, ""))
            listed = source.replace(" }}", " | list }}")
            replies = []
            for value in values:
                for template in (source, listed):
                    replies.append(await process.run("render", template, [{"a": value}], 2.0))
                    assert replies[-1] == await inline.run("render", template, [{"a": value}], 2.0)
            assert any(reply[0] == "ok" for reply in replies), name

    with_process(work)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.fixed_dictionaries({"a": JSON, "b": JSON}), min_size=1, max_size=20))
@settings(max_examples=cases(5, 20), deadline=None)
def test_values_come_through_unchanged(rows: list[dict[str, Any]]) -> None:
    """Any JSON value is printed in a prompt as it is inline."""
    source = "{{ a }}|{{ b | tojson }}|{{ a ~ b }}|{{ row | length }}."

    async def work(process: EvaluationProcess) -> None:
        inline = InlineRunner()
        replies = await asyncio.gather(*(process.run("render", source, [row], 2.0) for row in rows))
        assert replies == [await inline.run("render", source, [row], 2.0) for row in rows]

    with_process(work)


# --- the evaluator ---------------------------------------------------------------------------------------


def test_the_third_row_that_meets_a_limit_ends_the_job() -> None:
    """Each row that hits a limit has its own error with its line at every attempt; after the
    third the job ends.
    """

    async def main() -> None:
        runner = InlineRunner()
        rows = Evaluator(runner).of_job()
        runner.meets = lambda _kind, _arguments: "took longer than 2 s"
        for line in (12, 13, 14):
            with pytest.raises(RowError, match=f"the template took longer than 2 s on line {line}") as caught:
                await rows.render("{{ a }}", {"a": 1}, line)
            assert caught.value.code == "evaluation_limit"
        runner.meets = lambda _kind, _arguments: None
        with pytest.raises(RowError, match="on line 13"):
            await rows.render("{{ a }}", {"a": 1}, 13)
        with pytest.raises(
            JobError, match=r"3 rows exceeded a limit of the evaluation; the last: .* on line 14"
        ):
            await rows.render("{{ a }}", {"a": 1}, 15)
        assert await Evaluator(runner).of_job(limits_met=2).render("{{ a }}", {"a": 1}, 2) == "1"
        with pytest.raises(JobError, match="3 rows exceeded a limit of the evaluation"):
            await Evaluator(runner).of_job(limits_met=3).render("{{ a }}", {"a": 1}, 2)

    asyncio.run(main())


def test_a_limit_in_a_check_or_a_score() -> None:
    """An answer whose check hits a limit keeps its text, and a row whose score does has the
    lowest importance.
    """

    async def main() -> None:
        runner = InlineRunner()
        runner.meets = lambda _kind, _arguments: "took longer than 2 s"
        rows = Evaluator(runner).of_job()
        with pytest.raises(RowError, match="checking the answer against format took longer") as caught:
            await rows.check({"type": "object"}, "{}", 3)
        assert (caught.value.code, caught.value.answer) == ("evaluation_limit", "{}")
        assert await rows.score("a", {"a": 1}, "x", 4) == float("-inf")

    asyncio.run(main())


def test_a_stopping_job_checks_answers_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that stops renders nothing more and checks its answers for a limited time."""

    async def main() -> None:
        stop = asyncio.Event()
        rows = Evaluator(InlineRunner()).of_job(stops=stop.is_set)
        assert await rows.render("{{ a }}", {"a": 1}, 2) == "1"
        stop.set()
        with pytest.raises(Abandoned):
            await rows.render("{{ a }}", {"a": 1}, 3)
        assert await rows.check({"type": "object"}, "{}", 4) == {}
        assert await rows.score("a", {"a": 1}, "x", 4) == 1
        monkeypatch.setattr("spoolama.evaluation.evaluator._STOP_S", 0.0)
        with pytest.raises(Abandoned):
            await rows.check({"type": "object"}, "{}", 5)
        with pytest.raises(Abandoned):
            await rows.score("a", {"a": 1}, "x", 5)

    asyncio.run(main())


def test_a_defect_of_ours_is_contained(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception fails the row or the file and is reported as a defect of spoolama."""

    async def main() -> None:
        evaluator = Evaluator(InlineRunner())

        async def defect(*_: object) -> list[str]:
            return ["defect", "ZeroDivisionError: by zero"]

        monkeypatch.setattr(InlineRunner, "run", defect)
        with pytest.raises(
            RowError, match="the template failed on line 2 because of a defect in spoolama: ZeroDivisionError"
        ):
            await evaluator.of_job().render("{{ a }}", {"a": 1}, 2)
        with pytest.raises(SidecarError, match=r"a\.yaml: reading this file failed because of a defect"):
            await evaluator.parse_sidecar(b"model: m", "a.yaml")

    asyncio.run(main())


def test_sidecars_are_read_in_the_process(tmp_path: Path) -> None:
    """Problems, columns and limits come back with the file's name, and a large file is not opened."""
    path = tmp_path / "a.yaml"
    path.write_text("model: m\nprompt: '{{ a }}'\nid: nmae\n")

    async def work(process: EvaluationProcess) -> None:
        evaluator = Evaluator(process)
        assert (await evaluator.load_sidecar(path)).id == "nmae"
        (problem,) = await evaluator.column_problems(path, ["name", "b"], "a.csv")
        assert str(problem) == (
            "a.yaml:3:1: id: the header of a.csv has no column 'nmae' (did you mean 'name'?)"
        )
        path.write_text("model: m\nprmpt: x\n")
        with pytest.raises(SidecarError, match=r"a\.yaml:2:1: prmpt: unknown key \(did you mean prompt\?\)"):
            await evaluator.load_sidecar(path)
        os.truncate(path, 1 << 40)
        with pytest.raises(SidecarError, match="has 1,099,511,627,776 bytes; the limit is 1,000,000"):
            await evaluator.load_sidecar(path)
        with pytest.raises(SidecarError, match="byte 0x80 is not UTF-8"):
            await evaluator.parse_sidecar(b"\x80" + json.dumps({"a": 1}).encode(), "a.yaml")

    with_process(work)
