"""The service dies repeatedly while a job runs, with a real spool, real tasks and a simulated clock."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from spoolama.errors import DiskFull
from spoolama.progress import Progress
from spoolama.service.queue import JobQueue
from spoolama.service.retention import Retention
from spoolama.service.run_record import RunRecord, begun, read_record, write_record
from spoolama.service.state import JobEnd
from spoolama.spool.claim import JobDir, read_job
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.lock import HOLDER_FILE, boot_id, oom_kills
from spoolama.stopping import Stop
from support.clock import VirtualClock
from support.published import answered
from support.quiet_loop import run_quietly
from support.service import SIDECAR, Service, until
from unit.spool.test_spool_ledger import row

pytestmark = pytest.mark.slow

Act = Callable[[JobDir], Coroutine[Any, Any, None]]


class Killed(BaseException):
    """Ends the process in the middle of a job without cleanup, as a fatal signal does."""


class KilledFromOutside(Killed):
    """Ends it by SIGKILL, which leaves no trace."""


class Lives:
    """A service that is restarted after each death, on one clock."""

    def __init__(self, root: Path) -> None:
        self.clock = VirtualClock()
        self.service = Service(root, self.clock)
        self.service.executor.act = self._execute
        self.killers: dict[str, type[BaseException]] = {}
        """The exception of executing a job, by the data file's name."""
        self.acts: dict[str, Act] = {}
        """The action before it."""
        self.starts: list[tuple[str, float]] = []
        """Each job that was started, with the seconds that the service had run."""
        self.side: Coroutine[Any, Any, None] | None = None
        """The action of a side task in the next run."""
        self._born = 0.0

    async def _execute(self, job: JobDir, progress: Progress, stop: Stop) -> JobEnd | None:
        self.starts.append((job.dropped_as, round(self.clock.monotonic() - self._born, 1)))
        if act := self.acts.get(job.dropped_as):
            await act(job)
        if error := self.killers.get(job.dropped_as):
            raise error("no")
        return None

    def live(self) -> int | None:
        """Run `run --once` once; return its exit status, or None if it was killed."""
        return run_quietly(self.clock, self._live())

    async def _live(self) -> int | None:
        self._born = self.clock.monotonic()
        daemon = self.service.daemon(once=True)
        side, self.side = self.side, None
        try:
            with pytest.MonkeyPatch.context() as patch:
                if side is not None:
                    patch.setattr(Retention, "run", lambda _: side)
                return await daemon.run()
        except BaseExceptionGroup as group:
            self.leave_lock_file(crashed=group.subgroup(KilledFromOutside) is None)
            return None

    def leave_lock_file(self, *, stopping: bool = False, crashed: bool = False) -> None:
        """Write what a dead process leaves in status/."""
        body = {"pid": 1, "host": "h", "since": 0.0, "boot": boot_id(), "stopping": stopping}
        body |= {"crashed": crashed, "oom_kills": oom_kills()}
        (self.service.spool.status / HOLDER_FILE).write_text(json.dumps(body))

    def jobs(self) -> dict[str, JobDir]:
        """Return the jobs in processing/ by the data file's name."""
        found = [read_job(path) for path in self.service.spool.processing.iterdir()]
        return {job.dropped_as: job for job in found}

    def record(self, name: str) -> RunRecord:
        """The job's run record."""
        return read_record(self.jobs()[name])

    def status(self, name: str) -> dict[str, Any]:
        """The status of an upload."""
        found: dict[str, Any] = json.loads((self.service.spool.status / f"{name}.json").read_bytes())
        return found


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    return Lives(tmp_path / "the spool")


@pytest.mark.parametrize(("death", "status"), [(Killed, None), (ZeroDivisionError, 1)])
def test_a_job_that_kills_the_service_is_held_after_the_third_death(
    lives: Lives, death: type[BaseException], status: int | None
) -> None:
    """After its third death, by signal or exception, a job is held with the reason and the command that
    releases it.
    """
    lives.killers["a.csv"] = death
    lives.service.drop("a", sidecar=SIDECAR + "priority: 1\n")
    lives.service.drop("b")
    assert [lives.live() for _ in range(4)] == [status, status, status, 0]
    assert lives.service.published() == ["b"]
    assert lives.starts == [("a.csv", 0.0), ("b.csv", 0.0), ("a.csv", 5.0), ("a.csv", 15.0)]

    job = lives.jobs()["a.csv"]
    shown = lives.status("a.csv")
    command = f"touch {shlex.quote(str(lives.service.spool.incoming / f'{job.name}.resume'))}"
    assert shown["state"] == "held"
    assert shown["message"].startswith("The service died 3 times while this job ran, without any progress")
    assert ("The last error: ZeroDivisionError: no." in shown["message"]) is (status == 1)
    assert shown["message"].endswith(f"with all its results. To run it again: {command}")
    assert shown["message"] in (lives.service.spool.status / "service.txt").read_text()

    # The hold outlasts restarts.
    assert (lives.live(), len(lives.starts)) == (0, 4)
    # After the release it runs as any other job.
    subprocess.run(shlex.split(shown["message"].rpartition("again: ")[2]), check=True)
    del lives.killers["a.csv"]
    assert lives.live() == 0
    assert lives.starts[4:] == [("a.csv", 0.0)]
    assert lives.service.published() == ["a", "b"]
    assert not list(lives.service.spool.incoming.iterdir())


