"""Defines the states of a drop on disk and the one system call between each state and the next.

I is incoming/, J is processing/JOB/, P is done/JOB/ or failed/JOB/. D and S are the data file and the sidecar
under their own names; S exists only if the claim names one.

=============  =======================================================  =====================================
state          what exists                                              moves on by
=============  =======================================================  =====================================
DROPPED        I/D, I/S; no J, no P                                     mkdir J
OPENED         J with nothing in it but temporary names                 rename J/.x.tmp -> J/claim.json
CLAIMING       J/claim.json; D still in I (or taken back)               rename I/D -> J/D
TORN           J/claim.json, J/D; no J/S, though the claim names it     rename I/S -> J/S
SETTLING       J/claim.json, J/D, J/S; no ledger: an uploader may       create J/ledger.sqlite, once the
               still write to them                                      lease says that nobody can
CLAIMED        J/claim.json, J/D, J/S, J/ledger.sqlite                  mkdir J/out
BUILDING       the same and J/out (also without ledger: a rejected      rename J/out -> P
               drop); D and S may have a second name, or their only
               one, in J/out/uploaded
PUBLISHED      P; J without out: nothing in J is needed any more        unlink J/..., ledger last, rmdir J
FINISHED       P; no J                                                  nothing: this is the end
UNKNOWN        anything else                                            rename J -> processing/.quarantine/J
=============  =======================================================  =====================================

Backwards, in recovery and when an uploader takes a file back: OPENED and CLAIMING become DROPPED
(unlink J/claim.json, rmdir J). A TORN claim whose sidecar is gone becomes DROPPED (rename J/D -> I/D) or,
where a new D lies there by now, SETTLING without a sidecar (the claim is rewritten).
BUILDING becomes CLAIMED or SETTLING (what is in out/uploaded goes back to J, the rest of out is removed).

The name of an upload cannot clash with claim.json, ledger.sqlite or out: the names of data files end in .csv
and the like, those of sidecars in .yaml or .yml.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from spoolama.errors import SpoolError
from spoolama.spool.durable import DISK, Disk, exists, in_words, is_temp, names_in

PROBE = ".spoolama-probe-"
"""Prefix of the names of probe files; the next start removes one that a crash left."""
QUARANTINE = ".quarantine"
"""Subdirectory of processing/ for files in an unknown state. Nothing in it is ever deleted."""


@dataclass(frozen=True)
class Spool:
    """A spool: one directory with incoming, processing, done, failed and status, all on one file system."""

    root: Path

    @property
    def incoming(self) -> Path:
        """Uploads of the users."""
        return self.root / "incoming"

    @property
    def processing(self) -> Path:
        """Claimed jobs. Only the service has access, so a claimed file cannot be changed."""
        return self.root / "processing"

    @property
    def done(self) -> Path:
        """Published jobs."""
        return self.root / "done"

    @property
    def failed(self) -> Path:
        """Rejected and abandoned jobs."""
        return self.root / "failed"

    @property
    def status(self) -> Path:
        """Status of the service and of each drop."""
        return self.root / "status"

    @property
    def quarantine(self) -> Path:
        """Directories that were found in processing/ in an unknown state."""
        return self.processing / QUARANTINE

    def create(self, *, shared: bool = False) -> None:
        """Create missing directories. Existing ones keep their permissions, except processing/.

        Args:
            shared: incoming/ gets mode 3770: its group may upload, and only the owner of a file and the
                service, as the owner of the directory, may remove it. The administrator sets the group.
        """
        with in_words(f"creating the spool {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            for path, mode in (
                (self.incoming, 0o3770 if shared else 0o755),
                (self.processing, 0o700),
                (self.done, 0o755),
                (self.failed, 0o755),
                (self.status, 0o755),
            ):
                try:
                    path.mkdir()
                except FileExistsError:
                    if path != self.processing:
                        continue
                try:
                    path.chmod(mode)
                except PermissionError as e:
                    raise SpoolError(
                        f"{path} belongs to another user. Run: chown {os.geteuid()} {path}"
                    ) from e

    def prove(self, *, disk: Disk = DISK) -> None:
        """Test with real files that the service can claim, work and publish here.

        Comparing device numbers is not enough: two bind mounts of one file system have the same number,
        but a rename from one to the other fails.

        Raises:
            SpoolError: with instructions to fix it.
            DiskFull: no space even for an empty file.
        """
        for path in (self.incoming, self.processing, self.done, self.failed, self.status):
            if not path.is_dir():
                raise SpoolError(f"{path} is missing. Run: spoolama init {self.root}")
        if self.processing.stat().st_mode & 0o077:
            raise SpoolError(
                f"{self.processing} is accessible to other users. Run: chmod 700 {self.processing}"
            )
        incoming = self.incoming.stat()
        if incoming.st_mode & stat.S_ISVTX and os.geteuid() not in (0, incoming.st_uid):
            raise SpoolError(
                f"{self.incoming} has the sticky bit and another owner, so the service cannot move "
                f"uploads out of it. Run: chown {os.geteuid()} {self.incoming}"
            )
        name = PROBE + secrets.token_hex(4)
        try:
            with in_words("testing a rename from incoming through processing to done"):
                self._travel(name, disk)
        except PermissionError as e:
            raise SpoolError(
                f"The service (uid {os.geteuid()}) has no permission to write in {self.root}: {e.strerror} "
                f"({e.filename}). incoming, processing, done, failed and status must belong to this user."
            ) from e
        finally:
            self._sweep(name)

    def _travel(self, name: str, disk: Disk) -> None:
        """Move an empty file from incoming to processing, and a directory to done and to failed."""
        disk.close(disk.create(self.incoming / name, 0o600))
        disk.rename(self.incoming / name, self.processing / name)
        disk.unlink(self.processing / name)
        disk.mkdir(self.processing / name, 0o755)
        disk.rename_new(self.processing / name, self.done / name)
        disk.rename_new(self.done / name, self.failed / name)
        disk.rmdir(self.failed / name)
        disk.close(disk.create(self.status / name, 0o600))
        disk.unlink(self.status / name)

    def _sweep(self, name: str) -> None:
        for parent in (self.incoming, self.processing, self.done, self.failed, self.status):
            with contextlib.suppress(OSError):
                (parent / name).unlink()
            with contextlib.suppress(OSError):
                (parent / name).rmdir()


CLAIM_FILE = "claim.json"
"""Lists the files to move; written before any file moves."""
LEDGER = "ledger.sqlite"
"""The job's ledger; SQLite also creates ledger.sqlite-wal and ledger.sqlite-shm."""
OUT = "out"
"""The output directory before it is published."""
UPLOADED = "uploaded"
"""Directory of the uploads in a published job, so that no name can clash with a file of the results."""
DEFAULT_SIDECAR = "default.yaml"
"""Name of the copy of the administrator's default sidecar, in a job without its own sidecar."""


