"""The call log of a fake that runs as a process and survives any kill."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType

from support.fake_ollama_script import Call


class CallLog:
    """JSON lines, each one written by one system call before the answer is sent.

    A call gives `{"event": "call", "path", "number", "at", "model", "row", "sha256", "body"}` once it is
    there in full, with `body` as it came, and `{"event": "end", "path", "number", "at", "outcome",
    "slot", "cached_tokens", "answer"}` when it ended.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __enter__(self) -> CallLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def received(self, call: Call) -> None:
        """Log a call before it is answered."""
        self._write(
            {
                "event": "call",
                "path": call.path,
                "number": call.number,
                "at": call.at,
                "model": call.body.get("model"),
                "row": call.row,
                "sha256": call.sha256,
                "body": call.raw.decode("utf-8", "replace"),
            }
        )

    def ended(self, call: Call) -> None:
        """Log the end of a call, answered or broken."""
        self._write(
            {
                "event": "end",
                "path": call.path,
                "number": call.number,
                "at": time.time(),
                "outcome": call.outcome,
                "slot": call.slot,
                "cached_tokens": call.cached_tokens,
                "answer": call.answer,
            }
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