def test_a_job_whose_service_is_killed_from_outside_is_not_blamed(lives: Lives) -> None:
    """A job whose service is killed by SIGKILL runs at once after the others and is held at the
    twentieth death.
    """
    lives.killers["a.csv"] = KilledFromOutside
    lives.service.drop("a")
    assert [lives.live() for _ in range(19)] == [None] * 19
    assert {lived for _, lived in lives.starts} == {0.0}
    assert (lives.record("a.csv").deaths, lives.record("a.csv").kills) == (0, 18)
    lives.service.drop("b")
    assert [lives.live() for _ in range(2)] == [None, 0]
    assert lives.service.published() == ["b"]
    message = lives.status("a.csv")["message"]
    assert message.startswith("The service was killed 20 times while this job ran, without any progress")

    del lives.killers["a.csv"]
    subprocess.run(shlex.split(message.rpartition("again: ")[2]), check=True)
    assert lives.live() == 0
    assert lives.service.published() == ["a", "b"]


def test_an_error_of_an_earlier_death_is_not_repeated(lives: Lives) -> None:
    """A death by a signal does not repeat the error of an earlier death."""
    lives.service.drop("a")
    for death in (ZeroDivisionError, ZeroDivisionError, Killed):
        lives.killers["a.csv"] = death
        lives.live()
    assert lives.live() == 0
    assert "3 times" in lives.status("a.csv")["message"]
    assert "The last error" not in lives.status("a.csv")["message"]


def test_a_death_while_no_job_ran_releases_no_held_job(lives: Lives) -> None:
    """Only a user releases a held job."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    lives.leave_lock_file()
    assert (lives.live(), lives.record("a.csv").held, len(lives.starts)) == (0, True, 3)


def test_a_job_with_deaths_runs_after_later_jobs(tmp_path: Path) -> None:
    """A job with deaths runs after later jobs, whatever its priority and waiting time."""
    queue = JobQueue()
    for name, count in (("old", 2), ("new", 0), ("once", 1)):
        path = tmp_path / name
        item = queue.add(JobDir(path, name, path / "d.csv", None, f"{name}.csv", claimed_at=0.0, arrived=0.0))
        item.record = RunRecord(deaths=count)
        queue.settled(item, priority=count)
    assert [item.job.name for item in queue.waiting()] == ["new", "once", "old"]
    first = queue.next(0.0)
    assert first is not None
    assert first.job.name == "new"


def test_a_side_task_that_fails_with_a_job_counts_as_a_death(lives: Lives) -> None:
    """A side task that ends the service during a job counts as a death of the job each time."""
    started = asyncio.Event()

    async def run(job: JobDir) -> None:
        started.set()
        await lives.clock.sleep(60)

    async def die(event: asyncio.Event) -> None:
        await event.wait()
        raise OSError("out of descriptors")

    lives.acts["a.csv"] = run
    lives.service.drop("a")
    for status in (1, 1, 1, 0):
        started = asyncio.Event()
        lives.side = die(started)
        assert lives.live() == status
    assert (lives.record("a.csv").held, len(lives.starts)) == (True, 3)


def test_a_side_task_that_fails_without_a_job_counts_for_no_job(lives: Lives) -> None:
    """A side task that also fails while the job waits revokes the earlier death."""

    async def run(job: JobDir) -> None:
        await lives.clock.sleep(60)

    async def die() -> None:
        await lives.clock.sleep(3)
        raise OSError("out of descriptors")

    lives.acts["a.csv"] = run
    lives.service.drop("a")
    for _ in range(8):
        lives.side = die()
        assert lives.live() == 1
    assert lives.starts == [("a.csv", 0.0)] * 4
    assert lives.record("a.csv").deaths == 1


def test_a_released_job_is_held_after_three_more_deaths(lives: Lives) -> None:
    """A release resets the deaths of a job to zero."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    (lives.service.spool.incoming / "a.resume").touch()
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    assert lives.record("a.csv").held


