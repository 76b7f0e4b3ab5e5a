"""The run record of a job and the effect of the deaths in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spoolama.service import run_record
from spoolama.service.run_record import (
    MAX_DEATHS,
    RunRecord,
    begun,
    cleared,
    delay_reason,
    ended,
    held_reason,
    must_hold,
    probation_s,
    read_record,
    released,
    restarted,
    write_record,
)
from spoolama.spool.claim import JobDir
from spoolama.spool.ledger_reader import JobProgress

BOOT, REBOOTED, NOW = "boot-1", "boot-2", 1_800_000_000.0
READ = JobProgress(rows=1000, all_read=True)


def job_in(spool: Path) -> JobDir:
    path = spool / "processing" / "reviews-1"
    path.mkdir(parents=True)
    return JobDir(path, path.name, path / "reviews.csv", None, "reviews.csv", claimed_at=0.0, arrived=0.0)


def lives(*deaths: JobProgress, record: RunRecord | None = None, boot: str = BOOT) -> RunRecord:
    """A job that starts and dies, with this progress in its ledger at each later start."""
    record = record or RunRecord()
    for at, progress in enumerate(deaths):
        record = restarted(begun(record, BOOT), progress, boot, NOW + at)
    return record


@pytest.mark.parametrize(
    ("found", "deaths"),
    [
        pytest.param([JobProgress()] * 3, 3, id="nothing at all"),
        pytest.param([READ, READ, READ], 2, id="reading is progress, but once"),
        pytest.param([READ, JobProgress(rows=500), JobProgress(rows=999)], 2, id="the same rows read again"),
        pytest.param([READ, JobProgress(rows=500), JobProgress(rows=1001)], 0, id="more rows than ever"),
        pytest.param([READ, READ, replace(READ, ended=1, answers=1)], 0, id="one row answered"),
        pytest.param([READ, READ, replace(READ, answers=1)], 0, id="one answer of a pilot"),
        pytest.param(
            [replace(READ, ended=9, answers=9), replace(READ, ended=5, answers=9)], 1, id="rows to ask again"
        ),
        pytest.param(
            [
                replace(READ, ended=9, answers=9),
                replace(READ, ended=5, answers=9),
                replace(READ, ended=6, answers=10),
            ],
            0,
            id="a row asked again and answered",
        ),
        pytest.param([READ, JobProgress()], 1, id="a ledger that cannot be read any more"),
        pytest.param([replace(READ, ended=n, answers=n) for n in range(10)], 0, id="a row in each life"),
    ],
)
def test_a_death_counts_without_progress_and_progress_resets_the_count(
    found: list[JobProgress], deaths: int
) -> None:
    """A death counts only without progress, and progress beyond the best so far resets the count."""
    assert lives(*found).deaths == deaths


def test_a_reboot_is_no_death() -> None:
    """A reboot is not a death, and earlier deaths still count."""
    twice = lives(JobProgress(), JobProgress())
    after = restarted(begun(twice, BOOT), JobProgress(), REBOOTED, NOW)
    assert (after.deaths, after.running) == (2, False)


def test_a_run_that_ended_is_no_death() -> None:
    """A run that was published, paused, held or stopped has no mark and is not a death."""
    assert restarted(ended(begun(RunRecord(), BOOT)), JobProgress(), BOOT, NOW).deaths == 0


def test_the_time_of_the_first_death_stays() -> None:
    """The time of the first death stays until progress resets it."""
    twice = lives(JobProgress(), JobProgress())
    assert twice.first_death_at == NOW
    assert restarted(twice, READ, BOOT, NOW).first_death_at is None


def test_progress_in_a_stopped_run_resets_the_deaths() -> None:
    """Progress in a run that ended in order resets the deaths."""
    stopped = ended(begun(lives(JobProgress(), JobProgress()), BOOT))
    assert restarted(stopped, READ, BOOT, NOW).deaths == 0


KILLER = RunRecord(deaths=MAX_DEATHS)
PROVEN = replace(KILLER, other_finished=True)
DIED_ONCE = RunRecord(deaths=1)


@pytest.mark.parametrize(
    ("record", "others", "held"),
    [
        pytest.param(replace(KILLER, deaths=2), [], False, id="two deaths are too few"),
        pytest.param(replace(PROVEN, deaths=2), [RunRecord()], False, id="two are, whatever else"),
        pytest.param(KILLER, [], True, id="nobody else"),
        pytest.param(KILLER, [RunRecord(), RunRecord()], True, id="others that did not die"),
        pytest.param(KILLER, [DIED_ONCE], False, id="another that died, too"),
        pytest.param(PROVEN, [DIED_ONCE], True, id="another died, a third was finished"),
        pytest.param(KILLER, [KILLER], False, id="two that die alike"),
        pytest.param(PROVEN, [PROVEN], True, id="two that die beside a healthy one"),
        pytest.param(
            KILLER, [replace(KILLER, held=True)], False, id="the first was held before it had company"
        ),
        pytest.param(KILLER, [replace(PROVEN, held=True)], True, id="another that alone is bad"),
        pytest.param(RunRecord(held=True), [DIED_ONCE], True, id="held stays held"),
    ],
)
def test_a_job_is_held_when_its_deaths_are_its_own(
    record: RunRecord, others: list[RunRecord], held: bool
) -> None:
    """A job is held after three deaths if the service works without it."""
    assert must_hold(record, others) is held


def test_jobs_that_are_all_killed_during_loads_are_not_held() -> None:
    """If kill -9 hits each job during its load, all jobs have deaths and none is held."""
    records = [RunRecord(), RunRecord(), RunRecord()]
    for _ in range(12):
        turn = min(range(3), key=lambda n: records[n].deaths)
        records[turn] = lives(READ, record=records[turn])
        others = [record for n, record in enumerate(records) if n != turn]
        assert not must_hold(records[turn], others)
    assert min(record.deaths for record in records) >= MAX_DEATHS


def test_a_hold_outlives_starts_and_reboots() -> None:
    """A hold ends only by a release, not by a restart or a reboot."""
    held = replace(KILLER, held=True)
    for boot in (BOOT, REBOOTED):
        after = restarted(held, READ, boot, NOW)
        assert (after.held, after.deaths) == (True, MAX_DEATHS)
    assert released(held) == RunRecord()


def test_resetting_deaths_keeps_the_progress() -> None:
    """Reading the same rows again is no progress after the deaths are reset."""
    record = cleared(lives(READ, READ))
    assert (record.deaths, record.best) == (0, READ)
    assert lives(READ, record=record).deaths == 1


def test_probation_grows_and_has_an_end() -> None:
    """The wait is 5 s, triples with each death, and is at most five minutes."""
    assert [probation_s(n) for n in range(7)] == [0, 5, 15, 45, 135, 300, 300]
    assert probation_s(10**6) == 300


def test_the_reason_names_deaths_rows_error_and_the_command(tmp_path: Path) -> None:
    """The command in the reason is quoted for a shell and has the full path."""
    job = job_in(tmp_path / "my spool")
    text = held_reason(replace(KILLER, best=replace(READ, ended=12)), job)
    assert text == (
        "The service died 3 times while this job ran, without any progress in between "
        "(12 of 1,000 rows done). The job is held with all its results. "
        f"To run it again: touch '{tmp_path}/my spool/incoming/reviews-1.resume'"
    )
    assert "The last error: ZeroDivisionError: no." in held_reason(
        replace(KILLER, error="ZeroDivisionError: no"), job
    )


@pytest.mark.parametrize(
    ("record", "others", "text"),
    [
        (
            DIED_ONCE,
            [],
            "The service died once while this job ran, without any progress (no row read). "
            "The job runs after the others, and not before 12:00.",
        ),
        (
            replace(DIED_ONCE, deaths=2, best=JobProgress(rows=5000)),
            [DIED_ONCE],
            "The service died twice while this job ran, without any progress in between (5,000 rows read). "
            "The job runs after the others, and not before 12:00.",
        ),
        (
            KILLER,
            [DIED_ONCE],
            "The service died 3 times while this job ran, without any progress in between (no row read). "
            "It also died while other jobs ran, so the cause is probably the service, the driver or the "
            "machine, and no job is held. The job runs after the others, and not before 12:00.",
        ),
    ],
)
def test_a_waiting_job_gives_reason_and_time(record: RunRecord, others: list[RunRecord], text: str) -> None:
    """If several jobs have deaths, the text names the probable cause."""
    assert delay_reason(record, others, "12:00") == text


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every field is read back as written, with any value."""
    job = job_in(tmp_path)
    assert read_record(job) == RunRecord()
    full = RunRecord(BOOT, True, 2, NOW, JobProgress(4, 2, 3, all_read=True), "E: x", True, True)
    for record in (RunRecord(), full):
        write_record(job, record)
        assert read_record(job) == record


@pytest.mark.parametrize("change", [b"", b"[]", b"{}", b'"x"', {"deaths": "x"}, {"best": None}, {"best": {}}])
def test_a_damaged_record_counts_as_missing(tmp_path: Path, change: bytes | dict[str, object]) -> None:
    """A damaged record counts as missing."""
    job = job_in(tmp_path)
    write_record(job, KILLER)
    path = job.path / run_record.RECORD_FILE
    path.write_bytes(
        change if isinstance(change, bytes) else json.dumps(json.loads(path.read_bytes()) | change).encode()
    )
    assert read_record(job) == RunRecord()
