"""Publishes a finished job: moves its complete output to done/ or failed/ in one rename.

The report writes into the job's `out/`. This module adds the uploads and SHA256SUMS, syncs everything to
disk, and renames `out/` to `done/JOB`. Uploads are always in `uploaded/`, so that their names cannot clash
with those of the results.
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
from spoolama.spool.durable import DISK, Disk, exists, in_words, is_regular, names_in, sha256_of, write_atomic
from spoolama.spool.layout import CLAIM_FILE, LEDGER, OUT, UPLOADED, Claim, Spool, published_at, read_claim

SUMS = "SHA256SUMS"
"""Name of the checksum file, in the format of `sha256sum -c`."""
_LEDGER_FILES = {LEDGER + tail for tail in ("", "-wal", "-shm", "-journal")}
# The kernel refuses a link to a file that the process neither owns nor may write (fs.protected_hardlinks);
# other file systems have no hard links, or a limit on their number.
_NO_LINK = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


def open_out(job: JobDir, *, disk: Disk = DISK) -> Path:
    """Create an empty `out/` for the results; undoes an unfinished `out/` of an earlier attempt first."""
    if exists(job.out):
        take_apart(job.path, disk=disk)
    with in_words(f"publishing {job.name}"):
        disk.mkdir(job.out, 0o755)
    return job.out


def publish(spool: Spool, job: JobDir, where: Literal["done", "failed"], *, disk: Disk = DISK) -> Path:
    """Publish a job whose `out/` has everything except the uploads. Blocks; call it in a thread.

    Returns:
        done/JOB or failed/JOB.

    Raises:
        DiskFull: no space. The job is still in processing; call again with the same `out/` later.
        DiskFailed: the disk reported an I/O error. Start again with `open_out`, with new files.
        SpoolError: the name exists already, or `out/` is missing.
    """
    target = (spool.done if where == "done" else spool.failed) / job.name
    if published_at(spool, job.name) is not None:
        raise SpoolError(f"{target} already exists. Move it away; the job stays in {job.path}.")
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
    """Remove the files that a published job left in processing/, the ledger last.

    Returns:
        Names that were not removed because there is no proof that they are published; then the directory
        stays.
    """
    published = published_at(spool, job.name)
    if published is None or exists(job / OUT):
        raise SpoolError(f"{job.name} is not published, so its files are not removed.")
    # The names here may be removed only after the published name is on disk.
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
    """Undo an unfinished `out/`: move the uploads back to the job directory and remove the rest."""
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
    """Link each upload into out/uploaded. Links of an earlier attempt are kept."""
    uploaded = job / OUT / UPLOADED
    if not exists(uploaded):
        disk.mkdir(uploaded, 0o755)
    for name in note.files:
        source, target = job / name, uploaded / name
        if exists(target):
            if exists(source) and not os.path.samestat(source.lstat(), target.lstat()):
                raise SpoolError(
                    f"{target} has the name of an upload but is another file. Nothing was removed."
                )
            continue
        if not exists(source):
            continue  # it disappeared from the job's directory, so the job was rejected
        if not is_regular(source):  # a drop that was rejected because it is a link or a directory
            disk.rename_new(source, target)
            continue
        try:
            disk.link(source, target)
        except OSError as e:
            if e.errno not in _NO_LINK:
                raise
            disk.rename_new(source, target)


def _files(root: Path) -> Iterator[Path]:
    """All regular files below, in a fixed order; does not follow links."""
    for parent, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if is_regular(path):
                yield path


def _sums(out: Path) -> bytes:
    """SHA256SUMS of everything below `out`; a file that the service may not read has no line."""
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
    """Make everything readable for uploaders and sync it: every file, then every directory, bottom up."""
    uploaded = out / UPLOADED
    for path in _files(out):
        if uploaded not in path.parents:  # an upload keeps the permissions that its owner gave it
            disk.chmod(path, 0o644)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except PermissionError:
            os.sync()  # we may not open it, so we can only ask the kernel to write everything to disk
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
    """Whether a leftover of a published job can be removed without losing the only copy of a file."""
    copy = published / UPLOADED / path.name
    if exists(copy) and os.path.samestat(copy.lstat(), path.lstat()):
        return True
    if path.name in _LEDGER_FILES or path.name == CLAIM_FILE:
        return True
    # The claim lists the uploads; all other files of a job belong to the service.
    return claimed and path.name not in uploads


def _last_goes_the_ledger(name: str) -> tuple[int, str]:
    if name == CLAIM_FILE:
        return 1, name
    # The write-ahead log is removed before its database file.
    return (3 if name == LEDGER else 2 if name in _LEDGER_FILES else 0), name


def _remove(path: Path, disk: Disk) -> None:
    """Remove a file or a tree, call by call."""
    if path.is_symlink() or not path.is_dir():
        disk.unlink(path)
        return
    for name in names_in(path):
        _remove(path / name, disk)
    disk.rmdir(path)