def test_a_held_job_can_be_cancelled(lives: Lives) -> None:
    """A cancelled job that is held is published in failed/ with its results."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    (lives.service.spool.incoming / "a.cancel").touch()
    assert lives.live() == 0
    assert lives.service.published("failed") == ["a"]


def test_a_hold_and_a_pause_are_lifted_by_one_resume(lives: Lives) -> None:
    """A paused job that is held stays so after a restart, and one resume ends both."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    (lives.service.spool.incoming / "a.pause").touch()
    assert lives.live() == 0
    assert lives.live() == 0
    assert lives.status("a.csv")["state"] == "paused"
    lives.killers.clear()
    (lives.service.spool.incoming / "a.resume").touch()
    assert lives.live() == 0
    assert lives.service.published() == ["a"]


def test_a_resume_of_a_job_that_is_neither_paused_nor_held_is_reported(
    lives: Lives, capfd: pytest.CaptureFixture[str]
) -> None:
    """A resume without a pause or hold reports that and does not shorten the wait."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert lives.live() is None
    (lives.service.spool.incoming / "a.resume").touch()
    del lives.killers["a.csv"]
    assert lives.live() == 0
    assert "was not paused" in capfd.readouterr().err
    assert lives.starts == [("a.csv", 0.0), ("a.csv", 5.0)]


def test_a_waiting_job_gives_reason_and_time(lives: Lives) -> None:
    """The status of a waiting job gives the reason and the time, while others run at once."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert lives.live() is None
    lives.service.drop("b")
    statuses: list[dict[str, Any]] = []

    async def look(job: JobDir) -> None:
        await lives.clock.sleep(1)
        statuses.append(lives.status("a.csv"))

    lives.acts["b.csv"] = look
    assert lives.live() is None
    assert lives.starts[1][0] == "b.csv"
    assert statuses[0]["message"].startswith(
        "The service died once while this job ran, without any progress (no row"
    )
    assert "The job runs after the others, and not before 2027-01-15T08:0" in statuses[0]["message"]


def test_jobs_that_all_die_take_turns_until_one_finishes(lives: Lives) -> None:
    """Jobs that all die take turns without a hold, because the cause may be outside, until a
    healthy job finishes.
    """
    lives.killers = {"a.csv": Killed, "b.csv": Killed}
    lives.service.drop("a")
    lives.service.drop("b")
    for _ in range(7):
        assert lives.live() is None
    order = [name for name, _ in lives.starts]
    assert {order[0], order[1]} == {"a.csv", "b.csv"}
    assert [lives.record(n).deaths for n in order[:2]] == [4 - 1, 3]  # the seventh death does not count yet
    assert sorted(after for _, after in lives.starts) == [0, 0, 5, 5, 15, 15, 45]
    assert not any(lives.record(n).held for n in order)
    lives.service.drop("c")
    assert lives.live() == 0
    assert lives.starts[7:] == [("c.csv", 0.0)]
    assert all(lives.record(n).held for n in ("a.csv", "b.csv"))
    assert lives.service.published() == ["c"]


def test_two_jobs_that_kill_beside_a_healthy_one_are_held(lives: Lives) -> None:
    """Beside a healthy job, each of two failing ones is held after its third death."""
    lives.killers = {"a.csv": Killed, "b.csv": Killed}
    for name in "abc":
        lives.service.drop(name)
    while lives.live() is None:
        assert len(lives.starts) < 10
    assert sorted(name for name, _ in lives.starts) == ["a.csv"] * 3 + ["b.csv"] * 3 + ["c.csv"]
    assert all(lives.record(n).held for n in ("a.csv", "b.csv"))


def test_several_jobs_that_die_name_the_probable_cause(lives: Lives) -> None:
    """If several jobs have three deaths without a hold, their status names the probable cause."""
    lives.killers = {"a.csv": Killed, "b.csv": Killed}
    lives.service.drop("a")
    lives.service.drop("b")
    for _ in range(7):
        assert lives.live() is None
    texts: list[str] = []

    async def look(job: JobDir) -> None:
        await lives.clock.sleep(1)
        texts.append((lives.service.spool.status / "service.txt").read_text())

    lives.acts = {"a.csv": look, "b.csv": look}
    assert lives.live() is None
    assert "probably the service, the driver or the machine, and no job is held" in texts[0]


