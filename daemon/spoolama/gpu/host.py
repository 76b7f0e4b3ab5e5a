"""Memory of this machine and of the processes that hold models, read from /proc and the control groups.

Sources: proc_meminfo(5), proc_pid_status(5), and "Memory Interface Files" in the kernel's cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from spoolama.clock import Clock, SystemClock
from spoolama.gpu.readings import Host, Runner

__all__ = ["HostProbe"]

SCAN_EVERY_S = 10.0


class HostProbe:
    """Reads memory of this machine. Not for several threads at once; never waits for anything but the kernel.

    Args:
        root: Where procfs is.
        cgroup: Where the second version of the control groups is; without it nothing bounds this service.
        clock: Says when all processes are looked through again.
        scan_every_s: Seconds between two such looks.
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
        """This machine's memory, or the part that the control groups leave to this service, where less.

        None: /proc/meminfo cannot be read (systemd's ProcSubset=pid hides it).
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
        """Processes may have begun or ended: all are looked through at the next call."""
        self._scanned_at = None

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        """Processes that hold a model, by process id: those seen by name, and the given ones.

        All processes are looked through every 10 s; in between only the known ones are read. Processes that
        ended meanwhile are left out, and so are those of others that systemd's ProtectProc hides.

        Args:
            pids: Process ids that hold a model under any name, such as our own child.
        """
        given = frozenset(pids)
        now = self._clock.monotonic()
        if self._scanned_at is None or now - self._scanned_at >= self._scan_every_s:
            self._scanned_at = now
            self._found = {int(entry.name) for entry in self._root.glob("[0-9]*") if entry.name.isdigit()}
        # Names are read anew each time: a process id may have passed to another program.
        names = {pid: self._model_program(pid) for pid in self._found | given}
        self._found = {pid for pid, name in names.items() if name}
        read = (self._runner(pid, names[pid]) for pid in sorted(self._found | given))
        return tuple(runner for runner in read if runner)

    def _model_program(self, pid: int) -> str | None:
        """`llama-server`, `ollama runner` or `ollama_llama_server`; None for any other program.

        Ollama starts llama-server since 0.30; before that itself as `ollama runner`, as for MLX still; and
        long before a program called ollama_llama_server.
        """
        words = _text(self._root / str(pid) / "cmdline").split("\0")
        program = PurePosixPath(words[0]).name
        if program == "ollama":
            return "ollama runner" if words[1:2] == ["runner"] else None
        return program if program in ("llama-server", "ollama_llama_server") else None

    def _runner(self, pid: int, name: str | None) -> Runner | None:
        """Its memory now; None if it has ended (a zombie has no memory)."""
        folder = self._root / str(pid)
        status = _numbers(folder / "status", of_kib=True)
        if "VmRSS" not in status:
            return None
        name = name or _text(folder / "comm").strip() or "unnamed"
        return Runner(pid, name, status["VmRSS"], status.get("RssAnon"))

    def _groups(self) -> Iterator[tuple[Path, str]]:
        """This process's control group and those around it, innermost first, with what to call them."""
        for line in _text(self._root / "self" / "cgroup").splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":  # the only hierarchy of the second version
                break
        else:
            return
        inner = PurePosixPath(path.lstrip("/"))
        if ".." in inner.parts:  # our group lies outside of what this container is shown
            return
        for group in (inner, *inner.parents):
            yield self._cgroup / group, group.name or "this container"


def _text(file: Path) -> str:
    """A small file of the kernel; empty if it cannot be read, or went while it was read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _reclaimable(stat: dict[str, int]) -> int:
    """What the kernel takes back by itself before a group's limit hurts, as MemAvailable has it of a machine.

    Pages of files on both lists: `active` says that they were used more than once, not that they are needed.
    Shared memory and tmpfs are in `file` though they cannot be dropped, but on the lists of anonymous memory;
    locked pages are on neither. Pages that are yet to be written are no room at once.
    """
    files = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    unwritten = stat.get("file_dirty", 0) + stat.get("file_writeback", 0)
    return max(0, files - unwritten) + stat.get("slab_reclaimable", 0)


def _number(file: Path) -> int | None:
    """The number in a control file; None if there is none: `max`, or no such file."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _numbers(file: Path, *, of_kib: bool = False) -> dict[str, int]:
    """`name number` on each line; or `Name: number kB`, which are KiB, in bytes. Other lines are left out."""
    found: dict[str, int] = {}
    for line in _text(file).splitlines():
        match line.split():
            case [name, number, "kB"] if of_kib and number.isdigit():
                found[name.rstrip(":")] = int(number) * 1024
            case [name, number] if not of_kib and number.isdigit():
                found[name] = int(number)
    return found
