"""Scans incoming/ and decides which drops can be claimed and which files are held, and why.

A drop is ready when its data file and its sidecar exist, are regular files, readable, with one hard link
each, and quiet: unchanged for a while. Quiet is measured by ctime, because clients preserve mtime, and by how
long this scanner has seen the file unchanged, in case the clock jumps. Quiet does not prove that an upload is
complete (no file system event does); it only delays the claim while the client still writes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path

from spoolama.clock import Clock
from spoolama.errors import InputError
from spoolama.job.rows.data_file import detect
from spoolama.job.yaml_tree import MAX_BYTES
from spoolama.job.yaml_tree import too_large as yaml_too_large
from spoolama.spool.durable import DISK, Disk
from spoolama.spool.layout import Spool
from spoolama.spool.names import DATA_ENDINGS, command_of, cut, data_name, ignored, is_sidecar, pair, readable

_JUMP_S = 1.0
_CONTROL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Drop:
    """A data file, with its sidecar, that can be claimed."""

    data: str
    """The data file's name in incoming."""
    sidecar: str | None
    """The sidecar's name in incoming, if the user uploaded one."""
    arrived: float
    """When it was complete, seconds since the epoch."""
    bytes: int
    """The data file's size."""
    default_sidecar: Path | None = None
    """The administrator's default sidecar, used if there is no other."""


@dataclass(frozen=True, slots=True)
class CommandFile:
    """A command by file: `NAME.cancel` and the like."""

    file: str
    """Its name in incoming."""
    target: str
    """The name that the command applies to: a data file's name, its stem or a job's name."""
    command: str
    """`cancel`, `pause` or `resume`."""


@dataclass(frozen=True)
class ScanResult:
    """The result of one scan of incoming."""

    ready: list[Drop] = field(default_factory=list)
    """Ordered by arrival."""
    held: list[Held] = field(default_factory=list)
    """Held files, by name; at most `MOST_HELD`, the oldest ones."""
    more_held: int = 0
    """Number of further held files that need action by the user."""
    more_waiting: int = 0
    """Number of further held files whose reason may still disappear by itself."""
    commands: list[CommandFile] = field(default_factory=list)
    """Commands, oldest first. The service calls `remove_command` after each."""
    rescan_s: float | None = None
    """Seconds until the next scan is due even without an event; None: no scan is due."""


@dataclass(frozen=True, slots=True)
class ReadyRules:
    """Conditions for claiming a drop."""

    quiet_s: float = 2.0
    """Minimum time without a change."""
    openai_wait_s: float = 10.0
    """How long a drop that needs no sidecar of its own waits for one."""
    unpaired_after_s: float = 600.0
    """After this time a missing data file or sidecar is reported."""
    max_bytes: int | None = None
    """Larger data files are held."""
    min_free_bytes: int = 0
    """No drop is claimed while the disk has less free space than this, or than twice the data file."""
    default_sidecar: Path | None = None
    """The sidecar for drops that need one and have none."""


@dataclass(slots=True)
class _KnownFile:
    """What the scanner remembers of one file. Smaller than a stat_result: there may be many thousands."""

    mode: int
    links: int
    size: int
    changed_s: float
    """Its ctime, seconds since the epoch."""
    identity: tuple[int, int, int, int]
    """Device, inode, size and ctime in nanoseconds; any change of the file changes one of them."""
    since: float
    """Monotonic time from which it has been seen unchanged."""
    openai: bool | None = None
    """Whether its lines are OpenAI batch requests, which need no sidecar; None: not checked yet."""

    @classmethod
    def of(cls, found: os.stat_result, known: _KnownFile | None, now: float) -> _KnownFile:
        """The record of a file; returns `known` if the file is unchanged."""
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)
        if known is not None and known.identity == identity:
            return known
        return cls(found.st_mode, found.st_nlink, found.st_size, found.st_ctime, identity, now)

    @property
    def changed_ns(self) -> int:
        """Its ctime in nanoseconds."""
        return self.identity[3]