class DiskState(Enum):
    """The state of a drop; see the table in this module's docstring."""

    DROPPED = "dropped"
    OPENED = "opened"
    CLAIMING = "claiming"
    TORN = "torn"
    SETTLING = "settling"
    CLAIMED = "claimed"
    BUILDING = "building"
    PUBLISHED = "published"
    FINISHED = "finished"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of claim.json."""

    data: str
    """The data file's name, in incoming and in the job."""
    sidecar: str | None
    """The sidecar's name in the job, or None."""
    default_sidecar: str | None
    """Where the sidecar was copied from, if the user uploaded none."""
    claimed_at: float
    """Seconds since the epoch."""
    arrived: float
    """When the drop was complete in incoming, seconds since the epoch."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the job's data file and, if there is one, its sidecar."""
        return (self.data,) if self.sidecar is None else (self.data, self.sidecar)

    def to_bytes(self) -> bytes:
        """The content of claim.json; bytes of a name that are not UTF-8 are written as escapes."""
        body = {
            "version": 1,
            "data": self.data,
            "sidecar": self.sidecar,
            "default_sidecar": self.default_sidecar,
            "claimed_at": self.claimed_at,
            "arrived": self.arrived,
        }
        return (json.dumps(body, indent=1) + "\n").encode("ascii")


def read_claim(job: Path) -> Claim | None:
    """Read claim.json of this directory; None if it does not exist.

    Raises:
        SpoolError: it is damaged.
    """
    try:
        body: dict[str, Any] = json.loads((job / CLAIM_FILE).read_bytes())
        claim = Claim(
            data=body["data"],
            sidecar=body["sidecar"],
            default_sidecar=body["default_sidecar"],
            claimed_at=float(body["claimed_at"]),
            arrived=float(body["arrived"]),
        )
        names = [claim.data, *([] if claim.sidecar is None else [claim.sidecar])]
        if any(Path(n).name != n or n in ("", ".", "..") for n in names):
            raise ValueError("it has an invalid file name")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise SpoolError(f"{job / CLAIM_FILE} is damaged ({type(e).__name__}: {e}).") from e
    return claim


def published_at(spool: Spool, name: str) -> Path | None:
    """The directory where this job was published, or None."""
    return next((p for p in (spool.done / name, spool.failed / name) if exists(p)), None)


def state_of(spool: Spool, job: Path) -> DiskState:
    """The state of processing/JOB, determined only from the files on disk."""
    published = published_at(spool, job.name) is not None
    if not exists(job):
        return DiskState.FINISHED if published else DiskState.DROPPED
    if job.is_symlink() or not job.is_dir():
        return DiskState.UNKNOWN
    out = job / OUT
    if published:
        return DiskState.UNKNOWN if exists(out) else DiskState.PUBLISHED
    try:
        claim = read_claim(job)
    except SpoolError:
        return DiskState.UNKNOWN
    entries = {name for name in names_in(job) if not is_temp(name)}
    if claim is None:
        return DiskState.UNKNOWN if entries else DiskState.OPENED
    return _claimed_state(job, claim, entries)


def _claimed_state(job: Path, claim: Claim, entries: set[str]) -> DiskState:
    """The state of an unpublished job directory with a claim."""
    building = OUT in entries

    def here(name: str) -> bool:
        return name in entries or (building and exists(job / OUT / UPLOADED / name))

    if not here(claim.data):
        return DiskState.UNKNOWN if entries - {CLAIM_FILE, DEFAULT_SIDECAR} else DiskState.CLAIMING
    if claim.sidecar is not None and not here(claim.sidecar):
        return DiskState.UNKNOWN if building or LEDGER in entries or claim.default_sidecar else DiskState.TORN
    if building:
        return DiskState.BUILDING
    return DiskState.CLAIMED if LEDGER in entries else DiskState.SETTLING
