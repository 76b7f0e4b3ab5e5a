"""The status of the service: one line, service.json and service.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoolama.clock import duration
from spoolama.memory.level import LevelRules
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.readings import Host, NoReading, Runner
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Progress, Pulse
from spoolama.service.queue import QueuedJob
from spoolama.service.state import JobEnd, RunningJob, ServerState, ServiceState
from spoolama.service.status import (
    failures_text,
    rows_text,
    service_payload,
    service_text,
    status_line,
)
from spoolama.spool.claim import JobDir
from spoolama.stopping import Stop
from support.cards import GB, Scene, ScriptedCards, card
from support.clock import VirtualClock
from support.inline_host import InlineHost


def running(
    ok: int, failures: dict[str, int], phase: str = "answering", *, waiting: bool = False
) -> ServiceState:
    clock = VirtualClock()
    state = ServiceState(clock, ServerState("ollama", "http://here"))
    state.phase = "working"
    job = JobDir(Path("p/c-1"), "c-1", Path("p/c-1/c.csv"), None, "c.csv", claimed_at=0.0, arrived=0.0)
    progress = Progress("c-1", clock, Pulse(clock), total=170_000, phase=phase, waiting=waiting)
    progress.durable(ok=0)
    clock._now = 100.0
    progress.durable(ok=ok, failed=failures)
    state.running = RunningJob(QueuedJob(job, "running"), progress, Stop())
    return state


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (4.24, "4.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (130, "2 min 10 s"),
        (3600, "1 h"),
        (3620, "1 h"),
        (33_000, "9 h 10 min"),
        (200_000, "2 d 8 h"),
        (345_600, "4 d"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, words: str) -> None:
    """A duration has at most two units."""
    assert duration(seconds) == words


def test_the_status_line_has_rows_rate_and_time_left() -> None:
    """The status line of a running job has rows, rate and time left."""
    assert status_line(running(470, {"answer_invalid": 2})) == (
        "c.csv: 472 of 170,000 rows (0 %), 4.7 rows/s, about 9 h 59 min left; 2 failed (2 answer_invalid)."
    )


def test_the_status_line_gives_the_reason_of_a_wait() -> None:
    """A waiting job shows the reason of the wait and no progress."""
    line = status_line(running(470, {}, "waiting for the server: connection refused", waiting=True))
    assert line.startswith("c.csv: waiting for the server: connection refused; 470 of 170,000 rows")


@pytest.mark.parametrize("waiting", [False, True])
def test_the_status_line_shows_pilot_and_audit(waiting: bool) -> None:
    """A pilot or the audit of a segment is shown as work, and a wait is shown first."""
    state = running(470, {}, "answering" if not waiting else "waiting for the server: no", waiting=waiting)
    assert state.running is not None
    progress = state.running.progress
    with progress.task("auditing segment 7"), progress.task("auditing segment 9"):
        with progress.task("auditing segment 8"):
            line = status_line(state)
        if waiting:
            assert line.startswith("c.csv: waiting for the server: no; 470 of")
            return
        assert line.startswith("c.csv: auditing segment 7, auditing segment 9 and 1 more; 470 of")
        assert progress.snapshot().phase.startswith("answering; auditing segment 7, ")
    with progress.counting("pilot", 1250) as count:
        count.done = 29
        progress.compared()
        assert status_line(state).startswith("c.csv: pilot: 30 of at most 1,250 answers; 470 of 170,000 rows")
        count.done = 2000
        assert progress.snapshot().phase == "pilot: 1,250 of at most 1,250 answers"
    assert status_line(state).startswith("c.csv: 470 of 170,000 rows")


def test_harm_is_shown_while_the_job_runs() -> None:
    """The line for systemd and status/service.txt show harm while the job runs."""
    state = running(470, {}, "answering")
    assert state.running is not None
    state.running.progress.harm = "the conversation changes about 12 % of the answers"
    warning = "arning: the conversation changes about 12 % of the answers"
    assert f"; w{warning}." in status_line(state)
    payload = service_payload(state)
    assert payload["running"]["harm"] == state.running.progress.harm
    assert f"  W{warning}\n" in service_text(payload, 0.0)


def test_the_status_line_of_a_stopped_service() -> None:
    """How many jobs wait, if any."""
    state = ServiceState(VirtualClock(), ServerState("ollama", "http://here"), phase="stopped")
    assert status_line(state) == "Stopped. No jobs are waiting."
    state.queue.add(JobDir(Path("p/c-1"), "c-1", Path("c.csv"), None, "c.csv", claimed_at=0.0, arrived=0.0))
    assert status_line(state) == "Stopped. 1 job continues at the next start."


@pytest.mark.parametrize(
    ("kind", "message", "said"),
    [
        ("ollama", "http://here: All connection attempts failed",
         "no connection to http://here. Start Ollama, or use --backend embedded"),
        ("openai", "http://here: No such host",
         "no connection to http://here (No such host). Start the server, or correct backend.url"),
        ("ollama", "HTTP 502 from a proxy: x", "HTTP 502 from a proxy: x"),
    ],
)  # fmt: skip
def test_a_server_without_a_connection_comes_with_what_to_do(kind: str, message: str, said: str) -> None:
    """In the log and the status."""
    assert ServerState(kind, "http://here/").away_text(message) == said


@pytest.mark.parametrize(
    ("message", "fix", "words"),
    [
        ("no model m", "", "no model m"),
        ("no model m", "Pull it.", "no model m. Pull it."),
        ("No model m.", "Pull it.", "No model m. Pull it."),
        ("a\nb", "Do c.", "a\nb\nDo c."),
    ],
)
def test_the_words_of_a_failed_job_have_the_fix(message: str, fix: str, words: str) -> None:
    """One text for the log."""
    assert JobEnd("failed", None, message, fix).words == words


def test_before_the_first_row_no_number_is_made_up() -> None:
    """Before the first row there is no rate and no time left."""
    payload = service_payload(running(0, {}, "loading m"))
    assert (payload["running"]["rows_per_s"], payload["running"]["eta"]) == (None, None)
    assert rows_text(payload["running"]) == "0 of 170,000 rows (0 %)"


def test_failures_are_listed_by_class_most_frequent_first() -> None:
    """Failures are listed by class, most frequent first, and not at all without any."""
    assert failures_text({"a": 1, "b": 1200}) == "1,201 failed (1,200 b, 1 a)"
    assert failures_text({}) == ""


def test_the_text_for_people_has_the_running_job_and_the_server() -> None:
    """One screen is made from the same payload as the JSON."""
    state = running(470, {})
    state.server.away = "connection refused"
    text = service_text(service_payload(state), 1_800_000_000)
    assert "Running: c.csv (job c-1)" in text
    assert "Model server: ollama at http://here - AWAY: connection refused" in text


class _Machine:
    """A machine with 64 GB, a quarter of it in use, and a model process."""

    def host(self) -> Host:
        return Host(64 * GB, 48 * GB)

    def look_again(self) -> None:
        """Nothing is cached."""

    def runners(self, pids: object = ()) -> tuple[Runner, ...]:
        return (Runner(7, "llama-server", 9 * GB),)


def watched(state: ServiceState, scene: Scene, *, machine: bool = True) -> ServiceState:
    """A watchdog with one reading, whose level changes at once."""
    cards = CardThread(ScriptedCards([(0, scene)], state.clock), state.clock)
    cards.read_once()
    host = InlineHost(_Machine(), state.clock) if machine else None
    state.memory = MemoryWatchdog(cards, host, state.clock, rules=LevelRules(rise_s=0))
    state.memory.look()
    return state


def service_txt(state: ServiceState) -> list[str]:
    return service_text(service_payload(state), 1_800_000_000).splitlines()


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (13.0, None),
        (14.3, "; memory is high: GPU memory: 14.3 GB of 16.0 GB in use"),
        (15.5, "; memory is critical: GPU memory: 15.5 GB of 16.0 GB in use"),
    ],
)
def test_the_status_line_shows_memory_at_a_high_level(used: float, expected: str | None) -> None:
    """The status line shows memory at a high level, beside a running job and when idle, and not
    while it is ok.
    """
    idle = ServiceState(VirtualClock(), ServerState("ollama", "http://here"), phase="working")

    for state in (running(470, {}), idle):
        line = status_line(watched(state, (card(used),)))
        assert line.endswith(f"{expected}." if expected else line)
        assert ("memory is" in line) == (expected is not None)


def test_the_status_line_shows_memory_once() -> None:
    """If a phase already says that it waits for memory, the line does not repeat it."""
    state = running(470, {}, "waiting for memory: GPU memory: 15.5 GB of 16.0 GB in use", waiting=True)

    assert status_line(watched(state, (card(15.5),))).count("15.5 GB") == 1


def test_the_text_for_people_has_memory() -> None:
    """The text shows the memory that decides, each of several cards and the machine; programs get bytes."""
    state = watched(running(470, {}), (card(14.5), card(15, 24, index=1, mig="2")))
    text = service_txt(state)

    # Our model is on no known card, so the one with most room counts.
    at = text.index("Memory: ok, GPU 1: 15.0 GB of 24.0 GB in use")
    assert text[at + 1 : at + 4] == [
        "  GPU 0: 14.5 GB of 16.0 GB in use",
        "  GPU 1 MIG 2: 15.0 GB of 24.0 GB in use",
        "  this machine: 16.0 GB of 64.0 GB in use",
    ]
    memory = service_payload(state)["memory"]
    assert memory["cards"][0] == {
        "index": 0,
        "mig": None,
        "used_bytes": round(14.5 * GB),
        "total_bytes": 16 * GB,
    }
    assert (memory["level"], memory["model_processes_rss_bytes"]) == ("ok", 9 * GB)


def test_unwatched_memory_is_not_shown_as_ok() -> None:
    """Without cards the machine's level and the reason are shown, and for a server elsewhere
    only the reason.
    """
    reason = NoReading("no NVIDIA driver on this machine", lasting=True)
    here = service_txt(watched(running(470, {}), reason))
    assert "Memory: ok, 16.0 GB of 64.0 GB of this machine's memory in use" in here
    assert "  GPUs are not watched: no NVIDIA driver on this machine" in here
    away = service_txt(watched(running(470, {}), reason, machine=False))
    assert (
        away[away.index("Memory: not watched") + 1]
        == here[here.index("  GPUs are not watched: no NVIDIA driver on this machine")]
    )
    assert not [line for line in service_txt(running(470, {})) if "emory" in line]
