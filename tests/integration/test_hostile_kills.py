"""The service is killed during a hostile input, and the next start ends the job as usual."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemons import wait_for
from integration.hostile_cases import KILLED, Case
from integration.hostile_service import (
    PLAIN,
    children,
    drop,
    ends_in_time_and_memory,
    published,
    service,
    status_kb,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Restarts:
    """A spool whose service is killed and restarted repeatedly."""

    def __init__(self, tmp: Path, url: str) -> None:
        self._tmp, self._url = tmp, url
        self._stack = contextlib.ExitStack()
        self.running = False
        self.start()

    def start(self) -> None:
        """Start the service on this spool, if none runs."""
        if self.running:
            return
        self.found = self._stack.enter_context(service(self._tmp, self._url))
        self.running = True

    def kill(self) -> None:
        """Kill the service by SIGKILL, and wait until its evaluation processes are gone."""
        evaluations = children(self.found.process.pid)
        self.running = False
        self.found.process.kill()
        self.found.process.wait()
        self.close()
        wait_for(lambda: not any(status_kb(child, "VmRSS") for child in evaluations))

    def close(self) -> None:
        """Stop the service if it runs."""
        self._stack.close()


@pytest.fixture(scope="module")
def restarts(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Restarts]:
    """One spool on which a service is killed in each of the cases, one after another."""
    found = Restarts(tmp_path_factory.mktemp("killed"), url)
    yield found
    found.close()


@pytest.mark.parametrize("case", KILLED, ids=str)
def test_after_kill_9_the_next_start_finishes_everything(restarts: Restarts, case: Case) -> None:
    """After a kill during the hostile input, the next start ends both jobs."""
    restarts.start()  # a failed test leaves none
    spool = restarts.found.spool
    drop(spool, case.name, case.files())
    if case.takes_seconds:
        wait_for(restarts.found.busy)
    else:
        wait_for(lambda: published(spool, case.name) or list((spool / "processing").glob(f"{case.name}-2*")))
    restarts.kill()
    drop(spool, f"next-{case.name}", PLAIN)
    restarts.start()
    ends_in_time_and_memory(restarts.found, case)
