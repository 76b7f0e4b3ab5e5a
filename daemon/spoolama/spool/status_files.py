"""Writes the files in status/, from which users read the state of the service and of their drops."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from spoolama.spool.durable import DISK, Disk, write_replace
from spoolama.spool.layout import Spool
from spoolama.spool.lock import HOLDER_FILE

SERVICE_JSON = "service.json"
SERVICE_TEXT = "service.txt"
_TAKEN = {SERVICE_JSON, SERVICE_TEXT, HOLDER_FILE}
_NAME_MAX = 255


def status_name(dropped: str) -> str:
    """The name of a drop's status file: the data file's whole name and `.json`.

    It is unique. If the name is too long, or is one of the service's own, it gets a part of its hash.
    """
    plain = dropped + ".json"
    raw = os.fsencode(plain)
    if len(raw) <= _NAME_MAX and plain not in _TAKEN:
        return plain
    mark = "~" + hashlib.sha256(raw).hexdigest()[:16] + ".json"
    room = _NAME_MAX - len(mark)
    # Cut by bytes; removes a character that is cut in the middle.
    return os.fsdecode(os.fsencode(dropped)[:room].decode("utf-8", "ignore")) + mark


class StatusBoard:
    """Writes the files of status/: replaced atomically, readable by all, not written if unchanged."""

    def __init__(self, spool: Spool, *, disk: Disk = DISK) -> None:
        self._dir = spool.status
        self._disk = disk

    def write(self, name: str, payload: Mapping[str, Any]) -> bool:
        """Write the status of a drop.

        Args:
            name: The dropped data file's name or, for a held file, its name in incoming.
            payload: JSON values.

        Returns:
            Whether anything changed.
        """
        return self._put(status_name(name), _json(payload))

    def write_service(self, payload: Mapping[str, Any], text: str) -> bool:
        """Write the status of the service, as JSON and as text."""
        changed = self._put(SERVICE_JSON, _json(payload))
        return self._put(SERVICE_TEXT, text.encode("utf-8", "backslashreplace")) or changed

    def forget(self, name: str) -> None:
        """Remove the status of a drop if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self._dir / status_name(name))

    def _put(self, name: str, data: bytes) -> bool:
        path = self._dir / name
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                return False
        write_replace(path, data, disk=self._disk)
        return True


def _json(payload: Mapping[str, Any]) -> bytes:
    text = json.dumps(payload, ensure_ascii=False, indent=2) + "\n"
    # A name with bytes that are not UTF-8 has lone surrogates; written as \udcXX they are valid JSON escapes.
    return text.encode("utf-8", "backslashreplace")
