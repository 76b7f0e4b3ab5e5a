"""GPU memory readings: the peak is kept, and no GPU is no error."""

from __future__ import annotations

import threading

from spoolama.gpu.sampler import GpuReading, NoGpu, NvmlProbe, VramSampler


class Scripted:
    """Gives these readings, then repeats the last one."""

    method = "scripted"

    def __init__(self, *used: int | None) -> None:
        self._used = list(used)
        self.exhausted = threading.Event()

    def read(self) -> GpuReading | None:
        used = self._used.pop(0) if len(self._used) > 1 else self._used[0]
        if len(self._used) == 1:
            self.exhausted.set()
        return None if used is None else GpuReading(used, 100)


def test_the_peak_is_kept_and_gaps_are_no_zero() -> None:
    """The highest reading counts, whatever comes after and between."""
    probe = Scripted(10, None, 70, 20)
    with VramSampler(probe, every_s=0.001) as sampler:
        assert probe.exhausted.wait(5)
    assert sampler.peak_bytes == 70
    assert sampler.method == "scripted"


def test_without_a_reading_there_is_no_number() -> None:
    """No GPU: null with its reason, not 0."""
    with VramSampler(NoGpu(), every_s=0.001) as sampler:
        pass
    assert sampler.peak_bytes is None
    assert "no NVIDIA GPU" in sampler.method


def test_nvml_without_a_driver_reads_nothing() -> None:
    """On a machine without a driver pynvml's error is an absent reading."""
    reading = NvmlProbe().read()
    assert reading is None or reading.total_bytes > 0
