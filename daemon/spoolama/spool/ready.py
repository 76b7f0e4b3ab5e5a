"""What lies in incoming, and what of it can be claimed. The directory decides; events only cause a look.

A drop is ready when its data file and its sidecar are there, plain files, readable, with one name each, and
quiet: unchanged for a while. Quiet is judged by ctime, since clients set mtime to what the file had at home,
and by how long this scanner itself has seen the file unchanged, for when the clock jumps. Quiet is no proof
that an upload is complete (no signal of a file system is); it keeps the file in its client's hands.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path

from spoolama.clock import Clock
from spoolama.job.yaml_tree import MAX_BYTES
from spoolama.spool import held
from spoolama.spool.durable import DISK, Disk
from spoolama.spool.held import Held
from spoolama.spool.layout import Spool
from spoolama.spool.names import control_of, data_name, ignored, is_sidecar, pair
from spoolama.spool.peek import looks_like_openai

__all__ = [
    "Control",
    "Drop",
    "Held",
    "Look",
    "ReadyRules",
    "Scanner",
    "can_read",
    "free_bytes",
    "take_control",
]

_JUMP_S = 1.0
_CONTROL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Drop:
    """Something that can be claimed."""

    data: str
    """The data file's name in incoming."""
    sidecar: str | None
    """The sidecar's name in incoming, if the user brought one."""
    arrived: float
    """When it was complete, seconds since the epoch."""
    bytes: int
    """The data file's length."""
    default_sidecar: Path | None = None
    """The administrator's sidecar that stands in for a missing one."""


@dataclass(frozen=True, slots=True)
class Control:
    """A command by file: `NAME.cancel` and the like."""

    file: str
    """Its name in incoming."""
    target: str
    """What it is about: a data file's name, its stem or a job's name."""
    command: str
    """`cancel`, `pause` or `resume`."""


@dataclass(frozen=True)
class Look:
    """What one look at incoming found."""

    ready: list[Drop] = field(default_factory=list)
    """First come first."""
    held: list[Held] = field(default_factory=list)
    """What stays where it is, by name; of more than `MOST_HELD` names those that have lain there longest."""
    more_held: int = 0
    """How many more are held that nothing will take as they are."""
    more_waiting: int = 0
    """How many more are held that may still come right by themselves."""
    controls: list[Control] = field(default_factory=list)
    """Commands, oldest first. Done with one, the service calls `take_control`."""
    look_again_s: float | None = None
    """After this many seconds something will be due even if no event comes; None: nothing will."""


@dataclass(frozen=True, slots=True)
class ReadyRules:
    """When a drop is taken."""

    quiet_s: float = 2.0
    """Unchanged for this long."""
    openai_wait_s: float = 10.0
    """How long a drop that can do without a sidecar of its own waits for one that may still come."""
    lonely_after_s: float = 600.0
    """After this a missing half counts as missing, no more as on its way."""
    max_bytes: int | None = None
    """Larger data files are held."""
    min_free_bytes: int = 0
    """Nothing is taken while the disk has less than this, or than twice the data file."""
    default_sidecar: Path | None = None
    """For drops that need a sidecar and bring none."""


@dataclass(slots=True)
class _Seen:
    """One file as this scanner knows it. Not a whole stat_result: there may be many thousands."""

    mode: int
    links: int
    size: int
    changed_s: float
    """Its ctime, seconds since the epoch."""
    identity: tuple[int, int, int, int]
    """Device, inode, size and ctime in nanoseconds: any change of the file changes one of them."""
    since: float
    """Monotonic time since which it is unchanged."""
    openai: bool | None = None
    """What the peek said; None before."""

    @classmethod
    def of(cls, found: os.stat_result, known: _Seen | None, now: float) -> _Seen:
        """The file as it is found now; what is known of it, where it is unchanged."""
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)
        if known is not None and known.identity == identity:
            return known
        return cls(found.st_mode, found.st_nlink, found.st_size, found.st_ctime, identity, now)

    @property
    def changed_ns(self) -> int:
        """Its ctime in nanoseconds."""
        return self.identity[3]


