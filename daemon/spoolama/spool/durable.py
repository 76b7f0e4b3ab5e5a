"""The few system calls that change the spool, and what makes a change last.

A new file lasts through a power cut only after: write, fsync, close, rename to its name, fsync of the
directory. Without the first fsync the file may come back empty, without the second under its temporary name.
A directory entry that moved lasts after an fsync of both directories.

Every change of the spool goes through a `Disk`, one method for each system call, so that a test can stop
the world between any two of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from spoolama.errors import DiskFailed, DiskFull, SpoolError

__all__ = [
    "DISK",
    "Disk",
    "exists",
    "in_words",
    "is_regular",
    "is_temp",
    "names_in",
    "write_atomic",
    "write_replace",
]

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
# What a kernel or a file system without renameat2's flag answers.
_NO_SUCH_FLAG = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


class Disk:
    """The system calls that change the spool. Each method is one of them."""

    def mkdir(self, path: Path, mode: int) -> None:
        """Make a directory; FileExistsError if the name is taken. The umask applies to the mode."""
        path.mkdir(mode)

    def create(self, path: Path, mode: int) -> int:
        """Make a new file and return its descriptor; FileExistsError if the name is taken."""
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        os.fchmod(fd, mode)
        return fd

    def write(self, fd: int, data: bytes) -> None:
        """Write everything, however many calls the kernel makes of it."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]

    def fsync(self, fd: int) -> None:
        """Wait until the file's content is on the disk. A failure is final for this descriptor."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close, and raise what the file system kept back until now."""
        os.close(fd)

    def fsync_dir(self, path: Path) -> None:
        """Wait until the directory's entries are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Move; a file at the target is replaced. Only for names that belong to the service."""
        source.rename(target)

    def rename_new(self, source: Path, target: Path) -> None:
        """Move, and raise FileExistsError rather than replace anything."""
        answer = _renameat2(os.fsencode(source), os.fsencode(target))
        if answer == 0:
            return
        if answer not in _NO_SUCH_FLAG:
            raise OSError(answer, os.strerror(answer), str(source), None, str(target))
        # Checked, then moved: not one call, but nobody else writes to the directories where this matters.
        if exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; FileExistsError if it is taken. Symbolic links are not followed."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Take away a name."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def chmod(self, path: Path, mode: int) -> None:
        """Set the permissions."""
        path.chmod(mode)


DISK = Disk()
"""The machine's own disk."""


def _renameat2(source: bytes, target: bytes) -> int:
    """Move without replacing; 0 or the errno. Python has no call for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)  # glibc 2.28 and later; musl has none
    if call is None:
        return errno.ENOSYS
    if call(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE) == 0:
        return 0
    return ctypes.get_errno()


def exists(path: Path) -> bool:
    """Whether anything has this name, a dangling link too."""
    return os.path.lexists(path)


def is_temp(name: str) -> bool:
    """Whether this is a name that `write_atomic` and `write_replace` use while they write."""
    return name.startswith(".") and name.endswith(".tmp")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Write a file so that after a power cut it is whole, or as it was before.

    Raises:
        DiskFull: no room; nothing changed.
        DiskFailed: the disk did not keep it; nothing changed.
    """
    with in_words(f"writing {path.name}"):
        _write(path, data, mode, disk, durable=True)


def write_replace(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Write a file so that a reader sees the old or the new content whole. A power cut may lose both."""
    with in_words(f"writing {path.name}"):
        _write(path, data, mode, disk, durable=False)


def _write(path: Path, data: bytes, mode: int, disk: Disk, *, durable: bool) -> None:
    # The temporary name does not grow from the target's, which may be as long as names can be.
    temp = path.with_name(f".{secrets.token_hex(6)}.tmp")
    fd = disk.create(temp, mode)
    try:
        try:
            disk.write(fd, data)
            if durable:
                disk.fsync(fd)
        finally:
            disk.close(fd)
        disk.rename(temp, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.unlink(temp)
        raise
    if durable:
        disk.fsync_dir(path.parent)


@contextlib.contextmanager
def in_words(doing: str) -> Iterator[None]:
    """Turn what a disk can say into errors that tell who must do what; other OSErrors pass as they are.

    Args:
        doing: What was being done, as in "publishing reviews-1".
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The spool's disk has no room left ({doing}). Nothing is lost. "
                "Make room; it goes on by itself."
            ) from e
        if e.errno == errno.EIO:
            raise DiskFailed(
                f"The spool's disk did not keep what was written ({doing}: {e.strerror}). "
                "Look at `journalctl -k` and at the disk before anything else."
            ) from e
        if e.errno == errno.EROFS:
            raise SpoolError(f"The spool's disk is mounted read-only ({doing}). Mount it writable.") from e
        if e.errno == errno.EXDEV:
            raise SpoolError(
                f"A rename inside the spool would leave its file system ({doing}). "
                "incoming, processing, done and failed must lie on one mount. Under systemd list their "
                "parent once in ReadWritePaths= (or StateDirectory=): one by one they become bind mounts, "
                "each of its own."
            ) from e
        raise


def names_in(path: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(entry.name for entry in path.iterdir())


def is_regular(path: Path) -> bool:
    """Whether this name is a plain file; a link to one is not."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False
