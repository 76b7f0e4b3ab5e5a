"""Copies a drop into incoming/ so that the service sees it completely or not at all.

Both files are written with dot names, synced, and then renamed: first the data file, then the sidecar.
Existing files are never replaced.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from spoolama.cli.checking import CheckedFiles
from spoolama.errors import SpoolError
from spoolama.regular import open_regular
from spoolama.spool.durable import DISK, Disk, in_words
from spoolama.spool.layout import Spool

__all__ = ["place"]

_CHUNK = 1024 * 1024


def place(spool: Spool, drop: CheckedFiles, *, disk: Disk = DISK) -> None:
    """Copy a drop into incoming/.

    Raises:
        SpoolError: one of the names exists already, or the user has no permission.
    """
    sources = [drop.data] if drop.sidecar is None else [drop.data, drop.sidecar]
    temps: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        with in_words(f"copying {drop.data.name}"):
            for source in sources:
                temp = spool.incoming / f".{secrets.token_hex(6)}.submit"
                temps.append((temp, spool.incoming / source.name))
                _copy(source, temp, disk)
            for temp, target in temps:
                disk.rename_new(temp, target)
                placed.append(target)
            disk.fsync_dir(spool.incoming)
    except FileExistsError as error:
        for target in placed:  # remove the data file without its sidecar
            with contextlib.suppress(OSError):
                disk.unlink(target)
        raise SpoolError(
            f"incoming/ already has a file {Path(str(error.filename2 or error.filename)).name}. "
            "Wait until it is processed, or rename your file."
        ) from error
    except FileNotFoundError as error:
        raise SpoolError(f"{error.filename} does not exist. Check that {spool.root} is a spool.") from error
    except PermissionError as error:
        raise SpoolError(f"No permission to write to {spool.incoming}. Ask the administrator.") from error
    finally:
        for temp, _ in temps:
            with contextlib.suppress(OSError):
                disk.unlink(temp)


def _copy(source: Path, target: Path, disk: Disk) -> None:
    # Readable by all, because the service runs as another user. Claimed files are private.
    fd = disk.create(target, 0o644)
    try:
        with open_regular(source) as file:
            while chunk := file.read(_CHUNK):
                disk.write(fd, chunk)
        disk.fsync(fd)
    finally:
        os.close(fd)
