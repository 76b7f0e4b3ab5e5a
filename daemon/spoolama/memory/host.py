"""Reads the memory of this machine and of model processes from /proc and from cgroup v2 files.

Sources: proc_meminfo(5), proc_pid_status(5), and "Memory Interface Files" in the kernel's cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from spoolama.clock import Clock, SystemClock
from spoolama.memory.readings import Host, Runner

SCAN_EVERY_S = 10.0


class HostProbe:
    """Reads the memory of this machine. Not thread-safe; waits for nothing but the kernel.

    Args:
        root: Mount point of procfs.
        cgroup: Mount point of cgroup v2; if it does not exist, no limit applies to this service.
        clock: Determines when all processes are scanned again.
        scan_every_s: Seconds between two scans.
    """

    def __init__(
        self,
        root: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        clock: Clock | None = None,
        *,
        scan_every_s: float = SCAN_EVERY_S,
    ) -> None:
        self._root = root
        self._cgroup = cgroup
        self._clock = clock or SystemClock()
        self._scan_every_s = scan_every_s
        self._found: set[int] = set()
        self._scanned_at: float | None = None

    def host(self) -> Host | None:
        """Return this machine's memory, or the cgroup limit of this service if that is lower.

        None if /proc/meminfo cannot be read (systemd's ProcSubset=pid hides it).
        """
        machine = _numbers(self._root / "meminfo", of_kib=True)
        if "MemTotal" not in machine or "MemAvailable" not in machine:
            return None
        total, available = machine["MemTotal"], machine["MemAvailable"]
        swap_total, swap_free = machine.get("SwapTotal", 0), machine.get("SwapFree", 0)
        bound = None
        for group, name in self._groups():
            most, now = _number(group / "memory.max"), _number(group / "memory.current")
            if most is not None and now is not None and most < machine["MemTotal"]:
                in_use = max(0, now - _reclaimable(_numbers(group / "memory.stat")))
                available = min(available, max(0, most - in_use))
                if most < total:
                    total, bound = most, f"memory.max of {name}"
            most, now = _number(group / "memory.swap.max"), _number(group / "memory.swap.current")
            if most is not None and now is not None:
                swap_total, swap_free = min(swap_total, most), min(swap_free, max(0, most - now))
        return Host(total, available, swap_total, swap_free, bound)

    def look_again(self) -> None:
        """Scan all processes at the next call, because some may have started or ended."""
        self._scanned_at = None

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        """Return the processes that hold a model, by process id: those found by name, and the given ones.

        All processes are scanned every 10 s; between scans only the known ones are read. The result omits
        processes that have ended and processes of other users that systemd's ProtectProc hides.

        Args:
            pids: Process ids that hold a model whatever their name, such as our own child.
        """
        given = frozenset(pids)
        now = self._clock.monotonic()
        if self._scanned_at is None or now - self._scanned_at >= self._scan_every_s:
            self._scanned_at = now
            self._found = {int(entry.name) for entry in self._root.glob("[0-9]*") if entry.name.isdigit()}
        # Read the names each time: another program may have got the process id.
        names = {pid: self._model_program(pid) for pid in self._found | given}
        self._found = {pid for pid, name in names.items() if name}
        read = (self._runner(pid, names[pid]) for pid in sorted(self._found | given))
        return tuple(runner for runner in read if runner)

    def _model_program(self, pid: int) -> str | None:
        """Return `llama-server`, `ollama runner` or `ollama_llama_server`; None for any other program.

        Since 0.30 Ollama starts llama-server. Earlier versions started themselves as `ollama runner`, which
        is still used for MLX; much older ones started a program called ollama_llama_server.
        """
        words = _text(self._root / str(pid) / "cmdline").split("\0")
        program = PurePosixPath(words[0]).name
        if program == "ollama":
            return "ollama runner" if words[1:2] == ["runner"] else None
        return program if program in ("llama-server", "ollama_llama_server") else None

    def _runner(self, pid: int, name: str | None) -> Runner | None:
        """Return the memory of a process; None if it has ended (a zombie has no memory)."""
        folder = self._root / str(pid)
        status = _numbers(folder / "status", of_kib=True)
        if "VmRSS" not in status:
            return None
        name = name or _text(folder / "comm").strip() or "unnamed"
        return Runner(pid, name, status["VmRSS"], status.get("RssAnon"))

    def _groups(self) -> Iterator[tuple[Path, str]]:
        """Yield this process's cgroup and its ancestors, innermost first, each with a name for messages."""
        for line in _text(self._root / "self" / "cgroup").splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":  # the only hierarchy of cgroup v2
                break
        else:
            return
        inner = PurePosixPath(path.lstrip("/"))
        if ".." in inner.parts:  # our group is outside the cgroup namespace of this container
            return
        for group in (inner, *inner.parents):
            yield self._cgroup / group, group.name or "this container"


def _text(file: Path) -> str:
    """Return the text of a kernel file; empty if it cannot be read or disappears while it is read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _reclaimable(stat: dict[str, int]) -> int:
    """Bytes of a cgroup that the kernel reclaims by itself at the limit, like MemAvailable for a machine.

    Counts file pages on both lists: `active` means that a page was used more than once, not that it is
    needed. Shared memory and tmpfs are part of `file` but cannot be dropped; they are on the anonymous lists.
    Locked pages are on neither list. Dirty pages and pages under writeback are not available at once.
    """
    files = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    unwritten = stat.get("file_dirty", 0) + stat.get("file_writeback", 0)
    return max(0, files - unwritten) + stat.get("slab_reclaimable", 0)


def _number(file: Path) -> int | None:
    """Return the number in a control file; None if it says `max` or does not exist."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _numbers(file: Path, *, of_kib: bool = False) -> dict[str, int]:
    """Parse lines of `name number`, or of `Name: number kB` (KiB) into bytes. Other lines are ignored."""
    found: dict[str, int] = {}
    for line in _text(file).splitlines():
        match line.split():
            case [name, number, "kB"] if of_kib and number.isdigit():
                found[name.rstrip(":")] = int(number) * 1024
            case [name, number] if not of_kib and number.isdigit():
                found[name] = int(number)
    return found
