"""The service dies while a job runs, again and again. Real spool, real tasks, on a clock that jumps."""

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

Act = Callable[[JobDir], Coroutine[Any, Any, None]]


class Killed(BaseException):
    """Ends the process in the middle of a job, as a fatal signal does: nothing is cleaned up."""


class KilledFromOutside(Killed):
    """The same by SIGKILL, which leaves no trace."""


class Lives:
    """A service that is started again after each death, on one clock."""

    def __init__(self, root: Path) -> None:
        self.clock = VirtualClock()
        self.service = Service(root, self.clock)
        self.service.executor.act = self._execute
        self.killers: dict[str, type[BaseException]] = {}
        """What executing a job raises, by the data file's name."""
        self.acts: dict[str, Act] = {}
        """What is done before that."""
        self.starts: list[tuple[str, float]] = []
        """Each job that was started, and how many seconds the service lived before."""
        self.side: Coroutine[Any, Any, None] | None = None
        """What a side task of the next life does."""
        self._born = 0.0

    async def _execute(self, job: JobDir, progress: Progress, stop: Stop) -> JobEnd | None:
        self.starts.append((job.dropped_as, round(self.clock.monotonic() - self._born, 1)))
        if act := self.acts.get(job.dropped_as):
            await act(job)
        if error := self.killers.get(job.dropped_as):
            raise error("no")
        return None

    def live(self) -> int | None:
        """One life of `run --once`: its exit status, or None if it was killed."""
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
            self.leave_holder(crashed=group.subgroup(KilledFromOutside) is None)
            return None

    def leave_holder(self, *, stopping: bool = False, crashed: bool = False) -> None:
        """What a dead process leaves in status/."""
        body = {"pid": 1, "host": "h", "since": 0.0, "boot": boot_id(), "stopping": stopping}
        body |= {"crashed": crashed, "oom_kills": oom_kills()}
        (self.service.spool.status / HOLDER_FILE).write_text(json.dumps(body))

    def jobs(self) -> dict[str, JobDir]:
        """What is in processing/, by the data file's name."""
        found = [read_job(path) for path in self.service.spool.processing.iterdir()]
        return {job.dropped_as: job for job in found}

    def record(self, name: str) -> RunRecord:
        """The job's run record."""
        return read_record(self.jobs()[name])

    def status(self, name: str) -> dict[str, Any]:
        """What status/ says of a drop."""
        found: dict[str, Any] = json.loads((self.service.spool.status / f"{name}.json").read_bytes())
        return found


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    return Lives(tmp_path / "the spool")


@pytest.mark.parametrize(("death", "status"), [(Killed, None), (ZeroDivisionError, 1)])
def test_a_job_that_the_service_dies_of_is_held_after_the_third_time_and_the_others_are_answered(
    lives: Lives, death: type[BaseException], status: int | None
) -> None:
    """By a signal or by an exception; the reason is in status/, with the command that releases the job."""
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

    # The hold survives starts.
    assert (lives.live(), len(lives.starts)) == (0, 4)
    # Released, it is a job like any other.
    subprocess.run(shlex.split(shown["message"].rpartition("again: ")[2]), check=True)
    del lives.killers["a.csv"]
    assert lives.live() == 0
    assert lives.starts[4:] == [("a.csv", 0.0)]
    assert lives.service.published() == ["a", "b"]
    assert not list(lives.service.spool.incoming.iterdir())


def test_a_job_whose_service_is_killed_from_outside_is_not_blamed(lives: Lives) -> None:
    """By SIGKILL without a trace: the job runs at once, after the others; the twentieth holds it."""
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


def test_an_error_of_an_earlier_death_is_not_given_as_the_last_one(lives: Lives) -> None:
    """A signal leaves no error."""
    lives.service.drop("a")
    for death in (ZeroDivisionError, ZeroDivisionError, Killed):
        lives.killers["a.csv"] = death
        lives.live()
    assert lives.live() == 0
    assert "3 times" in lives.status("a.csv")["message"]
    assert "The last error" not in lives.status("a.csv")["message"]


