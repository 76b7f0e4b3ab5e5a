"""Explains why a file stays in incoming/. A held file is never deleted or moved."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from spoolama.job.yaml_tree import too_large as yaml_too_large
from spoolama.spool.names import DATA_ENDINGS, control_of, cut, data_name, readable

__all__ = ["MOST_HELD", "Held", "Note"]

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
class Note:
    """A reason to hold something."""

    code: str
    message: str
    waiting: bool = False
    about: str = ""
    """The affected name, if it is not the data file."""


def odd_kind(name: str, mode: int) -> Note:
    """The note about a name that is not a regular file; `mode` is the st_mode of stat(2)."""
    shown = readable(name)
    if stat.S_ISDIR(mode):
        return Note(
            "directory", f"{shown} is a directory. Put the data file and its sidecar directly into incoming."
        )
    if stat.S_ISLNK(mode):
        return Note("not_regular", f"{shown} is a symbolic link. Upload the file itself.")
    return Note("not_regular", f"{shown} is not a regular file. Upload a regular file.")


def arriving(name: str) -> Note:
    """The file changed within the quiet time."""
    return Note("arriving", f"{readable(name)} is still being uploaded.", waiting=True, about=name)


def unsupported(name: str) -> Note:
    """The name is neither a data file's nor a sidecar's."""
    shown = readable(name)
    if control_of(name) is not None:
        return Note(
            "unsupported",
            f"{shown} has the name of a command, but it is not empty. A command is an empty file.",
        )
    endings = ", ".join(DATA_ENDINGS)
    return Note(
        "unsupported",
        f"{shown} is not a supported file type. The name of a data file ends in {endings} "
        "(optionally followed by .gz or .zst), that of a sidecar in .yaml or .yml.",
    )


def no_data(name: str, *, waiting: bool) -> Note:
    """A sidecar without a data file."""
    shown, stem = readable(name), readable(cut(name)[0])
    known = stem if data_name(cut(name)[0]) else f"{stem}.csv or {stem}.jsonl"
    if waiting:
        return Note("no_data", f"{shown} waits for its data file, such as {known}.", waiting=True)
    return Note("no_data", f"{shown} has no data file. Upload {known}, or remove it.")


def no_sidecar(name: str, *, waiting: bool) -> Note:
    """A data file without a sidecar."""
    parts = data_name(name)
    shown, wanted = readable(name), readable(parts.stem if parts else name) + ".yaml"
    if waiting:
        return Note("no_sidecar", f"{shown} waits for its sidecar, {wanted}.", waiting=True)
    return Note(
        "no_sidecar", f"{shown} has no sidecar. Upload {wanted}, which says what to ask about each row."
    )


def hard_linked(name: str) -> Note:
    """The file has a second hard link, through which it could be changed after the claim."""
    return Note(
        "hard_linked",
        f"{readable(name)} has more than one hard link, so it could be changed through another name. "
        "Remove the other link, or upload a copy.",
        about=name,
    )


def empty(name: str) -> Note:
    """The file has no bytes."""
    return Note("empty", f"{readable(name)} is empty. Upload it again.", about=name)


def unreadable(name: str) -> Note:
    """The service has no permission to read the file."""
    shown = readable(name)
    return Note(
        "unreadable", f"The service has no permission to read {shown}. Run: chmod 644 {shown}", about=name
    )


def too_large(name: str, size: int, limit: int) -> Note:
    """The file is larger than `max_bytes`."""
    return Note(
        "too_large",
        f"{readable(name)} has {_size(size)}; the limit is {_size(limit)}. "
        "Split it, or ask the administrator to raise max_bytes.",
    )


def sidecar_too_large(name: str, size: int) -> Note:
    """The sidecar is larger than the limit; it is not opened."""
    return Note("too_large", f"{readable(name)}: {yaml_too_large(size)}. Upload a smaller one.", about=name)


def disk_full(name: str, free: int, wanted: int) -> Note:
    """The disk does not have enough space for the job."""
    return Note(
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
