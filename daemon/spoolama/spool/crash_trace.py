"""The trace of a crash: what a fatal signal leaves behind, so that the next start knows that there was one.

A process that ends by SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT (systemd's watchdog sends that) writes the
stacks of its threads into a file first. A process that somebody kills by SIGKILL writes nothing.
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
    """What the last process on this spool wrote at its crash; empty if it did not crash."""
    try:
        with (spool.status / _FILE).open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_CHARACTERS)
    except OSError:
        return ""


def oom_kills() -> int:
    """Processes that the kernel ended for want of memory since it started; 0 where it does not count them."""
    try:
        found = re.search(r"^oom_kill (\d+)$", _VMSTAT.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return 0
    return 0 if found is None else int(found[1])


@contextlib.contextmanager
def tracing_crashes(spool: Spool) -> Iterator[None]:
    """Have a crash inside this block write its trace; a trace of an earlier one is removed."""
    before = faulthandler.is_enabled()
    path = spool.status / _FILE
    try:
        file = path.open("wb")
    except OSError:  # nothing here may hinder the start
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
