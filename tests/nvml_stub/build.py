"""Compile the stub library, once for each version of its source."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SONAME = "libnvidia-ml.so.1"
"""The name that pynvml loads."""

_SOURCE = Path(__file__).with_name("nvml_stub.c")
_ROOT = Path(__file__).parents[2]


def build(folder: Path | None = None) -> Path:
    """Return the library's folder, for LD_LIBRARY_PATH, and skip the test without a C compiler.

    Args:
        folder: Where built libraries are stored; None: `build/nvml_stub` of the checkout.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler for the stand-in of NVML; install gcc and libc6-dev")
    key = hashlib.sha256(_SOURCE.read_bytes() + platform.machine().encode()).hexdigest()[:16]
    home = (folder or _ROOT / "build" / "nvml_stub") / key
    if not (home / SONAME).exists():
        home.mkdir(parents=True, exist_ok=True)
        # Renamed when it is complete, because another test run may build at the same time.
        part = home / f"part-{os.getpid()}"
        flags = ["-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-pthread"]
        done = subprocess.run(
            [compiler, *flags, "-o", part, _SOURCE], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        part.rename(home / SONAME)
    return home
