"""Runs the process of the embedded engine: one llama-server on a loopback port for the parent process.

It reads one JSON line from stdin (what to load), writes one to stdout (`{"url": ..., "copies": ...}` or
`{"error": ...}`) and serves until stdin closes. It therefore ends when its parent ends; PR_SET_PDEATHSIG
ensures the same. `copies` is the file name with which llama-server's `/slots` routes save and restore a slot.
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

PR_SET_PDEATHSIG = 1
_OPEN_FILES = "/proc/self/fd/"
HOST_CACHE_MIB = 512
"""Size of llama.cpp's prompt cache in main memory; its default is 8 GiB."""


def main() -> None:
    """Load the model, serve requests, and end when the parent ends."""
    _die_with_the_parent()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library's output goes to stderr, because stdout carries our answer
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
    import xllamacpp  # imported here, so that a missing package is reported as an error to the parent

    params = xllamacpp.CommonParams()
    params.model.path = given["path"]
    params.n_ctx = given["num_ctx"] * given["slots"]
    params.n_parallel = given["slots"]
    params.kv_unified = False  # each slot has its own cells, as under Ollama
    params.ctx_shift = False  # a full window ends the answer; no tokens are dropped silently
    params.fit_params = False  # use the given parameters or fail
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
    """Create a file in memory and return its name in /proc/self/fd; None: not supported by this system.

    A slot contains the user's text. In a memfd it is never written to disk and disappears with the process.
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
    # Skip the library's clean-up, which waits for the current request.
    os._exit(0)


def _die_with_the_parent() -> None:
    """Ask the kernel to kill this process when the parent ends; if it has ended already, stdin is closed."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
