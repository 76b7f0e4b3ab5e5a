"""Wake-ups: something happened in incoming, so look now instead of at the next rescan.

The watchdog package tells us of events. They are hints only: under load the kernel drops some and the
package tells nobody (it logs a warning), a replaced directory goes unwatched, and network file systems
have no events for what others write. So the service rescans by the clock anyway, asks `healthy()` each time,
and restarts what is not.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

__all__ = ["Wakeups"]

_log = logging.getLogger(__name__)
_JOIN_S = 5.0

# A finished upload shows as one of: closed after writing; moved within incoming; created (a move from
# elsewhere, a hard link, and SFTP's plain rename come without a close).
# Not asked for: every single write, and files opened or closed for reading, which our own looks cause.
# Changes of attributes (a chmod that makes a file readable) watchdog gives only with every write: see its
# `get_event_mask_from_filter`. They are left to the rescan.
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileMovedEvent,
    FileClosedEvent,
    FileDeletedEvent,
    DirDeletedEvent,
    DirMovedEvent,
]


class Wakeups:
    """Calls `on_wake` when something happens in a directory.

    Args:
        path: The directory.
        on_wake: Called from the observer's thread, often and for nothing too; must be quick and thread-safe,
            as `loop.call_soon_threadsafe(event.set)` is.
    """

    def __init__(self, path: Path, on_wake: Callable[[], None]) -> None:
        self._path = path
        self._on_wake = on_wake
        self._observer: BaseObserver | None = None
        self._identity: tuple[int, int] | None = None
        self._trouble: str | None = "not started"

    @property
    def trouble(self) -> str | None:
        """Why there are no wake-ups, in words; None if there are."""
        return None if self.healthy() else self._trouble or "the watch on the directory ended"

    def start(self) -> bool:
        """Begin to watch. Never raises for what the machine refuses (limits, permissions): see `trouble`.

        Returns:
            Whether there will be wake-ups.
        """
        self.stop()
        observer = Observer()
        try:
            # A directory that we may not read gets no watch and no error from watchdog.
            os.scandir(self._path).close()
            found = self._path.stat()
            observer.schedule(_Handler(self._on_wake), str(self._path), recursive=False, event_filter=_EVENTS)
            observer.start()
        except (OSError, RuntimeError) as e:
            self._trouble = f"{self._path} cannot be watched: {e}"
            _halt(observer)
            return False
        self._observer = observer
        self._identity = (found.st_dev, found.st_ino)
        self._trouble = None
        return self.healthy()

    def stop(self) -> None:
        """Stop watching, and wait for the threads to end."""
        if self._observer is not None:
            _halt(self._observer)
        self._observer, self._identity, self._trouble = None, None, "stopped"

    def restart(self) -> bool:
        """Stop and start: the answer to `healthy()` being False."""
        return self.start()

    def healthy(self) -> bool:
        """Whether every thread lives and the directory is still the one that is watched.

        The observer says that it is alive when the thread that reads for one directory has died.
        """
        observer = self._observer
        if observer is None or not observer.is_alive():
            return False
        emitters = list(observer.emitters)
        if not emitters or not all(e.is_alive() for e in emitters):
            return False
        try:
            found = self._path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity


class _Handler(FileSystemEventHandler):
    """Passes on that something happened; what, the scan will see."""

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self._on_wake = on_wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        try:
            self._on_wake()
        except Exception:  # would end the dispatcher's thread, and with it all wake-ups, without a word
            _log.exception("a wake-up failed after %s", event.event_type)


def _halt(observer: BaseObserver) -> None:
    # An event that arrives while it ends is an error to watchdog, but nothing to anybody else.
    logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)
    with contextlib.suppress(RuntimeError):  # a thread that never started cannot be joined
        observer.stop()
        observer.join(_JOIN_S)