def test_a_death_while_no_job_ran_releases_no_held_job(lives: Lives) -> None:
    """A hold is taken back by nobody but a user."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    lives.leave_holder()
    assert (lives.live(), lives.record("a.csv").held, len(lives.starts)) == (0, True, 3)


def test_a_job_with_deaths_goes_behind_those_that_come_later(tmp_path: Path) -> None:
    """Whatever its priority, and though it waited long enough."""
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


def test_a_side_task_that_dies_of_a_job_is_a_death_like_any_other(lives: Lives) -> None:
    """The service ends by its error while the job runs, each time."""
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


def test_a_side_task_that_dies_of_itself_is_no_jobs_fault(lives: Lives) -> None:
    """It dies as well while the job waits, which takes the death before back."""

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


def test_a_released_job_that_kills_again_has_three_more_lives(lives: Lives) -> None:
    """The release takes all deaths back."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    (lives.service.spool.incoming / "a.resume").touch()
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    assert lives.record("a.csv").held


def test_a_held_job_can_be_cancelled(lives: Lives) -> None:
    """It is published in failed/ with what it has."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(4)] == [None, None, None, 0]
    (lives.service.spool.incoming / "a.cancel").touch()
    assert lives.live() == 0
    assert lives.service.published("failed") == ["a"]


def test_a_hold_and_a_pause_are_lifted_by_one_resume(lives: Lives) -> None:
    """A paused job that is held stays so over a start."""
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


def test_a_resume_of_a_job_that_is_neither_paused_nor_held_says_so(
    lives: Lives, capfd: pytest.CaptureFixture[str]
) -> None:
    """And does not shorten its wait."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert lives.live() is None
    (lives.service.spool.incoming / "a.resume").touch()
    del lives.killers["a.csv"]
    assert lives.live() == 0
    assert "was not paused" in capfd.readouterr().err
    assert lives.starts == [("a.csv", 0.0), ("a.csv", 5.0)]


def test_a_job_that_waits_says_why_and_until_when(lives: Lives) -> None:
    """In its status file, while others run at once."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert lives.live() is None
    lives.service.drop("b")
    seen: list[dict[str, Any]] = []

    async def look(job: JobDir) -> None:
        await lives.clock.sleep(1)
        seen.append(lives.status("a.csv"))

    lives.acts["b.csv"] = look
    assert lives.live() is None
    assert lives.starts[1][0] == "b.csv"
    assert seen[0]["message"].startswith(
        "The service died once while this job ran, without any progress (no row"
    )
    assert "The job runs after the others, and not before 2027-01-15T08:0" in seen[0]["message"]


def test_jobs_that_die_alike_take_turns_until_one_is_finished(lives: Lives) -> None:
    """None is held, since the fault may be outside; once a healthy one is finished, both are."""
    lives.killers = {"a.csv": Killed, "b.csv": Killed}
    lives.service.drop("a")
    lives.service.drop("b")
    for _ in range(7):
        assert lives.live() is None
    order = [name for name, _ in lives.starts]
    assert {order[0], order[1]} == {"a.csv", "b.csv"}
    assert [lives.record(n).deaths for n in order[:2]] == [4 - 1, 3]  # the seventh death is not counted yet
    assert sorted(after for _, after in lives.starts) == [0, 0, 5, 5, 15, 15, 45]
    assert not any(lives.record(n).held for n in order)
    lives.service.drop("c")
    assert lives.live() == 0
    assert lives.starts[7:] == [("c.csv", 0.0)]
    assert all(lives.record(n).held for n in ("a.csv", "b.csv"))
    assert lives.service.published() == ["c"]


def test_two_jobs_that_kill_beside_a_healthy_one_are_held(lives: Lives) -> None:
    """Each after its third death."""
    lives.killers = {"a.csv": Killed, "b.csv": Killed}
    for name in "abc":
        lives.service.drop(name)
    while lives.live() is None:
        assert len(lives.starts) < 10
    assert sorted(name for name, _ in lives.starts) == ["a.csv"] * 3 + ["b.csv"] * 3 + ["c.csv"]
    assert all(lives.record(n).held for n in ("a.csv", "b.csv"))


def test_several_that_die_alike_say_what_that_points_to(lives: Lives) -> None:
    """In the status of a job with three deaths that is not held."""
    lives.killers = {"a.csv": Killed, "b.csv": Killed}
    lives.service.drop("a")
    lives.service.drop("b")
    for _ in range(7):
        assert lives.live() is None
    said: list[str] = []

    async def look(job: JobDir) -> None:
        await lives.clock.sleep(1)
        said.append((lives.service.spool.status / "service.txt").read_text())

    lives.acts = {"a.csv": look, "b.csv": look}
    assert lives.live() is None
    assert "probably the service, the driver or the machine, and no job is held" in said[0]


def test_a_row_in_each_life_is_progress(lives: Lives) -> None:
    """However often the service dies, the job runs at once and is never held."""
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
def test_a_death_while_no_job_ran_takes_the_deaths_of_all_jobs_back(
    lives: Lives, left: str, deaths: int, after: float
) -> None:
    """The service also dies without them. A kill while it stops or a reboot says nothing of the sort."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert [lives.live() for _ in range(2)] == [None, None]
    write_record(lives.jobs()["a.csv"], RunRecord(boot=boot_id(), deaths=2, first_death_at=1.0))
    (lives.service.spool.status / HOLDER_FILE).unlink()
    if left != "nothing":
        lives.leave_holder(stopping=left == "stopping")
    if left == "reboot":
        path = lives.service.spool.status / HOLDER_FILE
        path.write_text(path.read_text().replace(boot_id(), "another boot"))
    assert lives.live() is None
    assert lives.starts[2:] == [("a.csv", after)]
    assert lives.record("a.csv").deaths == deaths


