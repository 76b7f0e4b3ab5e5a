"""A disk that ends the process between any two system calls, is full, or fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from spoolama.spool.durable import Disk


class Killed(BaseException):
    """The process ended here, as by kill -9, so no error handler may act."""


class ScriptedDisk(Disk):
    """Counts the calls that change the disk and ends or fails one of them.

    Real files change; only fsync is left out, so that thousands of deaths can be tried.

    Args:
        kill_at: The process dies at the call with this number (from 1); a write is then half done.
        fail_at: The call with this number raises `fail_with` once.
        refuse: Calls that always fail, by name, with their errno.
    """

    def __init__(
        self,
        *,
        kill_at: int | None = None,
        fail_at: int | None = None,
        fail_with: int = errno.ENOSPC,
        refuse: Mapping[str, int] | None = None,
    ) -> None:
        self._kill_at = kill_at
        self._fail_at = fail_at
        self._fail_with = fail_with
        self._refuse = refuse or {}
        self._dead = False
        self.calls: list[tuple[str, str]] = []
        """Name and subject of each call."""
        self.synced: list[set[int]] = [set()]
        """Inodes that were synced, before each call."""

    def _step(self, call: str, about: Path | int) -> None:
        if self._dead:
            raise Killed(call)
        self.calls.append((call, about.name if isinstance(about, Path) else f"fd {about}"))
        self.synced.append(set(self.synced[-1]))
        if len(self.calls) == self._kill_at:
            self._dead = True
            raise Killed(call)
        number = self._fail_with if len(self.calls) == self._fail_at else self._refuse.get(call)
        if number is not None:
            raise OSError(number, os.strerror(number), self.calls[-1][1])

    def mkdir(self, path: Path, mode: int) -> None:
        self._step("mkdir", path)
        super().mkdir(path, mode)

    def create(self, path: Path, mode: int) -> int:
        self._step("create", path)
        return super().create(path, mode)

    def write(self, fd: int, data: bytes) -> None:
        try:
            self._step("write", fd)
        except Killed:
            os.write(fd, data[: len(data) // 2])
            raise
        super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self._step("fsync", fd)
        self.synced[-1].add(os.fstat(fd).st_ino)

    def close(self, fd: int) -> None:
        super().close(fd)  # the kernel closes the files of the dead process

    def fsync_dir(self, path: Path) -> None:
        self._step("fsync_dir", path)
        self.synced[-1].add(path.stat().st_ino)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", target)
        super().rename(source, target)

    def rename_new(self, source: Path, target: Path) -> None:
        self._step("rename_new", target)
        super().rename_new(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step("link", target)
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink", path)
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self._step("rmdir", path)
        super().rmdir(path)

    def chmod(self, path: Path, mode: int) -> None:
        self._step("chmod", path)
        super().chmod(path, mode)
