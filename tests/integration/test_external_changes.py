"""The effect of a real Ollama's other clients on a job, with the fake over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spoolama.backends.ollama import OllamaBackend
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
from support.fake_ollama import GEMMA3, SMOLLM2, Asked, FakeOllama, Latency, Script

SIDECAR = """
model: smollm2:135m
system: Judge the sentiment of a review with care, and answer with one word only, please.
prompt: "{{ text }}"
segment: 20
options: {num_ctx: 1024, num_predict: 16}
"""

Act = Callable[[FakeOllama], None]


class Job:
    """A job of 60 rows with a fake Ollama; `act` runs when a row is answered."""

    def __init__(self, base: Path, sidecar: str, script: Script, act: Act | None, at: int = 25) -> None:
        self.notices: list[tuple[str, str]] = []
        self._base, self._sidecar, self._script = base, parse_sidecar(sidecar, "job.yaml"), script
        self._act, self._at = act, at
        self.path = base / "ledger.sqlite"

    def run(self) -> Job:
        asyncio.run(self._run())
        return self

    async def _run(self) -> None:
        clock = SystemClock()
        script = self._script
        answer = script.answer or (lambda asked: ("positive", "negative")[len(asked.row) % 2])

        def acting(asked: Asked) -> str:
            if self._act is not None and asked.row.startswith(f"row {self._at} "):
                act, self._act = self._act, None
                act(server)
            return answer(asked)

        script.answer = acting
        async with FakeOllama(script) as server:
            self.server = server
            backend = OllamaBackend(server.url, clock=clock)
            ledger = JobLedger(self.path, clock)
            rows = [
                NewRow(Row(i, i + 2, {"text": f"row {i} {'x' * (i % 7)}"}, b""), str(i + 1), unique=False)
                for i in range(60)
            ]
            await ledger.take_in(rows)
            runner = JobRunner(
                evaluator=inline_job_evaluator(),
                sidecar=self._sidecar,
                store=ledger,
                backend=backend,
                clock=clock,
                progress=Progress(
                    "job", clock, Pulse(clock), on_notice=lambda kind, text: self.notices.append((kind, text))
                ),
                lanes=script.slots,
                stop=Stop(),
            )
            end = await runner.run()
            await ledger.close()
            await backend.aclose()
            assert end.finished
            self.chats = list(server.chats)
            self.loads = server.loads
        with LedgerReader(self.path) as reader:
            self.outcomes = list(reader.outcomes())
            self.plans = reader.plans()
            (self.watch,) = reader.meta("watch")
            self.estimate = reader.estimated_cached()

    @property
    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.watch["external_changes"]["counts"]
        return found

    @property
    def noticed_at(self) -> int:
        found: int = self.watch["external_changes"]["first"][0]["ordinal"]
        return found


def all_answered(job: Job) -> None:
    """Check that no row is lost and no prompt was cut."""
    assert [o.state for o in job.outcomes] == ["ok"] * 60
    assert all(chat.body["truncate"] is False for chat in job.chats)


def test_a_model_unloaded_by_another_client_is_recorded_at_the_next_row(tmp_path: Path) -> None:
    """The next request loads the model again, and its row records that."""
    job = Job(tmp_path, SIDECAR, Script(), lambda server: server.evict("smollm2:135m")).run()
    all_answered(job)
    assert job.counts == {"reloaded": 1}
    assert job.noticed_at == 26
    assert [kind for kind, _ in job.notices] == ["reloaded"]


def test_a_model_reloaded_by_another_client_is_recorded_at_the_next_row(tmp_path: Path) -> None:
    """After another client's window the next request restores ours and counts as a reload."""
    job = Job(tmp_path, SIDECAR, Script(), lambda server: server.reload("smollm2:135m", 4096)).run()
    all_answered(job)
    assert job.counts == {"reloaded": 1}
    assert job.noticed_at == 26
    assert [window for _, window in job.loads][-2:] == [4096, 1024]


