"""Wraps the system calls that change the spool, and writes files that survive a power failure.

A new file survives a power failure only after write, fsync, close, rename to its name, and fsync of the
directory. Without the first fsync the file may be empty, without the second it may have its temporary name.
A renamed directory entry survives after fsync of both directories.

Every change of the spool goes through a `Disk`, which has one method for each system call, so that a test
can stop between any two of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from spoolama.errors import DiskFailed, DiskFull, SpoolError
from spoolama.regular import open_regular

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
# The errors of a kernel or a file system that does not support the flag of renameat2.
_NO_SUCH_FLAG = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


class Disk:
    """The system calls that change the spool, one method each."""

    def mkdir(self, path: Path, mode: int) -> None:
        """Create a directory; FileExistsError if the name exists. The umask applies to the mode."""
        path.mkdir(mode)

    def create(self, path: Path, mode: int) -> int:
        """Create a file and return its descriptor; FileExistsError if the name exists."""
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        os.fchmod(fd, mode)
        return fd

    def write(self, fd: int, data: bytes) -> None:
        """Write all bytes, in as many calls as the kernel needs."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]

    def fsync(self, fd: int) -> None:
        """Wait until the file's content is on the disk. A failure is final for this descriptor."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close, and raise errors that the file system reports only now."""
        os.close(fd)

    def fsync_dir(self, path: Path) -> None:
        """Wait until the directory's entries are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Move, and replace a file at the target. Only for names that belong to the service."""
        source.rename(target)

    def rename_new(self, source: Path, target: Path) -> None:
        """Move, or raise FileExistsError if the target exists."""
        answer = _renameat2(os.fsencode(source), os.fsencode(target))
        if answer == 0:
            return
        if answer not in _NO_SUCH_FLAG:
            raise OSError(answer, os.strerror(answer), str(source), None, str(target))
        # Check and move are two calls here. No other process writes to the directories where this matters.
        if exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        """Create a hard link; FileExistsError if the name exists. Does not follow symbolic links."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def chmod(self, path: Path, mode: int) -> None:
        """Set the permissions."""
        path.chmod(mode)


DISK = Disk()
"""The real disk."""


def _renameat2(source: bytes, target: bytes) -> int:
    """Move without replacing; returns 0 or the errno. Python has no function for this."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)  # glibc 2.28 and later; musl has none
    if call is None:
        return errno.ENOSYS
    if call(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE) == 0:
        return 0
    return ctypes.get_errno()


def exists(path: Path) -> bool:
    """Whether the name exists; also true for a dangling symbolic link."""
    return os.path.lexists(path)


def is_temp(name: str) -> bool:
    """Whether this is a temporary name of `write_atomic` or `write_replace`."""
    return name.startswith(".") and name.endswith(".tmp")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Write a file so that after a power failure it has either the new or the old content.

    Raises:
        DiskFull: no space left; nothing changed.
        DiskFailed: the disk reported an I/O error; nothing changed.
    """
    with in_words(f"writing {path.name}"):
        _write(path, data, mode, disk, durable=True)


def write_replace(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Write a file so that a reader sees the whole old or new content. A power failure may lose both."""
    with in_words(f"writing {path.name}"):
        _write(path, data, mode, disk, durable=False)


def _write(path: Path, data: bytes, mode: int, disk: Disk, *, durable: bool) -> None:
    # The temporary name does not contain the target's, which may have the maximum length.
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
    """Turn disk errors into errors with instructions for the administrator; other OSErrors pass unchanged.

    Args:
        doing: The operation, as in "publishing reviews-1".
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk of the spool is full ({doing}). Nothing is lost. "
                "Free some space; the service then continues by itself."
            ) from e
        if e.errno == errno.EIO:
            raise DiskFailed(
                f"The disk of the spool reported an I/O error ({doing}: {e.strerror}). "
                "Check `journalctl -k` and the disk first."
            ) from e
        if e.errno == errno.EROFS:
            raise SpoolError(
                f"The disk of the spool is mounted read-only ({doing}). Mount it read-write."
            ) from e
        if e.errno == errno.EXDEV:
            raise SpoolError(
                f"A rename inside the spool crosses a file system boundary ({doing}). "
                "incoming, processing, done and failed must be on one mount. With systemd, list their "
                "parent directory in ReadWritePaths= (or StateDirectory=): listed separately, each becomes "
                "a bind mount of its own."
            ) from e
        raise


def names_in(path: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(entry.name for entry in path.iterdir())


def is_regular(path: Path) -> bool:
    """Whether this is a regular file; a symbolic link is not."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex. Reads in chunks."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
