"""What stays in incoming, and what its owner is told about it. Nothing held is ever deleted or moved."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from spoolama.job.yaml_tree import too_large as yaml_too_large
from spoolama.spool.names import DATA_ENDINGS, control_of, cut, data_name, readable

__all__ = ["MOST_HELD", "Held", "Note"]

MOST_HELD = 1000
"""Names that are told of one by one; of more it is told how many they are."""


@dataclass(frozen=True, slots=True)
class Held:
    """A name that stays in incoming."""

    name: str
    """As it lies there."""
    code: str
    """Stable name of the reason: `arriving`, `no_sidecar`, `no_data`, `ambiguous`, `unsupported`,
    `not_regular`, `directory`, `hard_linked`, `empty`, `unreadable`, `too_large`, `disk_full`."""
    message: str
    """In words: what is the matter and who must do what."""
    since: float
    """Held for this reason since then, seconds since the epoch."""
    waiting: bool = False
    """It may still come right by itself; nobody needs to be told yet."""


@dataclass(frozen=True, slots=True)
class Note:
    """A reason to hold something."""

    code: str
    message: str
    waiting: bool = False
    about: str = ""
    """The name it is about, where that is not the data file."""


def odd_kind(name: str, mode: int) -> Note:
    """What to say of a name that is no plain file; `mode` is that of stat(2)."""
    shown = readable(name)
    if stat.S_ISDIR(mode):
        return Note(
            "directory", f"{shown} is a directory. Put the data file and its sidecar into incoming itself."
        )
    if stat.S_ISLNK(mode):
        return Note("not_regular", f"{shown} is a link. Upload the file itself.")
    return Note("not_regular", f"{shown} is no plain file. Upload a plain file.")


def arriving(name: str) -> Note:
    """Changed a moment ago."""
    return Note("arriving", f"{readable(name)} is still arriving.", waiting=True, about=name)


def unsupported(name: str) -> Note:
    """Neither data nor sidecar."""
    shown = readable(name)
    if control_of(name) is not None:
        return Note(
            "unsupported", f"{shown} is named like a command, but it has content. A command is an empty file."
        )
    endings = ", ".join(DATA_ENDINGS)
    return Note(
        "unsupported",
        f"{shown} is no kind of file that is answered here. Data ends in {endings} (also with .gz or .zst), "
        "a sidecar in .yaml or .yml.",
    )


def no_data(name: str, *, waiting: bool) -> Note:
    """A sidecar on its own."""
    shown, stem = readable(name), readable(cut(name)[0])
    known = stem if data_name(cut(name)[0]) else f"{stem}.csv or {stem}.jsonl"
    if waiting:
        return Note("no_data", f"{shown} waits for its data file, such as {known}.", waiting=True)
    return Note("no_data", f"{shown} has no data file. Upload {known}, or take it away.")


def no_sidecar(name: str, *, waiting: bool) -> Note:
    """A data file on its own."""
    parts = data_name(name)
    shown, wanted = readable(name), readable(parts.stem if parts else name) + ".yaml"
    if waiting:
        return Note("no_sidecar", f"{shown} waits for its sidecar, {wanted}.", waiting=True)
    return Note(
        "no_sidecar", f"{shown} has no sidecar. Upload {wanted}, which says what to ask about each row."
    )


def hard_linked(name: str) -> Note:
    """It has another name, by which it could be changed after the claim."""
    return Note(
        "hard_linked",
        f"{readable(name)} has a second name on this disk, by which it could be changed at any time. "
        "Take the other name away, or upload a copy.",
        about=name,
    )


def empty(name: str) -> Note:
    """No bytes at all."""
    return Note("empty", f"{readable(name)} is empty. Upload it again.", about=name)


def unreadable(name: str) -> Note:
    """Closed to the service."""
    shown = readable(name)
    return Note("unreadable", f"{shown} is closed to the service. Run: chmod 644 {shown}", about=name)


def too_large(name: str, size: int, limit: int) -> Note:
    """More than the administrator allows."""
    return Note(
        "too_large",
        f"{readable(name)} has {_size(size)}; the limit here is {_size(limit)}. "
        "Split it, or ask the administrator to raise max_bytes.",
    )


def sidecar_too_large(name: str, size: int) -> Note:
    """More than any sidecar needs; it is not opened."""
    return Note("too_large", f"{readable(name)}: {yaml_too_large(size)}. Upload a smaller one.", about=name)


def disk_full(name: str, free: int, wanted: int) -> Note:
    """Not enough room to work on it."""
    return Note(
        "disk_full",
        f"The spool's disk has {_size(free)} left and {readable(name)} needs {_size(wanted)}. "
        "It is taken as soon as the administrator has made room.",
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
