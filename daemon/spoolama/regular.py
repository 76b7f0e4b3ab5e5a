"""Opens regular files that users name, and refuses anything else without blocking.

Opening a FIFO blocks until a process writes to it, and reading a device may never end.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegular(OSError):
    """The path is a directory, a FIFO, a device or a socket."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; follows symbolic links.

    Raises:
        NotRegular: it is not a regular file.
        OSError: it cannot be opened.
    """
    _refuse(path, path.stat())  # before the open, because opening a device may have side effects
    # The file may be replaced by a FIFO after the check; O_NONBLOCK prevents a blocking open.
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
