"""Publishing: a finished job appears in done/ or failed/ complete, in one rename.

The report writes into the job's `out/`; here the uploads and SHA256SUMS are added, everything is made to
last, and `out/` becomes `done/JOB`. Uploads always lie under `uploaded/`, so that no name of theirs meets a
report's.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from spoolama.errors import SpoolError
from spoolama.spool.claim import JobDir
from spoolama.spool.content import sha256_of
from spoolama.spool.durable import DISK, Disk, exists, in_words, is_regular, names_in, write_atomic
from spoolama.spool.layout import Spool
from spoolama.spool.states import CLAIM_FILE, LEDGER, OUT, UPLOADED, Claim, published_at, read_claim

__all__ = ["SUMS", "clean", "open_out", "publish", "take_apart"]

SUMS = "SHA256SUMS"
"""As `sha256sum -c` reads it."""
_LEDGER_FILES = {LEDGER + tail for tail in ("", "-wal", "-shm", "-journal")}
# The kernel lets nobody link a file that he does not own and may not write (fs.protected_hardlinks);
# other file systems have no links, or too few.
_NO_LINK = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


def open_out(job: JobDir, *, disk: Disk = DISK) -> Path:
    """Make an empty `out/` to write a report into; what an earlier try left there is taken apart first."""
    if exists(job.out):
        take_apart(job.path, disk=disk)
    with in_words(f"publishing {job.name}"):
        disk.mkdir(job.out, 0o755)
    return job.out


def publish(spool: Spool, job: JobDir, where: Literal["done", "failed"], *, disk: Disk = DISK) -> Path:
    """Publish a job whose `out/` has everything but the uploads. Blocks; call it in a thread.

    Returns:
        done/JOB or failed/JOB.

    Raises:
        DiskFull: no room. The job is still in processing; call again when there is, with the same `out/`.
        DiskFailed: the disk did not keep something. Begin again with `open_out`: new files, new descriptors.
        SpoolError: the name is taken, or there is no `out/`.
    """
    target = (spool.done if where == "done" else spool.failed) / job.name
    if published_at(spool, job.name) is not None:
        raise SpoolError(f"{target} exists already. Move it away; the job stays in {job.path}.")
    if not exists(job.out):
        raise SpoolError(f"{job.name} has nothing to publish: {job.out} is missing.")
    note = read_claim(job.path)
    if note is None:
        raise SpoolError(f"{job.path} has no {CLAIM_FILE}, so it cannot be published.")
    with in_words(f"publishing {job.name}"):
        _add_uploads(job.path, note, disk)
        write_atomic(job.out / SUMS, _sums(job.out), disk=disk)
        _make_last(job.out, disk)
        disk.rename_new(job.out, target)
        clean(spool, job.path, disk=disk)
    return target


def clean(spool: Spool, job: Path, *, disk: Disk = DISK) -> list[str]:
    """Remove what a published job left in processing/, the ledger last.

    Returns:
        Names that were not removed because nothing proves that they are published; the directory then stays.
    """
    published = published_at(spool, job.name)
    if published is None or exists(job / OUT):
        raise SpoolError(f"{job.name} is not published, so nothing of it is removed.")
    # Only when the published name lasts may the names here go.
    disk.fsync_dir(published.parent)
    disk.fsync_dir(job)
    note = read_claim(job)
    uploads = () if note is None else note.files
    kept = [n for n in names_in(job) if not _may_go(job / n, published, uploads, claimed=note is not None)]
    if kept:
        return kept
    for name in sorted(names_in(job), key=_last_goes_the_ledger):
        _remove(job / name, disk)
    disk.rmdir(job)
    disk.fsync_dir(job.parent)
    return []


def take_apart(job: Path, *, disk: Disk = DISK) -> None:
    """Undo an unfinished `out/`: the uploads go back beside the ledger, the rest is removed."""
    uploaded = job / OUT / UPLOADED
    if exists(uploaded):
        for name in names_in(uploaded):
            if not exists(job / name):
                disk.rename_new(uploaded / name, job / name)
            elif not os.path.samestat((uploaded / name).lstat(), (job / name).lstat()):
                raise SpoolError(f"{uploaded / name} and {job / name} differ. Nothing was removed.")
        disk.fsync_dir(job)
    _remove(job / OUT, disk)


def _add_uploads(job: Path, note: Claim, disk: Disk) -> None:
    """Give each upload its name in out/uploaded. What a try before this one did already is left as it is."""
    uploaded = job / OUT / UPLOADED
    if not exists(uploaded):
        disk.mkdir(uploaded, 0o755)
    for name in note.files:
        source, target = job / name, uploaded / name
        if exists(target):
            if exists(source) and not os.path.samestat(source.lstat(), target.lstat()):
                raise SpoolError(f"{target} is in the way of an upload. Nothing was removed.")
            continue
        if not exists(source):
            continue  # it vanished from the job's directory, and the job was refused for that
        if not is_regular(source):  # a drop that was refused for being a link or a directory
            disk.rename_new(source, target)
            continue
        try:
            disk.link(source, target)
        except OSError as e:
            if e.errno not in _NO_LINK:
                raise
            disk.rename_new(source, target)


def _files(root: Path) -> Iterator[Path]:
    """All plain files below, in a fixed order; links are not followed."""
    for parent, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if is_regular(path):
                yield path


def _sums(out: Path) -> bytes:
    """SHA256SUMS over everything below `out`; a file closed to the service has no line."""
    lines = []
    for path in _files(out):
        name = os.fsencode(path.relative_to(out))
        if name == os.fsencode(SUMS):
            continue
        with contextlib.suppress(PermissionError):
            escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
            mark = b"\\" if escaped != name else b""
            lines.append(mark + sha256_of(path).encode() + b"  " + escaped + b"\n")
    return b"".join(lines)


def _make_last(out: Path, disk: Disk) -> None:
    """Readable for uploaders, and on the disk: every file, then every directory from the bottom up."""
    uploaded = out / UPLOADED
    for path in _files(out):
        if uploaded not in path.parents:  # an upload keeps the permissions that its owner gave it
            disk.chmod(path, 0o644)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except PermissionError:
            os.sync()  # not ours to open: all that can be done is to have the kernel write everything out
            continue
        try:
            disk.fsync(fd)
        finally:
            os.close(fd)
    for parent, _, _ in os.walk(out, topdown=False):
        if uploaded not in Path(parent).parents:
            disk.chmod(Path(parent), 0o755)
            disk.fsync_dir(Path(parent))


def _may_go(path: Path, published: Path, uploads: tuple[str, ...], *, claimed: bool) -> bool:
    """Whether a leftover of a published job is not the only copy of anything."""
    copy = published / UPLOADED / path.name
    if exists(copy) and os.path.samestat(copy.lstat(), path.lstat()):
        return True
    if path.name in _LEDGER_FILES or path.name == CLAIM_FILE:
        return True
    # With the claim there, it is known what was uploaded; everything else in a job is the service's own.
    return claimed and path.name not in uploads


def _last_goes_the_ledger(name: str) -> tuple[int, str]:
    if name == CLAIM_FILE:
        return 1, name
    # The write-ahead log goes before the file that it belongs to.
    return (3 if name == LEDGER else 2 if name in _LEDGER_FILES else 0), name


def _remove(path: Path, disk: Disk) -> None:
    """Remove a file or a tree, call by call."""
    if path.is_symlink() or not path.is_dir():
        disk.unlink(path)
        return
    for name in names_in(path):
        _remove(path / name, disk)
    disk.rmdir(path)
