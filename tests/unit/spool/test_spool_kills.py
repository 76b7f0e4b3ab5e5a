"""If the service is killed at any call that changes the disk, no upload is lost and each is processed."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from spoolama.clock import SystemClock
from spoolama.errors import DiskFailed, DiskFull
from spoolama.spool.claim import JobDir, claim
from spoolama.spool.layout import DiskState, Spool, state_of
from spoolama.spool.publication import SUMS, open_out, publish
from spoolama.spool.recovery import recover
from spoolama.spool.scanner import Drop
from support.disk import Killed, ScriptedDisk

DATA, SIDECAR, DEFAULT = b"name\nAnna\n", b"model: a\n", b"model: default\n"
KINDS = ["with its sidecar", "alone", "with the default sidecar"]


def dropped(root: Path, kind: str) -> tuple[Spool, Drop]:
    """A spool with one upload in incoming."""
    spool = Spool(root)
    spool.create()
    (spool.incoming / "a.csv").write_bytes(DATA)
    default = None
    if kind == "with its sidecar":
        (spool.incoming / "a.yaml").write_bytes(SIDECAR)
    elif kind == "with the default sidecar":
        default = root / "default.yaml"
        default.write_bytes(DEFAULT)
    return spool, Drop("a.csv", "a.yaml" if kind == KINDS[0] else None, 1.0, len(DATA), default)


def contents(root: Path) -> dict[bytes, int]:
    """Return the contents of all files below and the number of files (not names) with each."""
    inodes = {(f.stat().st_ino, f.read_bytes()) for f in root.rglob("*") if f.is_file()}
    found: dict[bytes, int] = {}
    for _, data in inodes:
        found[data] = found.get(data, 0) + 1
    return found


def until_it_survives(tmp_path: Path, attempt: Callable[[Path, int], bool]) -> int:
    """Call `attempt(root, n)` for n = 1, 2, ... until it reports that no call was left to kill."""
    for n in range(1, 200):
        root = tmp_path / "world"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if attempt(root / "spool", n):
            return n
    raise AssertionError("it never ends")


def whole(spool: Spool, drop: Drop) -> None:
    """Check that the upload is complete, wherever it is."""
    found = contents(spool.root)
    assert found.get(DATA) == 1
    if drop.sidecar:
        assert found.get(SIDECAR) == 1


def prepared(job: JobDir) -> None:
    """A finished job with a ledger and a report in out/."""
    for tail in ("", "-wal", "-shm"):
        job.path.joinpath(job.ledger.name + tail).write_bytes(b"ledger" + tail.encode())
    out = open_out(job, disk=ScriptedDisk())
    (out / "results.jsonl").write_bytes(b"{}\n")
    (out / "pictures").mkdir()
    (out / "pictures" / "one.svg").write_bytes(b"<svg/>")


def ended_well(spool: Spool, where: str, kind: str) -> None:
    """Check that the job is published once and completely, with nothing left behind."""
    (job,) = list((spool.root / where).iterdir())
    names = {str(f.relative_to(job)) for f in job.rglob("*") if f.is_file()}
    uploads = {KINDS[0]: {"a.csv", "a.yaml"}, KINDS[1]: {"a.csv"}, KINDS[2]: {"a.csv", "default.yaml"}}[kind]
    assert names == {SUMS, "results.jsonl", "pictures/one.svg"} | {f"uploaded/{n}" for n in uploads}
    lines = [line.split("  ") for line in (job / SUMS).read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert sums == {n: hashlib.sha256((job / n).read_bytes()).hexdigest() for n in names - {SUMS}}
    assert list(spool.processing.iterdir()) == []
    assert list(spool.incoming.iterdir()) == []
    assert [f for f in (job / "uploaded").iterdir() if f.stat().st_nlink != 1] == []


def go_on(spool: Spool, drop: Drop, where: Literal["done", "failed"]) -> None:
    """Restart after a death, as the service does, and process everything."""
    found = recover(spool, disk=ScriptedDisk())
    whole(spool, drop)
    assert not spool.quarantine.exists(), found.actions
    jobs = found.jobs
    if not jobs and (spool.incoming / "a.csv").exists():
        jobs = [claim(spool, drop, clock=SystemClock(), disk=ScriptedDisk())]
    for job in jobs:
        assert state_of(spool, job.path) in (DiskState.SETTLING, DiskState.CLAIMED)
        assert job.data.read_bytes() == DATA
        assert job.sidecar is None or job.sidecar.read_bytes() in (SIDECAR, DEFAULT)
        prepared(job)
        publish(spool, job, where, disk=ScriptedDisk())


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_killed_anywhere(tmp_path: Path, kind: str) -> None:
    """After a kill at any call the upload is complete, in a known state, and processed at the next start."""

    def attempt(root: Path, n: int) -> bool:
        spool, drop = dropped(root, kind)
        try:
            claim(spool, drop, clock=SystemClock(), disk=ScriptedDisk(kill_at=n))
        except Killed:
            survived = False
        else:
            survived = True
        whole(spool, drop)
        assert all(state_of(spool, job) is not DiskState.UNKNOWN for job in spool.processing.iterdir())
        go_on(spool, drop, "done")
        ended_well(spool, "done", kind)
        return survived

    assert until_it_survives(tmp_path, attempt) > 9


@pytest.mark.parametrize("refuse", [{}, {"link": errno.EPERM}], ids=["by links", "by renames"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["done", "failed"])
def test_a_publication_killed_anywhere(
    tmp_path: Path, kind: str, refuse: dict[str, int], where: Literal["done", "failed"]
) -> None:
    """After a kill at any call the job is published once and completely in the end."""

    def attempt(root: Path, n: int) -> bool:
        spool, drop = dropped(root, kind)
        job = claim(spool, drop, clock=SystemClock(), disk=ScriptedDisk())
        prepared(job)
        try:
            publish(spool, job, where, disk=ScriptedDisk(kill_at=n, refuse=refuse))
        except Killed:
            survived = False
        else:
            survived = True
        whole(spool, drop)
        published = list((spool.root / where).iterdir())
        assert published == [] or (published[0] / SUMS).exists()
        assert state_of(spool, job.path) in (DiskState.BUILDING, DiskState.PUBLISHED, DiskState.FINISHED)
        go_on(spool, drop, where)
        ended_well(spool, where, kind)
        return survived

    assert until_it_survives(tmp_path, attempt) > 20


def deaths_before_recovery(root: Path) -> Iterator[tuple[Spool, Drop]]:
    """Return every state that a death in a claim or a publication leaves."""
    for refuse in ({}, {"link": errno.EPERM}):
        for step in ("claim", "publish"):
            for n in range(1, 200):
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                spool, drop = dropped(root / "spool", KINDS[0])
                disk = ScriptedDisk(kill_at=n, refuse=refuse)
                try:
                    job = claim(
                        spool, drop, clock=SystemClock(), disk=disk if step == "claim" else ScriptedDisk()
                    )
                    prepared(job)
                    if step == "publish":
                        publish(spool, job, "done", disk=disk)
                    break
                except Killed:
                    yield spool, drop


def test_a_recovery_killed_anywhere(tmp_path: Path) -> None:
    """A recovery that is killed repeatedly at the next call still completes."""
    worlds = 0
    for spool, drop in deaths_before_recovery(tmp_path / "world"):
        worlds += 1
        for n in range(1, 200):
            try:
                recover(spool, disk=ScriptedDisk(kill_at=n))
                break
            except Killed:
                whole(spool, drop)
        go_on(spool, drop, "done")
        ended_well(spool, "done", KINDS[0])
    assert worlds > 50


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_claim_that_fails_anywhere_is_undone(tmp_path: Path, number: int) -> None:
    """An error at any call of a claim leaves the upload in incoming unchanged and nothing in processing."""

    def attempt(root: Path, n: int) -> bool:
        spool, drop = dropped(root, KINDS[0])
        try:
            claim(spool, drop, clock=SystemClock(), disk=ScriptedDisk(fail_at=n, fail_with=number))
        except {errno.ENOSPC: DiskFull, errno.EIO: DiskFailed, errno.EACCES: PermissionError}[number]:
            assert sorted(p.name for p in spool.incoming.iterdir()) == ["a.csv", "a.yaml"]
            assert list(spool.processing.iterdir()) == []
            return False
        return True

    assert until_it_survives(tmp_path, attempt) > 9


def test_an_undo_killed_anywhere(tmp_path: Path) -> None:
    """A claim that failed at its last call and was killed during the undo is repaired at the next start."""
    spool, drop = dropped(tmp_path / "whole", KINDS[0])
    disk = ScriptedDisk()
    claim(spool, drop, clock=SystemClock(), disk=disk)
    last = len(disk.calls)

    def attempt(root: Path, n: int) -> bool:
        spool, drop = dropped(root, KINDS[0])
        disk = ScriptedDisk(fail_at=last, kill_at=last + n)
        with pytest.raises((Killed, DiskFull)) as ended:
            claim(spool, drop, clock=SystemClock(), disk=disk)
        whole(spool, drop)
        go_on(spool, drop, "done")
        ended_well(spool, "done", KINDS[0])
        return ended.type is DiskFull

    assert until_it_survives(tmp_path, attempt) > 5


def test_a_publication_without_room_can_be_tried_again(tmp_path: Path) -> None:
    """ENOSPC at any call leaves the job in processing or published, and with room the same call succeeds."""

    def attempt(root: Path, n: int) -> bool:
        spool, drop = dropped(root, KINDS[0])
        job = claim(spool, drop, clock=SystemClock(), disk=ScriptedDisk())
        prepared(job)
        try:
            publish(spool, job, "done", disk=ScriptedDisk(fail_at=n))
        except DiskFull:
            whole(spool, drop)
            if state_of(spool, job.path) is DiskState.BUILDING:
                publish(spool, job, "done", disk=ScriptedDisk())
            else:
                recover(spool, disk=ScriptedDisk())
            ended_well(spool, "done", KINDS[0])
            return False
        return True

    assert until_it_survives(tmp_path, attempt) > 20


def test_everything_is_on_the_disk_before_it_is_published(tmp_path: Path) -> None:
    """All of done/JOB is synced before the rename, and done/ itself before anything is removed."""
    spool, drop = dropped(tmp_path / "spool", KINDS[0])
    job = claim(spool, drop, clock=SystemClock(), disk=ScriptedDisk())
    prepared(job)
    disk = ScriptedDisk()
    done = publish(spool, job, "done", disk=disk)
    at = disk.calls.index(("rename_new", job.name))
    needed = {p.stat().st_ino for p in [done, *done.rglob("*")]}
    assert needed - disk.synced[at] == set()
    removed = next(i for i, (call, name) in enumerate(disk.calls) if call == "unlink" and name == "a.csv")
    assert spool.done.stat().st_ino in disk.synced[removed]
    assert [name for call, name in disk.calls if call == "unlink"][-1] == "ledger.sqlite"


def test_a_failed_fsync_is_final(tmp_path: Path) -> None:
    """After EIO nothing is synced or published again until a new out/ with new files exists."""
    spool, drop = dropped(tmp_path / "spool", KINDS[0])
    job = claim(spool, drop, clock=SystemClock(), disk=ScriptedDisk())
    prepared(job)
    disk = ScriptedDisk(refuse={"fsync": errno.EIO})
    with pytest.raises(DiskFailed, match="journalctl -k"):
        publish(spool, job, "done", disk=disk)
    assert [call for call, _ in disk.calls].count("fsync") == 1
    assert list(spool.done.iterdir()) == []
    prepared(job)
    publish(spool, job, "done", disk=ScriptedDisk())
    ended_well(spool, "done", KINDS[0])
