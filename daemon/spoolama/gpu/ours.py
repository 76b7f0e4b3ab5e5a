"""Whose memory it is: which processes hold a model of ours, and whether main memory is ours to free."""

from __future__ import annotations

from collections.abc import Collection

from spoolama.gpu.host_thread import SeenHost
from spoolama.gpu.readings import Host, Runner

__all__ = ["Ours", "frees_host"]

HOST_SHARE = 0.1


class Ours:
    """Processes that hold a model which was loaded from here.

    A name tells nothing: others run an Ollama or a llama-server of their own on the same machine. So ours is
    our own engine's process, and else whatever came while a load of ours was under way. Where a load brought
    no new process the server held the model already, and it may be any of those that are there: then all
    count, until the model is released and loaded again. Before the first load nothing is ours.
    """

    def __init__(self) -> None:
        self.pids: frozenset[int] = frozenset()
        self._before: frozenset[int] | None = None
        """Processes that were there when a load began; None: no load is under way or to be judged."""
        self._ended_at: float | None = None

    def begins(self, runners: Collection[Runner]) -> None:
        """A load of ours begins, with these processes there."""
        if self._before is None:
            self._before = frozenset(runner.pid for runner in runners)
        self._ended_at = None

    def ended(self, at: float) -> None:
        """It has ended; a reading from then on shows what it brought."""
        self._ended_at = at

    def failed(self) -> None:
        """It brought nothing that stays."""
        self._before = self._ended_at = None

    def released(self) -> None:
        """Our models were released."""
        self.pids = frozenset()

    def look(self, seen: SeenHost) -> None:
        """Take a reading in; one that is too old changes nothing."""
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
    """Whether releasing models would free a part of main memory that matters: a tenth of it.

    A model on a card has hardly any, and what others have of it no release of ours gives back. Pages of
    files, such as mapped weights, are no matter: the kernel takes them back by itself.
    """
    held = sum(r.rss_bytes if r.anonymous_bytes is None else r.anonymous_bytes for r in runners)
    return held >= HOST_SHARE * host.total_bytes
