"""Publishing without kills: odd names, odd uploads, and names that exist."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from spoolama.clock import SystemClock
from spoolama.errors import SpoolError
from spoolama.spool.claim import JobDir, SettledFiles, claim, settle
from spoolama.spool.layout import CLAIM_FILE, Spool
from spoolama.spool.publication import SUMS, clean, open_out, publish, take_apart
from spoolama.spool.scanner import Drop


def job_of(spool: Spool, name: str = "a.csv") -> JobDir:
    """A claimed job with a report of one file."""
    (spool.incoming / name).write_bytes(b"name\nAnna\n")
    job = claim(spool, Drop(name, None, 1.0, 10), clock=SystemClock())
    (open_out(job) / "results.jsonl").write_bytes(b"{}\n")
    return job


@pytest.mark.parametrize(
    "name",
    ["-rf.csv", "é 評.csv", "back\\slash.csv", "new\nline\r.csv", os.fsdecode(b"\xff.csv"), "results.jsonl"],
)
def test_sums_are_read_by_sha256sum(spool: Spool, name: str) -> None:
    """`sha256sum -c` finds and confirms every file, with any name."""
    done = publish(spool, job_of(spool, name), "done")
    checked = subprocess.run(
        ["sha256sum", "-c", "--strict", SUMS], cwd=done, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(b": OK") == 2
    assert (done / "uploaded" / name).read_bytes() == b"name\nAnna\n"
    assert (done / "results.jsonl").read_bytes() == b"{}\n"


def test_published_files_can_be_read_by_all(spool: Spool) -> None:
    """With any umask directories have 0755 and files 0644, and an upload keeps its owner's mode."""
    old = os.umask(0o077)
    try:
        job = job_of(spool)
        (job.out / "pictures").mkdir()
        (job.out / "pictures" / "one.svg").touch()
        job.data.chmod(0o640)
        done = publish(spool, job, "done")
    finally:
        os.umask(old)
    modes = {str(p.relative_to(done)): stat.S_IMODE(p.stat().st_mode) for p in [done, *done.rglob("*")]}
    assert modes == {
        ".": 0o755,
        "pictures": 0o755,
        "uploaded": 0o755,
        "pictures/one.svg": 0o644,
        "results.jsonl": 0o644,
        SUMS: 0o644,
        "uploaded/a.csv": 0o640,
    }


def test_refused_uploads_are_published_as_they_are(spool: Spool) -> None:
    """A link or directory that replaced the upload is returned as it is and has no checksum."""
    for kind in ("link", "directory"):
        job = job_of(spool)
        job.data.unlink()
        if kind == "link":
            job.data.symlink_to("/etc/hostname")
        else:
            job.data.mkdir(0o700)
            (job.data / "inside").write_bytes(b"x")
        failed = publish(spool, job, "failed")
        upload = failed / "uploaded" / "a.csv"
        assert upload.is_symlink() if kind == "link" else (upload / "inside").read_bytes() == b"x"
        assert not job.path.exists()
        assert b"uploaded/a.csv\n" not in (failed / SUMS).read_bytes()


def test_a_vanished_upload_does_not_stop_its_error_report(spool: Spool) -> None:
    """If the data was removed from processing by hand, the job is still published in failed/."""
    job = job_of(spool)
    job.data.unlink()
    assert (publish(spool, job, "failed") / "results.jsonl").exists()
    assert list(spool.processing.iterdir()) == []


@pytest.mark.parametrize("where", ["done", "failed"])
def test_a_taken_name_is_not_replaced(spool: Spool, where: str) -> None:
    """If done/JOB or failed/JOB exists, the complete job stays in processing."""
    job = job_of(spool)
    (spool.root / where / job.name).mkdir()
    with pytest.raises(SpoolError, match="already exists"):
        publish(spool, job, "done")
    assert (job.data.exists(), job.out.exists()) == (True, True)


def test_publishing_needs_a_report_and_a_claim(spool: Spool) -> None:
    """Without out/ or claim.json nothing happens."""
    job = job_of(spool)
    claimed = (job.path / CLAIM_FILE).read_bytes()
    (job.path / CLAIM_FILE).unlink()
    with pytest.raises(SpoolError, match="no claim"):
        publish(spool, job, "done")
    (job.path / CLAIM_FILE).write_bytes(claimed)
    take_apart(job.path)
    with pytest.raises(SpoolError, match="nothing to publish"):
        publish(spool, job, "done")
    assert job.data.exists()


def test_an_upload_under_a_reports_name_in_uploaded_is_never_replaced(spool: Spool) -> None:
    """A file at the place of an upload is not replaced, and neither is lost."""
    job = job_of(spool)
    (job.out / "uploaded").mkdir()
    (job.out / "uploaded" / "a.csv").write_bytes(b"other")
    with pytest.raises(SpoolError, match="Nothing was removed"):
        publish(spool, job, "done")
    with pytest.raises(SpoolError, match="Nothing was removed"):
        open_out(job)
    assert job.data.read_bytes() == b"name\nAnna\n"
    assert (job.out / "uploaded" / "a.csv").read_bytes() == b"other"


def test_open_out_starts_empty(spool: Spool) -> None:
    """A new out/ has nothing of an earlier attempt, and the uploads stay."""
    job = job_of(spool)
    (job.out / "uploaded").mkdir()
    job.data.rename(job.out / "uploaded" / "a.csv")
    assert list(open_out(job).iterdir()) == []
    assert job.data.read_bytes() == b"name\nAnna\n"


def test_clean_removes_nothing_of_an_unpublished_job(spool: Spool) -> None:
    """Cleaning removes nothing of a job that is not published."""
    job = job_of(spool)
    with pytest.raises(SpoolError, match="is not published"):
        clean(spool, job.path)
    assert job.data.exists()


def test_clean_keeps_files_that_are_not_in_the_published_job(spool: Spool) -> None:
    """An upload that is not in done/JOB stays with all files beside it, even if it has a ledger's name."""
    job = job_of(spool, "ledger.sqlite.csv")
    take_apart(job.path)
    job.ledger.touch()
    (spool.done / job.name).mkdir()
    assert clean(spool, job.path) == ["ledger.sqlite.csv"]
    assert sorted(p.name for p in job.path.iterdir()) == ["claim.json", "ledger.sqlite", "ledger.sqlite.csv"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights for a while")
def test_a_service_without_rights_serves_the_files_of_others(tmp_path: Path) -> None:
    """The service claims, settles and publishes a file that it may neither link nor lease."""
    for parent in [tmp_path, *tmp_path.parents][:4]:  # pytest-xdist adds one
        parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o777)
    os.seteuid(65534)
    try:
        spool = Spool(tmp_path / "spool")
        spool.create(shared=True)
        spool.prove()
        os.seteuid(0)
        (spool.incoming / "a.csv").write_bytes(b"name\nAnna\n")
        os.chown(spool.incoming / "a.csv", 4711, 4711)
        (spool.incoming / "a.csv").chmod(0o644)
        os.seteuid(65534)
        job = claim(spool, Drop("a.csv", None, 1.0, 10), clock=SystemClock())
        settled = settle(job)
        open_out(job)
        done = publish(spool, job, "done")
    finally:
        os.seteuid(0)
    assert isinstance(settled, SettledFiles)
    assert "Permission denied" in settled.unconfirmed
    upload = (done / "uploaded" / "a.csv").stat()
    assert (upload.st_uid, upload.st_nlink) == (4711, 1)
    assert not job.path.exists()
