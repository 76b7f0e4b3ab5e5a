"""The embedded engine's own process: one llama-server on a loopback port, for the parent alone.

It reads one JSON line on stdin (what to load), writes one on stdout (`{"url": ..., "copies": ...}` or
`{"error": ...}`) and serves until stdin closes. So it ends with its parent, however that ends; the kernel
sees to it as well. `copies` is the name by which llama-server's `/slots` routes save and restore a slot.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["main"]

PR_SET_PDEATHSIG = 1
_OPEN_FILES = "/proc/self/fd/"
HOST_CACHE_MIB = 512
"""Main memory for prompts that lost their slot; llama.cpp's own default of 8 GiB would surprise."""


def main() -> None:
    """Load, serve, end with the parent."""
    _die_with_the_parent()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is a log, not our answer
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    copies = _memory_file()
    try:
        server = _start(given, saves=copies is not None)
    except BaseException as error:
        json.dump({"error": str(error) or type(error).__name__}, answer)
        answer.write("\n")
        answer.flush()
        os._exit(1)
    json.dump({"url": server.listening_address, "copies": copies}, answer)
    answer.write("\n")
    answer.flush()
    threading.Event().wait()


def _start(given: dict[str, Any], *, saves: bool) -> Any:
    import xllamacpp  # here, so that a missing wheel is answered in words

    params = xllamacpp.CommonParams()
    params.model.path = given["path"]
    params.n_ctx = given["num_ctx"] * given["slots"]
    params.n_parallel = given["slots"]
    params.kv_unified = False  # each slot has its own cells, as under Ollama
    params.ctx_shift = False  # a full window ends the answer; nothing is dropped in silence
    params.fit_params = False  # what was asked for, or an error
    params.cpuparams.n_threads = given["threads"]
    params.cpuparams_batch.n_threads = given["threads"]
    params.cache_ram_mib = HOST_CACHE_MIB
    params.endpoint_slots = True
    if saves:
        params.slot_save_path = _OPEN_FILES
    params.ui = False
    params.port = 0
    params.api_keys = [given["api_key"]]
    for name, value in given["params"].items():
        setattr(params, name, value)
    return xllamacpp.Server(params)


def _memory_file() -> str | None:
    """The name, in the directory of our open files, of one that is in memory alone; None: not on this system.

    What stands in a slot is the user's text: so it never comes onto a disk, and goes with the process.
    """
    create = getattr(os, "memfd_create", None)
    if create is None or not Path(_OPEN_FILES).is_dir():
        return None
    try:
        return str(create("spoolama-prefix"))
    except OSError:
        return None


def _end_with_stdin() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    # Not through the library's own clean-up: that waits for the request it is working on.
    os._exit(0)


def _die_with_the_parent() -> None:
    """The parent may have died before the kernel was asked; then stdin says so."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