def test_a_row_in_each_run_is_progress(lives: Lives) -> None:
    """A job with one new row in each run starts at once and is never held."""
    lives.killers["a.csv"] = Killed

    async def answer_one(job: JobDir) -> None:
        ledger = JobLedger(job.ledger, lives.clock)
        if len(lives.starts) == 1:
            await ledger.take_in([row(n) for n in range(9)])
        ledger.answered(answered(len(lives.starts) - 1, "yes"))
        await ledger.close()

    lives.acts["a.csv"] = answer_one
    lives.service.drop("a")
    assert [lives.live() for _ in range(5)] == [None] * 5
    assert lives.starts == [("a.csv", 0.0)] * 5


@pytest.mark.parametrize(
    ("left", "deaths", "after"),
    [("idle", 0, 0.0), ("stopping", 2, 15.0), ("reboot", 2, 15.0), ("nothing", 2, 15.0)],
)
def test_a_death_while_no_job_ran_resets_the_deaths_of_all_jobs(
    lives: Lives, left: str, deaths: int, after: float
) -> None:
    """A death without a job resets the deaths of all jobs; a kill during a stop or a reboot does not."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(2)] == [None, None]
    write_record(lives.jobs()["a.csv"], RunRecord(boot=boot_id(), deaths=2, first_death_at=1.0))
    (lives.service.spool.status / HOLDER_FILE).unlink()
    if left != "nothing":
        lives.leave_lock_file(stopping=left == "stopping")
    if left == "reboot":
        path = lives.service.spool.status / HOLDER_FILE
        path.write_text(path.read_text().replace(boot_id(), "another boot"))
    assert lives.live() is None
    assert lives.starts[2:] == [("a.csv", after)]
    assert lives.record("a.csv").deaths == deaths


@pytest.mark.parametrize("how", ["stopping", "reboot"])
def test_a_kill_while_the_service_stops_and_a_reboot_are_no_deaths(lives: Lives, how: str) -> None:
    """A run mark left by a kill during a stop or by a reboot does not count as a death."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert lives.live() is None
    if how == "stopping":
        lives.leave_lock_file(stopping=True)
    else:
        write_record(lives.jobs()["a.csv"], begun(RunRecord(), "another boot"))
    del lives.killers["a.csv"]
    assert lives.live() == 0
    assert lives.starts == [("a.csv", 0.0)] * 2


def test_the_lock_file_records_the_stop_request(tmp_path: Path) -> None:
    """The lock file records the stop request, so that a kill during the drain is recognised."""
    service = Service(tmp_path / "spool")
    notes: list[dict[str, Any]] = []

    async def leave(job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        notes.append(json.loads((service.spool.status / HOLDER_FILE).read_bytes()))
        await stop.wait()
        notes.append(json.loads((service.spool.status / HOLDER_FILE).read_bytes()))
        return JobEnd("left", None, "stopped")

    async def main() -> None:
        service.executor.act = leave
        service.drop("a")
        async with service.running():
            await until(lambda: bool(notes))

    asyncio.run(main())
    assert [note["stopping"] for note in notes] == [False, True]
    assert {note["pid"] for note in notes} == {os.getpid()}


@pytest.mark.parametrize("end", ["left", "cut off", "full"])
def test_an_orderly_end_removes_the_mark(tmp_path: Path, end: str) -> None:
    """The run mark exists while the job runs and is removed at any orderly end."""
    service = Service(tmp_path / "spool", drain_s=0.1)
    present: list[bool] = []

    async def act(job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        present.append(read_record(job).running)
        if end == "full":
            raise DiskFull("no room")
        await (asyncio.sleep(60) if end == "cut off" else stop.wait())
        return JobEnd("left", None, "stopped")

    async def main() -> None:
        service.executor.act = act
        service.drop("a")
        async with service.running():
            await until(lambda: bool(present))

    asyncio.run(main())
    (path,) = service.spool.processing.iterdir()
    assert (present, read_record(read_job(path)).running) == ([True], False)


def test_a_full_disk_at_the_mark_holds_the_job_until_there_is_room(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk is full, the job waits without its mark and starts when there is room."""
    left = [2]

    def full(job: JobDir, record: RunRecord) -> None:
        if left[0]:
            left[0] -= 1
            raise DiskFull("no room")
        write_record(job, record)

    monkeypatch.setattr("spoolama.service.deaths.write_record", full)
    lives.service.drop("a")
    assert lives.live() == 0
    assert lives.service.published() == ["a"]
    assert lives.starts[0][1] >= 30
