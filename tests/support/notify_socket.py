"""systemd's end of the notify socket, and a notifier that only remembers; for tests of the service."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

__all__ = ["NotifySocket", "RecordingNotifier"]


class NotifySocket:
    """A real datagram socket that keeps what it is sent, in order.

    Args:
        path: Where; its directory must exist. Goes into $NOTIFY_SOCKET.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        """Each datagram as its assignments."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def wait_for(self, key: str, value: str | None = None, *, timeout_s: float = 10.0) -> dict[str, str]:
        """The next datagram with this assignment; those before it are kept in `messages`.

        Raises:
            TimeoutError: none came in time; says what did.
        """
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                raw = self._socket.recv(65536)
            except TimeoutError:
                break
            # Strict: systemd drops what is not UTF-8.
            message = dict(line.split("=", 1) for line in raw.decode("utf-8").splitlines())
            self.messages.append(message)
            if key in message and value in (None, message[key]):
                return message
        raise TimeoutError(f"no {key}={value or '…'} in {timeout_s} s; there came {self.messages}")

    def close(self) -> None:
        """Take the socket away."""
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> NotifySocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class RecordingNotifier:
    """Remembers what it was told."""

    said: list[str] = field(default_factory=list)
    """`ready`, `watchdog`, `status: …` and so on, in order."""

    def ready(self) -> None:
        self.said.append("ready")

    def status(self, text: str) -> None:
        self.said.append(f"status: {text}")

    def watchdog(self) -> None:
        self.said.append("watchdog")

    def reloading(self) -> None:
        self.said.append("reloading")

    def stopping(self) -> None:
        self.said.append("stopping")

    def extend(self, seconds: float) -> None:
        self.said.append(f"extend: {seconds:g}")
