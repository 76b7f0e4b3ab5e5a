"""The states of a drop on disk, and the one system call that leads from each to the next.

I is incoming/, J is processing/JOB/, P is done/JOB/ or failed/JOB/. D and S are the data file and the sidecar
under their own names; S only where the claim names one.

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

What an upload is called never decides anything here: data ends in .csv and the like, sidecars in .yaml and
.yml, so none can be taken for claim.json, ledger.sqlite or out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from spoolama.errors import SpoolError
from spoolama.spool.durable import exists, is_temp, names_in
from spoolama.spool.layout import Spool

__all__ = [
    "CLAIM_FILE",
    "DEFAULT_SIDECAR",
    "LEDGER",
    "OUT",
    "UPLOADED",
    "Claim",
    "State",
    "published_at",
    "read_claim",
    "state_of",
]

CLAIM_FILE = "claim.json"
"""Written before anything moves: what will be moved."""
LEDGER = "ledger.sqlite"
"""The job's ledger; SQLite keeps ledger.sqlite-wal and -shm beside it."""
OUT = "out"
"""What will be published, while it is being written."""
UPLOADED = "uploaded"
"""Where a published job keeps what its user uploaded, always, so that no name can clash with a report's."""
DEFAULT_SIDECAR = "default.yaml"
"""The name of the administrator's default sidecar, copied into a job that brought none."""


class State(Enum):
    """Where a drop is; the table is in this module's docstring."""

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
    """What claim.json says."""

    data: str
    """The data file's name, in incoming and in the job."""
    sidecar: str | None
    """The sidecar's name in the job; None if there is none."""
    default_sidecar: str | None
    """Where the sidecar was copied from, if the user brought none."""
    claimed_at: float
    """Seconds since the epoch."""
    arrived: float
    """When the drop was complete in incoming, seconds since the epoch."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of what the job was given: the data file, and the sidecar if there is one."""
        return (self.data,) if self.sidecar is None else (self.data, self.sidecar)

    def to_bytes(self) -> bytes:
        """As claim.json; bytes of a name that are no UTF-8 survive as escapes."""
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
    """What claim.json of this directory says; None if there is none.

    Raises:
        SpoolError: there is one, and it is damaged.
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
            raise ValueError("a name in it is no file name")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise SpoolError(f"{job / CLAIM_FILE} is damaged ({type(e).__name__}: {e}).") from e
    return claim


def published_at(spool: Spool, name: str) -> Path | None:
    """Where this job was published, if it was."""
    return next((p for p in (spool.done / name, spool.failed / name) if exists(p)), None)


def state_of(spool: Spool, job: Path) -> State:
    """The state of processing/JOB, from nothing but what exists on disk."""
    published = published_at(spool, job.name) is not None
    if not exists(job):
        return State.FINISHED if published else State.DROPPED
    if job.is_symlink() or not job.is_dir():
        return State.UNKNOWN
    out = job / OUT
    if published:
        return State.UNKNOWN if exists(out) else State.PUBLISHED
    try:
        claim = read_claim(job)
    except SpoolError:
        return State.UNKNOWN
    entries = {name for name in names_in(job) if not is_temp(name)}
    if claim is None:
        return State.UNKNOWN if entries else State.OPENED
    return _claimed_state(job, claim, entries)


def _claimed_state(job: Path, claim: Claim, entries: set[str]) -> State:
    """The state of an unpublished job directory with a claim."""
    building = OUT in entries

    def here(name: str) -> bool:
        return name in entries or (building and exists(job / OUT / UPLOADED / name))

    if not here(claim.data):
        return State.UNKNOWN if entries - {CLAIM_FILE, DEFAULT_SIDECAR} else State.CLAIMING
    if claim.sidecar is not None and not here(claim.sidecar):
        return State.UNKNOWN if building or LEDGER in entries or claim.default_sidecar else State.TORN
    if building:
        return State.BUILDING
    return State.CLAIMED if LEDGER in entries else State.SETTLING
