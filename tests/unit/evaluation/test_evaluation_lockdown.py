"""What the evaluation process cannot do: open files or sockets, start children, or take more memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DAEMON = Path(__file__).parents[3] / "daemon"

SCRIPT = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading
from spoolama.evaluation.child import lockdown
{before}
assert lockdown.lock_down(240_000_000) is {restricted}
try:
    {attempt}
except Exception as error:
    print(type(error).__name__, getattr(error, "errno", ""))
else:
    print("it worked")
print(sum(range(1000)))
"""

ATTEMPTS = {
    "open a file": "open('/etc/hostname')",
    "make a file": "open('made', 'w')",
    "list a directory": "os.listdir('/')",
    "connect": "socket.socket().connect(('127.0.0.1', 1))",
    "make a pair of sockets": "socket.socketpair()",
    "fork": "os.fork() or os._exit(0)",
    "start a program": "subprocess.run(['/bin/true'])",
    "replace itself": "os.execv('/bin/true', ['true'])",
    "start a thread": "threading.Thread(target=print).start()",
    "kill its parent": "os.kill(os.getppid(), signal.SIGTERM)",
    "raise its limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "take more memory": "b'x' * 500_000_000",
}


def attempt(code: str, *, before: str = "", restricted: bool = True) -> list[str]:
    """Return what a locked process prints when it tries this."""
    script = SCRIPT.format(attempt=code, before=before, restricted=restricted)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(DAEMON)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("what", ATTEMPTS)
def test_a_locked_process_can_only_compute(what: str) -> None:
    """Each attempt fails, and the process can still compute."""
    output, computed = attempt(ATTEMPTS[what])

    refused = ("PermissionError", "OSError", "BlockingIOError", "RuntimeError", "ValueError", "MemoryError")
    assert output.split()[0] in refused
    assert computed == "499500"


@pytest.mark.parametrize(
    "what",
    [
        "open a file",
        "make a file",
        "list a directory",
        "connect",
        "make a pair of sockets",
        "take more memory",
    ],
)
def test_the_resource_limits_hold_without_the_filter(what: str) -> None:
    """Without a filter for system calls, files and sockets still fail by the resource limits."""
    output, computed = attempt(ATTEMPTS[what], before="lockdown._CALLS.clear()", restricted=False)

    assert output.split()[0] in ("OSError", "MemoryError")
    assert computed == "499500"


def test_without_a_parent_there_is_no_process() -> None:
    """A process whose parent has ended ends at once."""
    code = (
        "from spoolama.evaluation.child.lockdown import die_with_parent; die_with_parent(1 << 22); print(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(DAEMON)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, b"")