class _Notes:
    """Collects why names are held; only the oldest files have their reason listed, the others are counted.

    This keeps the size of status files and journal independent of the number of files in incoming.
    """

    def __init__(self) -> None:
        self._found: list[tuple[int, int, str, bool, Callable[[], HeldReason]]] = []

    def add(
        self, name: str, file: _KnownFile, make: Callable[[], HeldReason], *, waiting: bool = False
    ) -> None:
        """Add a name once.

        Args:
            name: Its name in incoming.
            file: Has the time of its last change.
            make: Creates the note; called only if the note is listed.
            waiting: The `waiting` of the note.
        """
        self._found.append((file.changed_ns, len(self._found), name, waiting, make))

    def result(self) -> tuple[dict[str, HeldReason], int, int]:
        """The notes of the oldest files, and the number of other files: held, and waiting."""
        self._found.sort(key=itemgetter(0, 1))
        others = [waiting for *_, waiting, _ in self._found[MOST_HELD:]]
        notes = {name: make() for _, _, name, _, make in self._found[:MOST_HELD]}
        return notes, others.count(False), others.count(True)


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
    """Free space for an unprivileged process on this path's file system."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def remove_command(spool: Spool, control: CommandFile, *, disk: Disk = DISK) -> None:
    """Remove the file of a command that was executed, or whose failure is in the status."""
    try:
        disk.unlink(spool.incoming / control.file)
    except FileNotFoundError:
        return  # its writer removed it


class Scanner:
    """Scans incoming repeatedly and remembers for how long each file has been unchanged.

    Args:
        readable: Whether the service may read a file. Root may read all files, so tests replace this.
        free: Returns the free bytes at a path.
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
        self._known: dict[str, _KnownFile] = {}
        self._held: dict[str, tuple[str, float]] = {}
        self._now, self._mono = clock.time(), clock.monotonic()
        self._jumped: float | None = None
        self._due: list[float] = []

    def scan(self) -> ScanResult:
        """List incoming and classify each name. Blocks for a directory listing and a few short reads."""
        self._read_clocks()
        self._due = []
        self._list()
        notes = _Notes()
        commands: list[CommandFile] = []
        paired: list[str] = []
        for name, file in sorted(self._known.items(), key=itemgetter(0)):
            if not stat.S_ISREG(file.mode):
                notes.add(name, file, partial(odd_kind, name, file.mode))
            elif data_name(name) is not None or is_sidecar(name):
                paired.append(name)
            elif not self._unchanged_for(file, self._rules.quiet_s):
                notes.add(name, file, partial(arriving, name), waiting=True)
            elif (control := command_of(name)) is not None and file.size <= _CONTROL_BYTES:
                commands.append(CommandFile(name, *control))
            else:
                notes.add(name, file, partial(unsupported, name))
        pairing = pair(paired)
        for name, why in pairing.ambiguous.items():
            notes.add(name, self._known[name], partial(HeldReason, "ambiguous", why))
        for name in pairing.unpaired:
            file = self._known[name]
            waiting = not self._unchanged_for(file, self._rules.unpaired_after_s)
            notes.add(name, file, partial(no_data, name, waiting=waiting), waiting=waiting)
        ready: list[Drop] = []
        for data, sidecar in pairing.sidecar.items():
            try:
                verdict = self._judge(data, sidecar)
            except FileNotFoundError:
                continue  # removed after the listing; an event will follow
            if isinstance(verdict, Drop):
                ready.append(verdict)
            else:
                about = verdict.about or data
                notes.add(about, self._known[about], partial(replace, verdict), waiting=verdict.waiting)
        oldest, more_held, more_waiting = notes.result()
        return ScanResult(
            ready=sorted(ready, key=lambda d: (d.arrived, d.data)),
            held=self._remember(oldest),
            more_held=more_held,
            more_waiting=more_waiting,
            commands=sorted(commands, key=lambda c: (self._known[c.file].changed_ns, c.file)),
            rescan_s=max(0.05, min(self._due)) if self._due else None,
        )

    def _judge(self, data: str, sidecar: str | None) -> Drop | HeldReason:
        """The drop if it can be claimed, else why not. Checks in the order in which a person fixes things."""
        rules = self._rules
        names = [data] if sidecar is None else [data, sidecar]
        for name in names:
            if not self._unchanged_for(self._known[name], rules.quiet_s):
                return arriving(name)
        for name in names:
            found = self._known[name]
            if found.links > 1:
                return hard_linked(name)
            if found.size == 0:
                return empty(name)
            if not self._readable(self._spool.incoming / name):
                return unreadable(name)
        size = self._known[data].size
        if rules.max_bytes is not None and size > rules.max_bytes:
            return too_large(data, size, rules.max_bytes)
        if sidecar is not None and self._known[sidecar].size > MAX_BYTES:
            return sidecar_too_large(sidecar, self._known[sidecar].size)
        default = None
        if sidecar is None:
            openai = self._openai(data)
            default = None if openai else rules.default_sidecar
            needed = not openai and default is None
            if not self._unchanged_for(
                self._known[data], rules.unpaired_after_s if needed else rules.openai_wait_s
            ):
                return no_sidecar(data, waiting=True)
            if needed:
                return no_sidecar(data, waiting=False)
        wanted, free = max(2 * size, rules.min_free_bytes), self._free(self._spool.processing)
        if free < wanted:
            return disk_full(data, free, wanted)
        arrived = min(self._now, max(self._known[name].changed_s for name in names))
        return Drop(data, sidecar, arrived, size, default)

    def _list(self) -> None:
        """Update the known files from the directory."""
        found: dict[str, _KnownFile] = {}
        with os.scandir(self._spool.incoming) as entries:
            for entry in entries:
                if not ignored(entry.name):
                    try:
                        state = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found[entry.name] = _KnownFile.of(state, self._known.get(entry.name), self._mono)
        self._known = found

    def _read_clocks(self) -> None:
        """Read both clocks; if the wall clock was set, ignore old ctimes for a while."""
        now, mono = self._clock.time(), self._clock.monotonic()
        if abs((now - self._now) - (mono - self._mono)) > _JUMP_S:
            self._jumped = mono
        self._now, self._mono = now, mono

    def _unchanged_for(self, file: _KnownFile, seconds: float) -> bool:
        """Whether a file has been unchanged for that long; if not, schedule a scan for when it will be."""
        age = self._mono - file.since
        jumped = self._jumped is not None and self._mono - self._jumped < seconds
        if not jumped:
            age = max(age, self._now - file.changed_s)  # negative if the ctime lies in the future
        if age >= seconds:
            return True
        self._due.append(seconds - age)
        return False

    def _openai(self, name: str) -> bool:
        file = self._known[name]
        if file.openai is None:
            try:
                file.openai = detect(self._spool.incoming / name, name).format == "openai"
            except (InputError, OSError):  # the intake reports this error
                file.openai = False
        return file.openai

    def _remember(self, notes: dict[str, HeldReason]) -> list[Held]:
        """Convert notes to `Held`, with the time since which the reason has been the same."""
        before, self._held = self._held, {}
        for name, note in notes.items():
            code, since = before.get(name, ("", 0.0))
            self._held[name] = (note.code, since if code == note.code else self._now)
        return [
            Held(name, note.code, note.message, self._held[name][1], note.waiting)
            for name, note in sorted(notes.items())
        ]