@pytest.mark.parametrize("how", ["stopping", "reboot"])
def test_a_kill_while_the_service_stops_and_a_reboot_are_no_deaths(lives: Lives, how: str) -> None:
    """The mark of a run is there, yet no job is at fault."""
    lives.killers["a.csv"] = Killed
    lives.service.drop("a")
    assert lives.live() is None
    if how == "stopping":
        lives.leave_holder(stopping=True)
    else:
        write_record(lives.jobs()["a.csv"], begun(RunRecord(), "another boot"))
    del lives.killers["a.csv"]
    assert lives.live() == 0
    assert lives.starts == [("a.csv", 0.0)] * 2


def test_the_holder_file_says_that_the_service_was_asked_to_stop(tmp_path: Path) -> None:
    """So a kill that cuts the drain short is seen as one."""
    service = Service(tmp_path / "spool")
    said: list[dict[str, Any]] = []

    async def leave(job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        said.append(json.loads((service.spool.status / HOLDER_FILE).read_bytes()))
        await stop.wait()
        said.append(json.loads((service.spool.status / HOLDER_FILE).read_bytes()))
        return JobEnd("left", None, "stopped")

    async def main() -> None:
        service.executor.act = leave
        service.drop("a")
        async with service.running():
            await until(lambda: bool(said))

    asyncio.run(main())
    assert [note["stopping"] for note in said] == [False, True]
    assert {note["pid"] for note in said} == {os.getpid()}


@pytest.mark.parametrize("end", ["left", "cut off", "full"])
def test_an_orderly_end_takes_the_mark_away(tmp_path: Path, end: str) -> None:
    """Left, cut off after drain_s, or held: while the job ran the mark was there."""
    service = Service(tmp_path / "spool", drain_s=0.1)
    marks: list[bool] = []

    async def act(job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        marks.append(read_record(job).running)
        if end == "full":
            raise DiskFull("no room")
        await (asyncio.sleep(60) if end == "cut off" else stop.wait())
        return JobEnd("left", None, "stopped")

    async def main() -> None:
        service.executor.act = act
        service.drop("a")
        async with service.running():
            await until(lambda: bool(marks))

    asyncio.run(main())
    (path,) = service.spool.processing.iterdir()
    assert (marks, read_record(read_job(path)).running) == ([True], False)


def test_a_full_disk_at_the_mark_holds_the_job_until_there_is_room(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not started without its mark, and goes on by itself."""
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
