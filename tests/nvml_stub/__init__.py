"""A stand-in for NVIDIA's management library: real pynvml over a real shared library, driven by a script.

`build()` compiles it, `Script` writes what it says, `Reader` reads it in a process of its own.
"""

from __future__ import annotations

from nvml_stub.build import build
from nvml_stub.reader import Reader
from nvml_stub.script import FakeCard, Script

__all__ = ["FakeCard", "Reader", "Script", "build"]
