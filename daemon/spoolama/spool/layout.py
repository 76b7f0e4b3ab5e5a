"""The spool's five directories, and the proof that a file can travel through them."""

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
"""How the names of probe files begin; one left by a crash is removed at the next start."""
QUARANTINE = ".quarantine"
"""Where in processing/ lies what nobody understands. Nothing in it is ever deleted."""


@dataclass(frozen=True)
class Spool:
    """A spool: one directory with incoming, processing, done, failed and status, all on one file system."""

    root: Path

    @property
    def incoming(self) -> Path:
        """What users drop."""
        return self.root / "incoming"

    @property
    def processing(self) -> Path:
        """Claimed jobs. Private to the service: that is what freezes a claimed file."""
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
        """What the service says about itself and about each drop."""
        return self.root / "status"

    @property
    def quarantine(self) -> Path:
        """What was found in processing/ and is no state of a drop."""
        return self.processing / QUARANTINE

    def create(self, *, shared: bool = False) -> None:
        """Make the directories that are missing; what exists keeps its permissions, but for processing/.

        Args:
            shared: incoming/ becomes 3770: its group may upload, and only the owner of a file, and the
                service as the owner of the directory, may take it away. The administrator sets the group.
        """
        with in_words(f"making the spool {self.root}"):
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
        """Prove by doing it that the service can claim, work and publish here.

        Comparing device numbers would not do: two bind mounts of one file system have the same number,
        and a rename from one to the other fails all the same.

        Raises:
            SpoolError: in words, with what to change.
            DiskFull: no room for even an empty file.
        """
        for path in (self.incoming, self.processing, self.done, self.failed, self.status):
            if not path.is_dir():
                raise SpoolError(f"{path} is missing. Make it, or run: spoolama init {self.root}")
        if self.processing.stat().st_mode & 0o077:
            raise SpoolError(f"{self.processing} is open to others. Run: chmod 700 {self.processing}")
        incoming = self.incoming.stat()
        if incoming.st_mode & stat.S_ISVTX and os.geteuid() not in (0, incoming.st_uid):
            raise SpoolError(
                f"{self.incoming} has the sticky bit and another owner, so the service could not take "
                f"uploads out of it. Run: chown {os.geteuid()} {self.incoming}"
            )
        name = PROBE + secrets.token_hex(4)
        try:
            with in_words("trying a rename from incoming through processing to done"):
                self._travel(name, disk)
        except PermissionError as e:
            raise SpoolError(
                f"The service (uid {os.geteuid()}) may not write in {self.root}: {e.strerror} "
                f"({e.filename}). incoming, processing, done, failed and status must belong to it."
            ) from e
        finally:
            self._sweep(name)

    def _travel(self, name: str, disk: Disk) -> None:
        """Send an empty file from incoming to processing, and a directory on to done and to failed."""
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
