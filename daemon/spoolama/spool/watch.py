"""Watches incoming/ for events, so that the service scans at once instead of at the next rescan.

The watchdog package reports events. They are only hints: under load the kernel drops some and the package
only logs a warning, a replaced directory is no longer watched, and network file systems report no events for
writes of other machines. So the service also rescans at regular intervals, calls `healthy()` each time, and
restarts an unhealthy watch.
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

_log = logging.getLogger(__name__)
_JOIN_S = 5.0

# A finished upload causes one of these events: closed after writing; moved within incoming; created (a move
# from elsewhere, a hard link, and SFTP's plain rename cause no close).
# We do not subscribe to every write, nor to files opened or closed for reading, which our own scans cause.
# watchdog reports changes of attributes (a chmod that makes a file readable) only together with every write:
# see its `get_event_mask_from_filter`. The rescan finds them.
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileMovedEvent,
    FileClosedEvent,
    FileDeletedEvent,
    DirDeletedEvent,
    DirMovedEvent,
]


class DirectoryEvents:
    """Calls `on_wake` when something happens in a directory.

    Args:
        path: The directory.
        on_wake: Called from the observer's thread, often and sometimes without cause; must be quick and
            thread-safe, like `loop.call_soon_threadsafe(event.set)`.
    """

    def __init__(self, path: Path, on_wake: Callable[[], None]) -> None:
        self._path = path
        self._on_wake = on_wake
        self._observer: BaseObserver | None = None
        self._identity: tuple[int, int] | None = None
        self._trouble: str | None = "not started"

    @property
    def trouble(self) -> str | None:
        """Why the watch does not work, as text; None if it works."""
        return None if self.healthy() else self._trouble or "the watch on the directory ended"

    def start(self) -> bool:
        """Start to watch, or start again if `healthy()` returns False.

        Does not raise if the system refuses (limits, permissions): see `trouble`.

        Returns:
            Whether the watch works.
        """
        self.stop()
        observer = Observer()
        try:
            # For a directory that we may not read, watchdog sets no watch and raises no error.
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
        """Stop watching and wait for the threads to end."""
        if self._observer is not None:
            _halt(self._observer)
        self._observer, self._identity, self._trouble = None, None, "stopped"

    def healthy(self) -> bool:
        """Whether every thread is alive and the directory has not been replaced.

        The observer reports that it is alive even if the thread that reads one directory has died.
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
    """Calls `on_wake` for every event; the scan finds out what changed."""

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self._on_wake = on_wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        try:
            self._on_wake()
        except Exception:  # would silently end the dispatcher thread and all wake-ups
            _log.exception("a wake-up failed after %s", event.event_type)


def _halt(observer: BaseObserver) -> None:
    # watchdog logs an error for an event that arrives while it stops; the error has no effect.
    logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)
    with contextlib.suppress(RuntimeError):  # a thread that never started cannot be joined
        observer.stop()
        observer.join(_JOIN_S)