class _Notes:
    """Why names are held: of those that have lain there longest, and of the others only how many they are.

    Memory, status files and journal must not grow with what somebody puts into incoming.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str, held.Note]] = []
        """The newest first."""
        self._added = 0
        self.more_held = 0
        self.more_waiting = 0

    def add(self, name: str, seen: _Seen, make: Callable[[], held.Note], *, waiting: bool = False) -> None:
        """Note a name once.

        Args:
            name: As it lies there.
            seen: Says since when.
            make: Makes the note; called only where it may be told.
            waiting: The note's own `waiting`.
        """
        self._added += 1
        place = (-seen.changed_ns, -self._added)
        if len(self._heap) < held.MOST_HELD:
            heapq.heappush(self._heap, (*place, name, make()))
            return
        if place > self._heap[0][:2]:
            waiting = heapq.heapreplace(self._heap, (*place, name, make()))[3].waiting
        if waiting:
            self.more_waiting += 1
        else:
            self.more_held += 1

    def oldest(self) -> dict[str, held.Note]:
        """The notes of those that have lain there longest."""
        return {name: note for _, _, name, note in self._heap}


def can_read(path: Path) -> bool:
    """Whether the service may read this file. FileNotFoundError if it is gone."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """What an unprivileged process can still write on this path's file system."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def take_control(spool: Spool, control: Control, *, disk: Disk = DISK) -> None:
    """Remove a command that was carried out (or could not be, and the status says so)."""
    try:
        disk.unlink(spool.incoming / control.file)
    except FileNotFoundError:
        return  # its writer took it back


def _given(note: held.Note) -> held.Note:
    return note