def test_a_smaller_window_after_a_reload_is_planned(tmp_path: Path) -> None:
    """If the server now has less memory, the plan has the smaller window from the next segment on."""

    def shrink(server: FakeOllama) -> None:
        server.script.num_ctx_limit = 200
        server.evict("smollm2:135m")

    side = SIDECAR + "trim: {strategy: reset, every: 1000}\n"
    job = Job(tmp_path, side, Script(), shrink).run()
    all_answered(job)
    assert job.counts == {"reloaded": 1, "window_smaller": 1}
    assert job.plans[-1]["window"] == 200
    later = [o for o in job.outcomes if o.ordinal >= 40]
    assert max((o.prompt_tokens or 0) + 16 for o in later) < 200


def test_a_model_partly_on_the_cpu_is_recorded_at_the_next_row(tmp_path: Path) -> None:
    """The server's report of the model's place shows that it is partly on the CPU."""

    def offload(server: FakeOllama) -> None:
        server.script.vram_share = 0.4
        server.evict("smollm2:135m")

    job = Job(tmp_path, SIDECAR, Script(vram_share=1.0), offload).run()
    all_answered(job)
    assert job.counts == {"reloaded": 1, "offloaded": 1}
    assert any("40%" in text for kind, text in job.notices if kind == "offloaded")


def test_counts_of_version_0_30_0_are_not_used_as_lengths(tmp_path: Path) -> None:
    """Version 0.30.0 counts only evaluated tokens, so bounds keep the conversation inside the window."""
    script = Script(version="0.30.0", models=[replace(SMOLLM2, context_length=512)])
    side = SIDECAR.replace("1024", "512") + "trim: {strategy: reset, every: 1000}\n"
    job = Job(tmp_path, side, script, None).run()
    all_answered(job)
    assert {o.prompt_tokens for o in job.outcomes} == {None}
    assert job.estimate is None


def test_cached_tokens_are_estimated_where_the_server_does_not_count_them(tmp_path: Path) -> None:
    """The estimate uses the rate of the first request after the load and is close to the fake's
    true count.
    """
    job = Job(tmp_path, SIDECAR, Script(version="0.33.2", latency=Latency(load_s=0.2)), None).run()
    all_answered(job)
    assert {o.cached_tokens for o in job.outcomes} == {None}
    truth = sum(chat.cached_tokens or 0 for chat in job.chats)
    assert job.estimate == pytest.approx(truth, rel=0.02)


def test_no_rate_is_estimated_from_a_model_that_was_already_loaded(tmp_path: Path) -> None:
    """If the model was loaded before the job, its first prompt may be cached and gives no rate."""
    job = Job(tmp_path, SIDECAR, Script(version="0.33.2"), None).run()
    all_answered(job)
    assert job.estimate is None


@pytest.mark.parametrize("slots", [1, 4])
def test_the_prefix_of_a_sliding_window_model_is_primed_and_then_reused(tmp_path: Path, slots: int) -> None:
    """The prefix is rendered by the server and sent raw once for each slot, and rows then reuse it."""
    job = Job(tmp_path, gemma(), Script(slots=slots), None).run()
    all_answered(job)
    assert job.watch["primer"]["state"] == "kept: it saves time"
    first = [chat.cached_tokens for chat in job.chats[: slots + 4]]
    last = [chat.cached_tokens or 0 for chat in job.chats[-20:]]
    assert set(first) == {0}
    shared = 4 + len(GEMMA_SYSTEM) // 4
    assert sorted(last)[len(last) // 4] >= 0.95 * shared


def test_a_server_that_cannot_render_is_used_without_a_primer(tmp_path: Path) -> None:
    """A server that answers instead of rendering is asked only once."""
    job = Job(tmp_path, gemma(), Script(render_only=False), None).run()
    all_answered(job)
    assert job.watch["primer"]["state"].startswith("given up")
    assert len(job.chats) <= 61


GEMMA_SYSTEM = "Judge the sentiment of a review with care, and answer with one word only, please. " * 8


def gemma(more: str = "") -> str:
    """Isolated rows that are longer than the attention window."""
    template = "{{ text }} " + "and so on with this product " * 90
    return (
        f"model: {GEMMA3.name}\nsystem: {GEMMA_SYSTEM}\nprompt: '{template}'\nmode: isolated\n"
        f"options: {{num_ctx: 4096, num_predict: 16}}\n{more}"
    )
