"""Read the cards in a child process, because the loader uses the library path of the process start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType
from typing import Any

from nvml_stub.script import Script
from spoolama.memory.nvml import NvmlCards
from spoolama.memory.readings import Card, NoReading


class Reader:
    """A child process with real pynvml and the stub: a `CardProbe` whose `read` asks the child.

    Args:
        script: The script of the library.
    """

    def __init__(self, script: Script) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{_CHILD}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | script.env(),
        )

    def read(self) -> tuple[Card, ...]:
        """Return the result of `NvmlCards().read()` in the child, which uses one probe until its end.

        Raises:
            NoReading: the child's.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        answer: Any = json.loads(self._child.stdout.readline())
        if isinstance(answer, dict):
            raise NoReading(**answer)
        return tuple(_card(fields) for fields in answer)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.communicate(timeout=30)


def _card(fields: dict[str, Any]) -> Card:
    """Restore a card from JSON, which has no numbers as keys and no tuples."""
    if (processes := fields["processes"]) is not None:
        fields["processes"] = {int(pid): size for pid, size in processes.items()}
    if (throttled := fields["throttled"]) is not None:
        fields["throttled"] = tuple(throttled)
    return Card(**fields)


_CHILD = "from nvml_stub.reader import serve; serve()"


def serve() -> None:
    """Run in the child: write a line of JSON for each line that is read."""
    probe = NvmlCards()
    for _ in sys.stdin:
        try:
            answer: Any = [asdict(card) for card in probe.read()]
        except NoReading as error:
            answer = {"reason": error.reason, "lasting": error.lasting}
        print(json.dumps(answer), flush=True)
