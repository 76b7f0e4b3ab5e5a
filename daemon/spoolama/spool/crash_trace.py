"""Writes a trace when a fatal signal ends the process, so that the next start detects the crash.

A process that ends by SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT (sent by systemd's watchdog) first writes
the stacks of its threads to a file. A process that is killed by SIGKILL writes nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
from collections.abc import Iterator
from pathlib import Path

from spoolama.spool.layout import Spool

__all__ = ["crash_trace", "oom_kills", "tracing_crashes"]

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
