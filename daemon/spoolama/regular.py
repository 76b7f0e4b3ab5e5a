"""Opening files that people name: a regular file is opened, anything else is refused at once.

Opening a FIFO waits until somebody writes to it, and a device may never end.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

__all__ = ["NotRegular", "open_regular"]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegular(OSError):
    """The name is that of a directory, a FIFO, a device or a socket."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; links are followed.

    Raises:
        NotRegular: it is something else.
        OSError: it cannot be opened.
    """
    _refuse(path, path.stat())  # first, since opening a device may do something
    # It may become a FIFO between the two: then opening it does not wait either.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse(path, os.fstat(fd))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _refuse(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise NotRegular(f"{path} is {kind}, not a regular file")
