"""Configures logging: journal fields under systemd, colour on a terminal, JSON lines elsewhere.

All modules log with `say`, or with `structlog.get_logger()` and the event names of `service/events.py`.
Row content is logged only at level debug.

An entry for journald is one datagram to /run/systemd/journal/socket, so that `journalctl SPOOLAMA_JOB=…`
works. A field is `KEY=value`, or for values with a newline `KEY`, a newline, the length as 64 bits
little-endian, and the value. An entry too large for a datagram is sent as a sealed memfd (systemd's
docs/JOURNAL_NATIVE_PROTOCOL.md).
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal

import structlog

from spoolama.service.events import EVENTS, sentence

Rendering = Literal["journal", "console", "json"]
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_NUMBERS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_level = 20
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def rendering_for(env: Mapping[str, str]) -> Rendering:
    """The rendering for stderr: the journal, a terminal, or anything else."""
    if connected_to_journal(env, 2):
        return "journal"
    return "console" if sys.stderr is not None and sys.stderr.isatty() else "json"


def configure(level: str, *, env: Mapping[str, str] = os.environ, rendering: Rendering | None = None) -> None:
    """Set up structlog, and pass messages of libraries at level warning and above to it.

    Args:
        level: Lowest level that is logged.
        env: Environment with $JOURNAL_STREAM and $NO_COLOR.
        rendering: Overrides the rendering that is derived from stderr.
    """
    rendering = rendering or rendering_for(env)
    set_level(level)
    common: list[structlog.types.Processor] = [
        _drop_below_level,
        structlog.processors.add_log_level,
    ]
    if rendering == "journal":
        tail: list[structlog.types.Processor] = [structlog.processors.format_exc_info, _JournalRenderer()]
    elif rendering == "console":
        tail = [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _sentence_first,
            structlog.dev.ConsoleRenderer(
                colors="NO_COLOR" not in env, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    else:
        tail = [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_sentence,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    structlog.configure(
        processors=[*common, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=_StderrFactory(),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge(logging.WARNING))


def set_level(level: str) -> None:
    """Change the lowest level that is logged."""
    global _level
    _level = _NUMBERS[level]


def say(event: str, **fields: Any) -> None:
    """Log one event of `EVENTS` at its level."""
    structlog.get_logger().log(_NUMBERS[EVENTS[event].level], event, **fields)


class _StderrLogger:
    """Writes to the current sys.stderr, which a progress display may have replaced."""

    def msg(self, message: str) -> None:
        if message and sys.stderr is not None:
            print(message, file=sys.stderr, flush=True)

    log = debug = info = warning = error = critical = exception = fatal = warn = msg


class _StderrFactory:
    def __call__(self, *_: Any) -> _StderrLogger:
        return _StderrLogger()


class _Bridge(logging.Handler):
    """Passes log messages of libraries to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            min(max(record.levelno, logging.DEBUG), logging.CRITICAL) // 10 * 10,
            "library.message",
            logger=record.name,
            text=record.getMessage(),
            exc_info=record.exc_info,
        )


EventDict = MutableMapping[str, Any]


def _drop_below_level(_: Any, method: str, event: EventDict) -> EventDict:
    if _NUMBERS.get("error" if method == "exception" else method, 20) < _level:
        raise structlog.DropEvent
    return event


def _add_sentence(_: Any, __: str, event: EventDict) -> EventDict:
    event["message"] = sentence(event["event"], event)
    return event


def _sentence_first(_: Any, __: str, event: EventDict) -> EventDict:
    """Show only the sentence on a terminal; events without one show their fields."""
    name = event["event"]
    if name not in EVENTS:
        return event
    kept = {k: event[k] for k in ("timestamp", "level", "exc_info", "exception") if k in event}
    return {"event": sentence(name, event), **kept}


class _JournalRenderer:
    """Sends the entry to the journal; if that fails, returns lines with the priority for stderr."""

    def __init__(self) -> None:
        self._socket = JournalSocket()

    def __call__(self, _: Any, __: str, event: EventDict) -> str:
        name = str(event.pop("event"))
        priority = _PRIORITIES.get(str(event.pop("level", "info")), 6)
        message = sentence(name, event)
        trace = event.pop("exception", None)
        fields = {
            "MESSAGE": message if trace is None else f"{message}\n{trace}",
            "PRIORITY": str(priority),
            "SYSLOG_IDENTIFIER": "spoolama",
            "SPOOLAMA_EVENT": name,
        }
        if name in EVENTS:
            fields["MESSAGE_ID"] = EVENTS[name].message_id
        fields.update({f"SPOOLAMA_{key}": str(value) for key, value in event.items()})
        try:
            self._socket.send(fields)
        except OSError:
            return "\n".join(f"<{priority}>{line}" for line in fields["MESSAGE"].splitlines())
        return ""


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
