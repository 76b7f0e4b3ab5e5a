"""Configures logging: journal fields under systemd, colour on a terminal, JSON lines elsewhere.

All modules log with `say`, or with `structlog.get_logger()` and the event names of `service/events.py`.
Row content is logged only at level debug.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog

from spoolama.service.events import EVENTS, sentence
from spoolama.service.journal import JournalSocket, connected_to_journal

__all__ = ["Rendering", "configure", "rendering_for", "say", "set_level"]

Rendering = Literal["journal", "console", "json"]
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_NUMBERS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_level = 20


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
        structlog.contextvars.merge_contextvars,
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
