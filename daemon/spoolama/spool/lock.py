"""Locks the spool for one daemon, and finds out how the previous daemon ended.

The kernel releases the lock when the process ends. A process that ends by SIGSEGV, SIGBUS, SIGFPE, SIGILL or
SIGABRT (sent by systemd's watchdog) first writes the stacks of its threads to a file. A process that is
killed by SIGKILL writes nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from spoolama.clock import Clock, SystemClock
from spoolama.errors import SpoolError, SpoolHeld
from spoolama.spool.durable import write_replace
from spoolama.spool.layout import Spool

HOLDER_FILE = "daemon.json"
"""File in status/ with the holder of the lock. It is only for information."""
LeftBy = Literal["released", "stopping", "killed", "crashed"]
"""How the last daemon ended. `stopping`: killed after a request to stop. `crashed`: ended by an exception, a
fatal signal or the OOM killer. `killed`: no trace of these, so SIGKILL. All since the machine booted."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's unique id of this boot of the machine; empty if unknown."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


class SpoolLock:
    """An exclusive flock on the spool directory itself, so that no stale lock file can remain.

    The descriptor is closed on exec. A child that is forked without exec shares the lock and keeps it:
    start children with `spawn` or `subprocess`. Does not work on NFS before Linux 2.6.12.
    """

    def __init__(self, spool: Spool, clock: Clock | None = None) -> None:
        self._spool = spool
        self._clock = clock or SystemClock()
        self._fd: int | None = None
        self._crashed = False
        self.left: LeftBy = "released"
        """How the previous daemon left the spool."""
        self.crash_trace = ""
        """The trace that the previous daemon wrote when it crashed."""

    def acquire(self) -> None:
        """Lock the spool without waiting.

        Raises:
            SpoolHeld: another daemon holds the lock.
            SpoolError: the directory does not exist.
        """
        if self._fd is not None:
            raise SpoolHeld(
                f"This process (pid {os.getpid()}) has already locked the spool {self._spool.root}."
            )
        try:
            fd = os.open(self._spool.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as e:
            raise SpoolError(
                f"{self._spool.root} is not a spool ({e.strerror}). "
                f"Create one: spoolama init {self._spool.root}"
            ) from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(fd)
            raise SpoolHeld(
                f"{self._holder()} has locked the spool {self._spool.root}. "
                "Stop it first, or use another spool."
            ) from e
        self.crash_trace = crash_trace(self._spool)
        self.left = self._left_by()
        try:
            self._sign()
        except OSError as e:
            os.close(fd)
            raise SpoolError(f"{self._spool.status} cannot be written to: {e.strerror}.") from e
        self._fd = fd

    def _sign(self, *, stopping: bool = False, crashed: bool = False) -> None:
        body = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": self._clock.time(),
            "boot": boot_id(),
            "stopping": stopping,
            "crashed": crashed,
            "oom_kills": oom_kills(),
        }
        write_replace(self._spool.status / HOLDER_FILE, json.dumps(body).encode() + b"\n")

    def note_stopping(self) -> None:
        """Record that the daemon was asked to stop, so that a kill from now on does not count as a crash."""
        with contextlib.suppress(OSError, SpoolError):
            self._sign(stopping=True)

    def note_death(self) -> None:
        """Record that an error ends this daemon; `release` then keeps the holder file, as a crash does."""
        self._crashed = True
        with contextlib.suppress(OSError, SpoolError):
            self._sign(crashed=True)

    def _left_by(self) -> LeftBy:
        """How the previous daemon ended, from its holder file. A file from an earlier boot does not count."""
        try:
            body = json.loads((self._spool.status / HOLDER_FILE).read_bytes())
            if body["boot"] != boot_id():
                return "released"
            if body.get("stopping"):
                return "stopping"
            crashed = body.get("crashed") or self.crash_trace or oom_kills() > int(body.get("oom_kills", 0))
            return "crashed" if crashed else "killed"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "released"

    def release(self) -> None:
        """Release the lock."""
        if self._fd is None:
            return
        if not self._crashed:
            with contextlib.suppress(OSError):
                (self._spool.status / HOLDER_FILE).unlink()
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> SpoolLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _holder(self) -> str:
        """Describe the holder. The file may be from an earlier daemon, so its pid must be alive."""
        try:
            body = json.loads((self._spool.status / HOLDER_FILE).read_bytes())
            pid, host = int(body["pid"]), str(body["host"])
            since = datetime.fromtimestamp(float(body["since"]), UTC)
            if host == platform.node():
                os.kill(pid, 0)
        except PermissionError:
            pass  # alive, of another user
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return "Another daemon (pid unknown)"
        return f"Another daemon (pid {pid} on {host}, since {since:%Y-%m-%d %H:%M:%S} UTC)"


_FILE = "crash.txt"
_MOST_CHARACTERS = 4000
_VMSTAT = Path("/proc/vmstat")


def crash_trace(spool: Spool) -> str:
    """The trace of the last process on this spool; empty if it did not crash."""
    try:
        with (spool.status / _FILE).open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_CHARACTERS)
    except OSError:
        return ""


def oom_kills() -> int:
    """Number of OOM kills since the machine booted; 0 if the kernel does not count them."""
    try:
        found = re.search(r"^oom_kill (\d+)$", _VMSTAT.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return 0
    return 0 if found is None else int(found[1])


@contextlib.contextmanager
def tracing_crashes(spool: Spool) -> Iterator[None]:
    """Write a trace if the process crashes inside this block; removes the trace of an earlier crash."""
    before = faulthandler.is_enabled()
    path = spool.status / _FILE
    try:
        file = path.open("wb")
    except OSError:  # a failure here must not prevent the start
        yield
        return
    with file:
        path.chmod(0o600)
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if before:
                faulthandler.enable()
            path.unlink(missing_ok=True)
