"""Claiming and settling: uploads leave the uploader's directory and no longer change."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spoolama.clock import SystemClock
from spoolama.errors import ConfigError, DropGone, SpoolError
from spoolama.spool.claim import (
    JobDir,
    Lease,
    RefusedFiles,
    SettledFiles,
    Settling,
    ask_lease,
    claim,
    read_job,
    settle,
)
from spoolama.spool.durable import Disk, sha256_of
from spoolama.spool.layout import CLAIM_FILE, Spool
from spoolama.spool.scanner import Drop


def dropped(spool: Spool, name: str = "a.csv", sidecar: str | None = "a.yaml") -> Drop:
    """Two files in incoming."""
    (spool.incoming / name).write_bytes(b"name\nAnna\n")
    if sidecar is not None:
        (spool.incoming / sidecar).write_bytes(b"model: a\n")
    return Drop(name, sidecar, 1_790_000_000.0, 10)


def taken(spool: Spool) -> JobDir:
    return claim(spool, dropped(spool), clock=SystemClock())


def leases_work(path: Path) -> bool:
    """Whether this file system and this user support leases."""
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDONLY)
    try:
        return not ask_lease(fd).denied
    finally:
        os.close(fd)


def test_a_claim(spool: Spool) -> None:
    """Both files keep their names, and the claim is read back equal."""
    job = claim(spool, dropped(spool), clock=SystemClock(), token=lambda: "k3f9")
    assert job.path.parent == spool.processing
    assert job.name.endswith("-k3f9")
    assert job.data.read_bytes() == b"name\nAnna\n"
    assert job.sidecar is not None
    assert job.sidecar.name == "a.yaml"
    assert (job.dropped_as, job.arrived) == ("a.csv", 1_790_000_000.0)
    assert list(spool.incoming.iterdir()) == []
    assert read_job(job.path) == job


def test_two_uploads_of_one_name_are_two_jobs(spool: Spool) -> None:
    """Two claims of one name within a second get two names, even with equal random characters."""
    tokens = iter(["aaaa", "aaaa", "bbbb", "bbbb", "cccc"])

    class Still(SystemClock):
        def time(self) -> float:
            return 1_790_000_000.0

    def claim_again() -> JobDir:
        return claim(spool, dropped(spool), clock=Still(), token=lambda: next(tokens))

    first, second = claim_again(), claim_again()
    second.path.rename(spool.done / second.name)
    assert [j.name[-4:] for j in (first, second, claim_again())] == ["aaaa", "bbbb", "cccc"]


@pytest.mark.parametrize(
    "name", ["-rf.csv", "é 評.csv", "new\nline.csv", os.fsdecode(b"\xff.csv"), "x" * 251 + ".csv"]
)
def test_any_name_survives_the_claim(spool: Spool, name: str) -> None:
    """A file keeps any name in a claim."""
    job = claim(spool, dropped(spool, name, None), clock=SystemClock())
    assert read_job(job.path).data.name == name
    assert os.fsencode(name) in [os.fsencode(p.name) for p in job.path.iterdir()]


@pytest.mark.parametrize("gone", ["a.csv", "a.yaml"])
def test_half_an_upload_is_put_back(spool: Spool, gone: str) -> None:
    """If one half is gone at the claim, the other stays in incoming."""
    drop = dropped(spool)
    (spool.incoming / gone).unlink()
    with pytest.raises(DropGone):
        claim(spool, drop, clock=SystemClock())
    assert [p.name for p in spool.incoming.iterdir()] == ["a.yaml" if gone == "a.csv" else "a.csv"]
    assert list(spool.processing.iterdir()) == []


def test_a_drop_replaced_during_the_claim_keeps_both(spool: Spool) -> None:
    """If the uploader replaces sidecar and data during the claim, both the old and the new data survive."""

    class Racing(Disk):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if source.name == "a.csv":
                (spool.incoming / "a.yaml").unlink()
                source.write_bytes(b"new")

    job = claim(spool, dropped(spool), clock=SystemClock(), disk=Racing())
    assert (job.data.read_bytes(), job.sidecar) == (b"name\nAnna\n", None)
    assert (spool.incoming / "a.csv").read_bytes() == b"new"


def test_a_default_sidecar_is_copied_in(spool: Spool, tmp_path: Path) -> None:
    """The administrator's sidecar stays, and the job has a copy and its path."""
    default = tmp_path / "ours.yaml"
    default.write_bytes(b"model: ours\n")
    dropped(spool, sidecar=None)
    job = claim(spool, Drop("a.csv", None, 1.0, 10, default), clock=SystemClock())
    assert job.sidecar is not None
    assert (job.sidecar.name, job.sidecar.read_bytes()) == ("default.yaml", b"model: ours\n")
    assert job.default_sidecar == str(default)
    assert default.exists()


