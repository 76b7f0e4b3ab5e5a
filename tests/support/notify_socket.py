"""systemd's end of the notify socket, and a notifier that records, for tests of the service."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType

from spoolama.service.systemd import Notifier


class NotifySocket:
    """A real datagram socket that records its messages in order.

    Args:
        path: Its path, in an existing directory, for $NOTIFY_SOCKET.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        """Each datagram as its assignments."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def wait_for(self, key: str, value: str | None = None, *, timeout_s: float = 10.0) -> dict[str, str]:
        """Return the next datagram with this assignment; `messages` has those before it.

        Raises:
            TimeoutError: none came in time; the error lists those that did.
        """
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                raw = self._socket.recv(65536)
            except TimeoutError:
                break
            # Strict, because systemd drops what is not UTF-8.
            message = dict(line.split("=", 1) for line in raw.decode("utf-8").splitlines())
            self.messages.append(message)
            if key in message and value in (None, message[key]):
                return message
        raise TimeoutError(f"no {key}={value or '…'} in {timeout_s} s; there came {self.messages}")

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> NotifySocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RecordingNotifier(Notifier):
    """Records its notifications instead of sending them."""

    def __init__(self) -> None:
        super().__init__({})
        self.sent: list[str] = []
        """`ready`, `watchdog`, `status: …` and so on, in order."""

    def send(self, text: str) -> None:
        key, _, value = text.partition("\n")[0].partition("=")
        self.sent.append(f"status: {value}" if key == "STATUS" else key.lower())