MOST_HELD = 1000
"""Names that are listed with a reason; any further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Held:
    """A name that stays in incoming."""

    name: str
    """Its name in incoming."""
    code: str
    """Stable name of the reason: `arriving`, `no_sidecar`, `no_data`, `ambiguous`, `unsupported`,
    `not_regular`, `directory`, `hard_linked`, `empty`, `unreadable`, `too_large`, `disk_full`."""
    message: str
    """The reason and the remedy, for a person."""
    since: float
    """Held for this reason since then, seconds since the epoch."""
    waiting: bool = False
    """Whether the cause may still disappear without action."""


@dataclass(frozen=True, slots=True)
class HeldReason:
    """A reason to hold something."""

    code: str
    message: str
    waiting: bool = False
    about: str = ""
    """The affected name, if it is not the data file."""


def odd_kind(name: str, mode: int) -> HeldReason:
    """The note about a name that is not a regular file; `mode` is the st_mode of stat(2)."""
    shown = readable(name)
    if stat.S_ISDIR(mode):
        return HeldReason(
            "directory", f"{shown} is a directory. Put the data file and its sidecar directly into incoming."
        )
    if stat.S_ISLNK(mode):
        return HeldReason("not_regular", f"{shown} is a symbolic link. Upload the file itself.")
    return HeldReason("not_regular", f"{shown} is not a regular file. Upload a regular file.")


def arriving(name: str) -> HeldReason:
    """The file changed within the quiet time."""
    return HeldReason("arriving", f"{readable(name)} is still being uploaded.", waiting=True, about=name)


def unsupported(name: str) -> HeldReason:
    """The name is neither a data file's nor a sidecar's."""
    shown = readable(name)
    if command_of(name) is not None:
        return HeldReason(
            "unsupported",
            f"{shown} has the name of a command, but it is not empty. A command is an empty file.",
        )
    endings = ", ".join(DATA_ENDINGS)
    return HeldReason(
        "unsupported",
        f"{shown} is not a supported file type. The name of a data file ends in {endings} "
        "(optionally followed by .gz or .zst), that of a sidecar in .yaml or .yml.",
    )


def no_data(name: str, *, waiting: bool) -> HeldReason:
    """A sidecar without a data file."""
    shown, stem = readable(name), readable(cut(name)[0])
    known = stem if data_name(cut(name)[0]) else f"{stem}.csv or {stem}.jsonl"
    if waiting:
        return HeldReason("no_data", f"{shown} waits for its data file, such as {known}.", waiting=True)
    return HeldReason("no_data", f"{shown} has no data file. Upload {known}, or remove it.")


def no_sidecar(name: str, *, waiting: bool) -> HeldReason:
    """A data file without a sidecar."""
    parts = data_name(name)
    shown, wanted = readable(name), readable(parts.stem if parts else name) + ".yaml"
    if waiting:
        return HeldReason("no_sidecar", f"{shown} waits for its sidecar, {wanted}.", waiting=True)
    return HeldReason(
        "no_sidecar", f"{shown} has no sidecar. Upload {wanted}, which says what to ask about each row."
    )


def hard_linked(name: str) -> HeldReason:
    """The file has a second hard link, through which it could be changed after the claim."""
    return HeldReason(
        "hard_linked",
        f"{readable(name)} has more than one hard link, so it could be changed through another name. "
        "Remove the other link, or upload a copy.",
        about=name,
    )


def empty(name: str) -> HeldReason:
    """The file has no bytes."""
    return HeldReason("empty", f"{readable(name)} is empty. Upload it again.", about=name)


def unreadable(name: str) -> HeldReason:
    """The service has no permission to read the file."""
    shown = readable(name)
    return HeldReason(
        "unreadable", f"The service has no permission to read {shown}. Run: chmod 644 {shown}", about=name
    )


def too_large(name: str, size: int, limit: int) -> HeldReason:
    """The file is larger than `max_bytes`."""
    return HeldReason(
        "too_large",
        f"{readable(name)} has {_size(size)}; the limit is {_size(limit)}. "
        "Split it, or ask the administrator to raise max_bytes.",
    )


def sidecar_too_large(name: str, size: int) -> HeldReason:
    """The sidecar is larger than the limit; it is not opened."""
    return HeldReason(
        "too_large", f"{readable(name)}: {yaml_too_large(size)}. Upload a smaller one.", about=name
    )


def disk_full(name: str, free: int, wanted: int) -> HeldReason:
    """The disk does not have enough space for the job."""
    return HeldReason(
        "disk_full",
        f"The disk of the spool has {_size(free)} free, but {readable(name)} needs {_size(wanted)}. "
        "The service starts the job as soon as the administrator has freed enough space.",
        waiting=True,
    )


def _size(count: int) -> str:
    """A number of bytes for a person."""
    if count < 1000:
        return f"{count} bytes"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"
