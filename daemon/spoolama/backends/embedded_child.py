"""The embedded engine's own process: one llama-server on a loopback port, for the parent alone.

It reads one JSON line on stdin (what to load), writes one on stdout (`{"url": ...}` or `{"error": ...}`) and
serves until stdin closes. So it ends with its parent, however that ends; the kernel sees to it as well.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

__all__ = ["main"]

PR_SET_PDEATHSIG = 1
HOST_CACHE_MIB = 512
"""Main memory for prompts that lost their slot; llama.cpp's own default of 8 GiB would surprise."""


def main() -> None:
    """Load, serve, end with the parent."""
    _die_with_the_parent()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is a log, not our answer
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    try:
        server = _start(given)
    except BaseException as error:
        json.dump({"error": str(error) or type(error).__name__}, answer)
        answer.write("\n")
        answer.flush()
        os._exit(1)
    json.dump({"url": server.listening_address}, answer)
    answer.write("\n")
    answer.flush()
    threading.Event().wait()


def _start(given: dict[str, Any]) -> Any:
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
    params.ui = False
    params.port = 0
    params.api_keys = [given["api_key"]]
    for name, value in given["params"].items():
        setattr(params, name, value)
    return xllamacpp.Server(params)


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
