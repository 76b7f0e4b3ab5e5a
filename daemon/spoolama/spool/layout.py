"""Creates the five directories of a spool and tests that files can be moved between them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from spoolama.errors import SpoolError
from spoolama.spool.durable import DISK, Disk, in_words

__all__ = ["PROBE", "QUARANTINE", "Spool"]

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
