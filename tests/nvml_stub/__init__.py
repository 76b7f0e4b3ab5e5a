"""A stub of NVIDIA's management library: real pynvml with a real shared library that a script controls.

`build()` compiles it, `Script` writes the script, and `Reader` reads it in its own process.
"""

from __future__ import annotations

from nvml_stub.build import build
from nvml_stub.reader import Reader
from nvml_stub.script import FakeCard, Script

__all__ = ["FakeCard", "Reader", "Script", "build"]
