"""Decides which processes hold a model that we loaded, and whether unloading it would free main memory."""

from __future__ import annotations

from collections.abc import Collection

from spoolama.memory.host_thread import SeenHost
from spoolama.memory.readings import Host, Runner

__all__ = ["Ours", "frees_host"]

HOST_SHARE = 0.1


class Ours:
    """Processes that hold a model that spoolama loaded.

    The process name does not decide, because others can run their own Ollama or llama-server on the same
    machine. Ours are the process of our own engine and every process that appears during one of our loads. If
    a load starts no new process, the server already held the model, in any of the existing processes; then
    all of them count until the model is unloaded and loaded again. Before the first load no process is ours.
    """

    def __init__(self) -> None:
        self.pids: frozenset[int] = frozenset()
        self._before: frozenset[int] | None = None
        """Processes that existed when a load began; None: no load is in progress or waits for a reading."""
        self._ended_at: float | None = None

    def begins(self, runners: Collection[Runner]) -> None:
        """Record that a load of ours begins while these processes exist."""
        if self._before is None:
            self._before = frozenset(runner.pid for runner in runners)
        self._ended_at = None

    def ended(self, at: float) -> None:
        """Record that the load has ended; a reading after `at` shows the new processes."""
        self._ended_at = at

    def failed(self) -> None:
        """Record that the load failed."""
        self._before = self._ended_at = None

    def released(self) -> None:
        """Record that our models were unloaded."""
        self.pids = frozenset()

    def look(self, seen: SeenHost) -> None:
        """Evaluate a reading; a stale one changes nothing."""
        if not seen.known:
            return
        now = frozenset(runner.pid for runner in seen.runners)
        self.pids = seen.own or self.pids & now
        if self._before is None or seen.own:
            return
        self.pids |= now - self._before
        if self._ended_at is not None and seen.at >= self._ended_at:
            self.pids = self.pids or now
            self._before = self._ended_at = None


def frees_host(host: Host, runners: Collection[Runner]) -> bool:
    """Whether unloading our models would free at least a tenth of main memory.

    A model on a card uses little main memory. Pages of files, such as mapped weights, do not count, because
    the kernel reclaims them by itself.
    """
    held = sum(r.rss_bytes if r.anonymous_bytes is None else r.anonymous_bytes for r in runners)
    return held >= HOST_SHARE * host.total_bytes
