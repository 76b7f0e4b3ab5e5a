"""The load of the machine by other programs during a run, to recognise a disturbed run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)
"""Fields of the line `cpu` in /proc/stat without work: idle, iowait (proc_stat(5))."""


class Neighbours:
    """Measures from its creation on.

    Args:
        pids: Our processes besides this one.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)
        self._began = time.monotonic()
        self._busy_s, self._ours_s = _busy(), self._ours()

    def share(self) -> float | None:
        """Return the share of all cores that other processes or virtual machines took; None: unknown."""
        busy_s, ours_s = _busy(), self._ours()
        if busy_s is None or self._busy_s is None or ours_s is None or self._ours_s is None:
            return None
        others_s = busy_s - self._busy_s - (ours_s - self._ours_s)
        cores_s = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, others_s / cores_s)

    def _ours(self) -> float | None:
        try:
            return time.process_time() + sum(map(_used, self._pids))
        except OSError:
            return None


def _busy() -> float | None:
    """Return the busy seconds of the cores, stolen ones included."""
    try:
        head = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    return sum(int(ticks) for place, ticks in enumerate(head) if place not in _IDLE) * _TICK_S


def _used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S  # utime and stime, proc_pid_stat(5)