def test_a_missing_default_sidecar_is_an_error_for_the_administrator(spool: Spool, tmp_path: Path) -> None:
    """A missing default sidecar leaves the upload in incoming, with the path in the error."""
    dropped(spool, sidecar=None)
    with pytest.raises(ConfigError, match=r"default\.yaml cannot be read"):
        claim(spool, Drop("a.csv", None, 1.0, 10, tmp_path / "default.yaml"), clock=SystemClock())
    assert (spool.incoming / "a.csv").exists()
    assert list(spool.processing.iterdir()) == []


@pytest.mark.parametrize("damage", [None, b"", b"{}", b'{"data": 3}', b"[1]", b"\xff"])
def test_a_damaged_claim_is_reported(spool: Spool, damage: bytes | None) -> None:
    """A directory without a valid claim file is not a job."""
    job = taken(spool)
    (job.path / CLAIM_FILE).unlink()
    if damage is not None:
        (job.path / CLAIM_FILE).write_bytes(damage)
    with pytest.raises(SpoolError, match=r"claim\.json"):
        read_job(job.path)


def test_settled(spool: Spool) -> None:
    """A lease shows that no process has the files open for writing."""
    job = taken(spool)
    if not leases_work(spool.root / "probe"):
        pytest.skip("leases are not to be had on this file system by this user")
    assert settle(job) == SettledFiles()


@pytest.mark.parametrize("name", ["a.csv", "a.yaml"])
def test_settling_waits_for_an_open_writer(spool: Spool, name: str) -> None:
    """Settling waits for a process that has either file open for writing."""
    if not leases_work(spool.root / "probe"):
        pytest.skip("leases are not to be had on this file system by this user")
    drop = dropped(spool)
    code = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(spool.incoming / name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        job = claim(spool, drop, clock=SystemClock())
        assert settle(job) == Settling(f"{name} is still being written to")
        writer.communicate(b"")
    assert settle(job) == SettledFiles()


def test_no_lease_is_left_behind(tmp_path: Path) -> None:
    """After the check no lease delays a process that opens the file."""
    if not leases_work(tmp_path / "a"):
        pytest.skip("leases are not to be had on this file system by this user")
    with (tmp_path / "a").open("rb") as file:
        assert ask_lease(file.fileno()) == Lease(writer=False)
        assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_UNLCK


def test_settling_without_leases_continues_and_reports_it(spool: Spool) -> None:
    """Without leases, as on NFS, settling relies on the quiet time and reports it."""
    found = settle(taken(spool), ask=lambda _: Lease(writer=False, denied="Permission denied"))
    assert found == SettledFiles(
        "the kernel cannot tell whether a.csv is still being written to: Permission denied"
    )


def test_settling_refuses_files_that_can_change(spool: Spool, tmp_path: Path) -> None:
    """A hard link, symlink, directory, FIFO or missing file is refused with its reason and
    without blocking.
    """
    found = {}
    for kind in ("hard_linked", "not_regular", "directory", "fifo", "vanished"):
        job = taken(spool)
        if kind == "hard_linked":
            os.link(job.data, tmp_path / "other")
        else:
            job.data.unlink()
        if kind == "not_regular":
            job.data.symlink_to("/etc/hostname")
        elif kind == "directory":
            job.data.mkdir()
        elif kind == "fifo":
            os.mkfifo(job.data)
        answer = settle(job)
        assert isinstance(answer, RefusedFiles)
        found[kind] = answer.code
        assert "pload" in answer.message
    assert found == {
        "hard_linked": "hard_linked",
        "not_regular": "not_regular",
        "directory": "not_regular",
        "fifo": "not_regular",
        "vanished": "vanished",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights for a moment")
def test_settling_refuses_unreadable_files(tmp_path: Path) -> None:
    """An upload of mode 0600 by another user can be renamed but not read, and is refused."""
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    spool = Spool(tmp_path / "spool")
    spool.create()
    job = taken(spool)
    job.data.chmod(0o600)
    spool.processing.chmod(0o755)
    job.path.chmod(0o755)
    os.seteuid(65534)
    try:
        answer = settle(job)
    finally:
        os.seteuid(0)
    assert isinstance(answer, RefusedFiles)
    assert answer.code == "unreadable"


def test_the_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    """The hash equals that of sha256sum, which people put into `expect.sha256`."""
    (tmp_path / "a.csv").write_bytes(b"a\nb")
    expected = subprocess.check_output(["sha256sum", tmp_path / "a.csv"]).split()[0].decode()
    assert sha256_of(tmp_path / "a.csv") == expected


def test_the_claim_file_is_for_people_too(spool: Spool) -> None:
    """claim.json is readable JSON about what was claimed."""
    body = json.loads((taken(spool).path / CLAIM_FILE).read_bytes())
    assert (body["data"], body["sidecar"], body["version"]) == ("a.csv", "a.yaml", 1)
