"""Readings of GPU memory. What follows from them is decided elsewhere."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["GpuProbe", "GpuReading", "NoGpu", "NvmlProbe", "VramSampler"]


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Memory of all GPUs of this machine at one moment."""

    used_bytes: int
    total_bytes: int


class GpuProbe(Protocol):
    """Reads GPU memory; None where there is nothing to read."""

    method: str
    """How it reads, for reports."""

    def read(self) -> GpuReading | None:
        """The memory now. May block; call it from a thread of its own."""
        ...


class NoGpu:
    """A machine without a GPU that can be read."""

    method = "no NVIDIA GPU on this machine"

    def read(self) -> GpuReading | None:
        """Nothing."""
        return None


class NvmlProbe:
    """NVIDIA's management library, through the module `pynvml` of nvidia-ml-py."""

    method = "NVML, memory used on all GPUs by all programs, once a second"

    def __init__(self) -> None:
        self._nvml: Any = None

    def read(self) -> GpuReading | None:
        """The sum over all GPUs; None without a driver, or while the driver does not answer."""
        try:
            if self._nvml is None:
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
            nvml = self._nvml
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            infos = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        except Exception:
            # Any NVMLError at run time means the same: no reading now. Initialise again next time.
            self._nvml = None
            return None
        if not infos:
            return None
        return GpuReading(sum(i.used for i in infos), sum(i.total for i in infos))


class VramSampler:
    """Keeps the highest reading while it runs; on a daemon thread, so that a hanging driver blocks nobody.

    Args:
        probe: Where readings come from.
        every_s: Seconds between two readings.
    """

    def __init__(self, probe: GpuProbe, *, every_s: float = 1.0) -> None:
        self._probe = probe
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.peak_bytes: int | None = None
        """The highest memory use seen; None if there was no reading."""

    def __enter__(self) -> VramSampler:
        self._thread = threading.Thread(target=self._run, name="vram sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._thread.join(timeout=0.2)

    def _run(self) -> None:
        while not self._stop.is_set():
            reading = self._probe.read()
            if reading is not None:
                self.peak_bytes = max(self.peak_bytes or 0, reading.used_bytes)
            self._stop.wait(self._every_s)

    @property
    def method(self) -> str:
        """How it was measured, in words."""
        return self._probe.method if self.peak_bytes is not None else NoGpu.method
