"""Sends log entries with fields to journald, so that `journalctl SPOOLAMA_JOB=…` works.

Each entry is one datagram to /run/systemd/journal/socket: `KEY=value`, or for values with a newline
`KEY`, a newline, the length as 64 bits little-endian, and the value. An entry too large for a datagram is
sent as a sealed memfd. (systemd's docs/JOURNAL_NATIVE_PROTOCOL.md.)
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

__all__ = ["JOURNAL_SOCKET", "JournalSocket", "connected_to_journal", "encode_entry"]

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def connected_to_journal(env: Mapping[str, str], fd: int) -> bool:
    """Whether this descriptor is the journal stream in $JOURNAL_STREAM."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return False
    return env.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def encode_entry(fields: Mapping[str, str]) -> bytes:
    """Encode an entry for the journal. Names become upper case letters, digits and underscores."""
    parts: list[bytes] = []
    for name, value in fields.items():
        key = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")[:64].encode()
        data = value.encode("utf-8", "backslashreplace")
        if not key:
            continue
        if b"\n" in data:
            parts.append(key + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(key + b"=" + data + b"\n")
    return b"".join(parts)


class JournalSocket:
    """Sends entries without blocking the service."""

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0.2)
        self._path = str(path)

    def send(self, fields: Mapping[str, str]) -> None:
        """Send one entry.

        Raises:
            OSError: the journal does not accept it.
        """
        entry = encode_entry(fields)
        try:
            self._socket.sendto(entry, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_sealed(entry)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_sealed(self, entry: bytes) -> None:
        fd = os.memfd_create("spoolama-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(entry)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            handed_over = array.array("i", [fd])
            self._socket.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed_over)], 0, self._path)
        finally:
            os.close(fd)