class Scanner:
    """Looks at incoming again and again, and remembers for how long it has seen each file unchanged.

    Args:
        readable: Whether the service may read a file (root may read all, so tests bring their own).
        free: Free bytes at a path.
    """

    def __init__(
        self,
        spool: Spool,
        rules: ReadyRules,
        clock: Clock,
        *,
        readable: Callable[[Path], bool] = can_read,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._spool = spool
        self._rules = rules
        self._clock = clock
        self._readable = readable
        self._free = free
        self._seen: dict[str, _Seen] = {}
        self._held: dict[str, tuple[str, float]] = {}
        self._now, self._mono = clock.time(), clock.monotonic()
        self._jumped: float | None = None
        self._due: list[float] = []

    def look(self) -> Look:
        """List incoming and decide about each name. Blocks for a directory listing and a few short reads."""
        self._tell_time()
        self._due = []
        self._list()
        notes = _Notes()
        controls: list[Control] = []
        paired: list[str] = []
        for name, seen in sorted(self._seen.items(), key=itemgetter(0)):
            if not stat.S_ISREG(seen.mode):
                notes.add(name, seen, partial(held.odd_kind, name, seen.mode))
            elif data_name(name) is not None or is_sidecar(name):
                paired.append(name)
            elif not self._old(seen, self._rules.quiet_s):
                notes.add(name, seen, partial(held.arriving, name), waiting=True)
            elif (control := control_of(name)) is not None and seen.size <= _CONTROL_BYTES:
                controls.append(Control(name, *control))
            else:
                notes.add(name, seen, partial(held.unsupported, name))
        pairing = pair(paired)
        for name, why in pairing.ambiguous.items():
            notes.add(name, self._seen[name], partial(held.Note, "ambiguous", why))
        for name in pairing.lonely:
            seen = self._seen[name]
            waiting = not self._old(seen, self._rules.lonely_after_s)
            notes.add(name, seen, partial(held.no_data, name, waiting=waiting), waiting=waiting)
        ready: list[Drop] = []
        for data, sidecar in pairing.sidecar.items():
            try:
                verdict = self._judge(data, sidecar)
            except FileNotFoundError:
                continue  # taken back between listing and looking; there will be an event
            if isinstance(verdict, Drop):
                ready.append(verdict)
            else:
                about = verdict.about or data
                notes.add(about, self._seen[about], partial(_given, verdict), waiting=verdict.waiting)
        return Look(
            ready=sorted(ready, key=lambda d: (d.arrived, d.data)),
            held=self._remember(notes.oldest()),
            more_held=notes.more_held,
            more_waiting=notes.more_waiting,
            controls=sorted(controls, key=lambda c: (self._seen[c.file].changed_ns, c.file)),
            look_again_s=max(0.05, min(self._due)) if self._due else None,
        )

    def _judge(self, data: str, sidecar: str | None) -> Drop | held.Note:
        """Whether this drop can be taken, or why not. In the order in which a person would mend things."""
        rules = self._rules
        names = [data] if sidecar is None else [data, sidecar]
        for name in names:
            if not self._old(self._seen[name], rules.quiet_s):
                return held.arriving(name)
        for name in names:
            found = self._seen[name]
            if found.links > 1:
                return held.hard_linked(name)
            if found.size == 0:
                return held.empty(name)
            if not self._readable(self._spool.incoming / name):
                return held.unreadable(name)
        size = self._seen[data].size
        if rules.max_bytes is not None and size > rules.max_bytes:
            return held.too_large(data, size, rules.max_bytes)
        if sidecar is not None and self._seen[sidecar].size > MAX_BYTES:
            return held.sidecar_too_large(sidecar, self._seen[sidecar].size)
        default = None
        if sidecar is None:
            openai = self._openai(data)
            default = None if openai else rules.default_sidecar
            needed = not openai and default is None
            if not self._old(self._seen[data], rules.lonely_after_s if needed else rules.openai_wait_s):
                return held.no_sidecar(data, waiting=True)
            if needed:
                return held.no_sidecar(data, waiting=False)
        wanted, free = max(2 * size, rules.min_free_bytes), self._free(self._spool.processing)
        if free < wanted:
            return held.disk_full(data, free, wanted)
        arrived = min(self._now, max(self._seen[name].changed_s for name in names))
        return Drop(data, sidecar, arrived, size, default)

    def _list(self) -> None:
        """Bring what we know in line with what lies there."""
        found: dict[str, _Seen] = {}
        with os.scandir(self._spool.incoming) as entries:
            for entry in entries:
                if not ignored(entry.name):
                    try:
                        state = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found[entry.name] = _Seen.of(state, self._seen.get(entry.name), self._mono)
        self._seen = found

    def _tell_time(self) -> None:
        """Read both clocks; if the wall clock was set in between, old ctimes say nothing for a while."""
        now, mono = self._clock.time(), self._clock.monotonic()
        if abs((now - self._now) - (mono - self._mono)) > _JUMP_S:
            self._jumped = mono
        self._now, self._mono = now, mono

    def _old(self, seen: _Seen, seconds: float) -> bool:
        """Whether a file is unchanged for that long; if not, a look is due when it will be."""
        age = self._mono - seen.since
        jumped = self._jumped is not None and self._mono - self._jumped < seconds
        if not jumped:
            age = max(age, self._now - seen.changed_s)  # negative if the ctime lies in the future
        if age >= seconds:
            return True
        self._due.append(seconds - age)
        return False

    def _openai(self, name: str) -> bool:
        seen = self._seen[name]
        if seen.openai is None:
            seen.openai = looks_like_openai(self._spool.incoming / name)
        return seen.openai

    def _remember(self, notes: dict[str, held.Note]) -> list[Held]:
        """Since when each name is held for its present reason."""
        before, self._held = self._held, {}
        for name, note in notes.items():
            code, since = before.get(name, ("", 0.0))
            self._held[name] = (note.code, since if code == note.code else self._now)
        return [
            Held(name, note.code, note.message, self._held[name][1], note.waiting)
            for name, note in sorted(notes.items())
        ]
