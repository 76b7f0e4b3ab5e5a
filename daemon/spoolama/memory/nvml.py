"""Reads NVIDIA GPUs through NVML, with the module `pynvml` of nvidia-ml-py.

Sources: nvml.h (the comments of its functions) and calls on an H100 (tests/data/h100-ollama.json). On that
idle card the calls of one reading took 4.6 ms in total, 3.4 ms of them for power.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from spoolama.memory.readings import Card, NoReading

T = TypeVar("T")

_NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _DRIVER_NOT_LOADED = 3, 4, 6, 9
_LIBRARY_NOT_FOUND, _FUNCTION_NOT_FOUND, _VERSION_MISMATCH, _ARGUMENT_VERSION = 12, 13, 18, 25
# nvmlReturn_t

_WORDS = {
    _NOT_SUPPORTED: "the driver does not report GPU memory, because it is shared with main memory",
    _NO_PERMISSION: "no permission to read the GPU; check DeviceAllow= in the systemd unit",
    _DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    _LIBRARY_NOT_FOUND: "no NVIDIA driver on this machine (libnvidia-ml.so.1 was not found)",
    _VERSION_MISMATCH: "the NVIDIA driver was updated while it was in use; restart the machine",
    15: "the GPU has fallen off the bus; restart the machine",
    16: "the GPU must be reset before it can be used again",
}
_NO_CARD = "the NVIDIA driver lists no GPU; if `nvidia-smi` shows one, check DeviceAllow= in the systemd unit"

_IDLE_AND_SETTINGS = 0x1 | 0x2 | 0x100
_THROTTLE = (
    (0x4, "power"),
    (0x20 | 0x40, "heat"),
    (0x80, "power brake"),
    (0x10, "slower partner"),
    (0x200, "board limit"),
    (0x400, "reliability"),
)
_HARDWARE = 0x8
# nvmlClocksEventReason*, formerly nvmlClocksThrottleReason*

_READS_TILL_LOST_ARE_SOUGHT = 60


def throttle_words(bits: int) -> tuple[str, ...]:
    """Return NVML's reasons for reduced clocks as text. An idle card and clocks set by a user are no reasons.

    `slower partner`: the clocks are synchronised with a slower card (sync boost).
    `hardware`: the card throttles itself and does not report whether because of heat or power.
    """
    words = [word for mask, word in _THROTTLE if bits & mask]
    if bits & _HARDWARE and not bits & (0x40 | 0x80):
        words.append("hardware")
    known = _IDLE_AND_SETTINGS | _HARDWARE
    for mask, _ in _THROTTLE:
        known |= mask
    if unknown := bits & ~known:
        words.append(f"reason {unknown:#x}")
    return tuple(words)


class NvmlCards:
    """All cards of this machine. Implements `CardProbe`; not thread-safe.

    The library is loaded at the first reading. After an error it is shut down and initialised again at the
    next reading, so that a driver that recovers is found. A lost card does not hide the others: it is left
    out and searched for again every 60 readings.

    Args:
        nvml: The module to call; None: `pynvml`.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._ready = False
        self._reads_with_a_loss = 0

    def read(self) -> tuple[Card, ...]:
        """Read all cards; each MIG instance counts as a card.

        Raises:
            NoReading: no card can be read; `lasting` without a driver or card, or if no card reports memory.
        """
        if self._nvml is None:
            import pynvml  # imported here, because most machines that only queue jobs have no card

            self._nvml = pynvml
        if self._reads_with_a_loss >= _READS_TILL_LOST_ARE_SOUGHT:
            self._reads_with_a_loss = 0
            self.close()
        try:
            if not self._ready:
                self._nvml.nvmlInit()
                self._ready = True
            return self._all_cards()
        except NoReading:
            self.close()
            raise
        except self._nvml.NVMLError as error:
            self.close()
            raise NoReading(_words(error), lasting=error.value == _LIBRARY_NOT_FOUND) from error

    def close(self) -> None:
        """Shut the library down; the next reading initialises it."""
        if self._ready:
            self._ready = False
            # Shutting down fails if the driver is gone.
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _all_cards(self) -> tuple[Card, ...]:
        count = self._nvml.nvmlDeviceGetCount()
        if not count:
            raise NoReading(_NO_CARD, lasting=True)
        cards: list[Card] = []
        lost: dict[int, Any] = {}
        for index in range(count):
            try:
                cards += self._cards_at(index)
            except self._nvml.NVMLError as error:
                lost[index] = error
        self._reads_with_a_loss = self._reads_with_a_loss + 1 if lost else 0
        if not cards:
            index, first = next(iter(lost.items()))
            silent = all(error.value == _NOT_SUPPORTED for error in lost.values())
            raise NoReading(f"GPU {index}: {_words(first)}", lasting=silent)
        return tuple(cards)

    def _cards_at(self, index: int) -> Iterable[Card]:
        """Return the card with this index, or its MIG instances."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        mode = self._optional(lambda: nvml.nvmlDeviceGetMigMode(handle))
        if not mode or not mode[0]:
            return [self._card(index, handle)]
        instances = list(self._instances(index, handle))
        return instances or [self._card(index, handle, mig="on")]

    def _instances(self, index: int, handle: Any) -> Iterator[Card]:
        """Yield the MIG instances that can be read; their numbers may have gaps."""
        nvml = self._nvml
        most = self._optional(lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
        for number in range(most):
            with contextlib.suppress(nvml.NVMLError):
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                yield self._card(index, instance, mig=str(number), chip=handle)

    def _card(self, index: int, handle: Any, *, mig: str | None = None, chip: Any = None) -> Card:
        """Read one card or instance.

        NVML reports temperature and clocks only for the whole `chip`; they apply to each instance. Power is
        left out for instances, because a sum over them would count it several times.
        """
        nvml = self._nvml
        total, free, reserved = self._memory(handle)
        whole = handle if chip is None else chip
        sensor = nvml.NVML_TEMPERATURE_GPU
        bits = self._first(
            lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(whole),  # since driver 535
            lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(whole),
        )
        milliwatts = limit = None
        if chip is None:
            milliwatts = self._optional(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
            limit = self._first(
                lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
                lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle),
            )
        return Card(
            index=index,
            name=self._optional(lambda: nvml.nvmlDeviceGetName(handle)) or f"GPU {index}",
            total_bytes=total,
            used_bytes=total - free,
            uuid=self._optional(lambda: nvml.nvmlDeviceGetUUID(handle)),
            reserved_bytes=reserved,
            processes=self._processes(handle),
            temperature_c=self._first(
                lambda: nvml.nvmlDeviceGetTemperature(whole, sensor),
                lambda: nvml.nvmlDeviceGetTemperatureV(whole, sensor),  # the only one from CUDA 14 on
            ),
            power_w=None if milliwatts is None else milliwatts / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            throttled=None if bits is None else throttle_words(bits),
            mig=mig,
        )

    def _memory(self, handle: Any) -> tuple[int, int, int | None]:
        """Return bytes: total, free, and reserved by the driver.

        Version 1 of the call counts the reserved part as used, version 2 reports it separately (since driver
        510). Used memory is therefore computed as total minus free, which is the same in both versions.
        """
        nvml = self._nvml
        try:
            info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        except nvml.NVMLError as error:
            if error.value not in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND, _ARGUMENT_VERSION):
                raise
            info = nvml.nvmlDeviceGetMemoryInfo(handle)
            return int(info.total), int(info.free), None
        return int(info.total), int(info.free), int(info.reserved)

    def _processes(self, handle: Any) -> dict[int, int | None] | None:
        """Return process id -> bytes for compute and graphics processes, in the host's pid namespace.

        None if NVML does not report a list, because an incomplete list would make known programs look absent.
        Cards without graphics refuse only the second list, which then counts as empty.
        """
        nvml = self._nvml
        try:
            lists = [self._listed("Compute", handle)]
        except nvml.NVMLError:
            return None
        try:
            lists.append(self._listed("Graphics", handle))
        except nvml.NVMLError as error:
            if error.value not in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
                return None
        sizes: dict[int, int | None] = {}
        for listed in lists:
            # A program in both lists has the same size in both; two entries in one list are added up.
            here: dict[int, int | None] = {}
            for process in listed:
                size, before = process.usedGpuMemory, here.get(process.pid, 0)
                here[process.pid] = None if size is None or before is None else before + int(size)
            sizes = here | sizes
        return sizes

    def _listed(self, kind: str, handle: Any) -> list[Any]:
        """List the programs of this kind, with the call of driver 510 and later or the older one.

        The version is explicit, because with an older driver pynvml's functions without a version raise an
        error that is not an NVMLError.
        """
        call = f"nvmlDeviceGet{kind}RunningProcesses"
        try:
            return list(getattr(self._nvml, f"{call}_v3")(handle))
        except self._nvml.NVMLError as error:
            if error.value != _FUNCTION_NOT_FOUND:
                raise
            return list(getattr(self._nvml, f"{call}_v2")(handle))

    def _first(self, *calls: Callable[[], T]) -> T | None:
        """Return the result of the first of these calls that works."""
        for call in calls:
            if (value := self._optional(call)) is not None:
                return value
        return None

    def _optional(self, call: Callable[[], T]) -> T | None:
        """Return the result of this call; None if it fails, so that a missing field does not end the reading.

        Also catches functions that this pynvml lacks, and names that are not UTF-8.
        """
        try:
            return call()
        except (self._nvml.NVMLError, AttributeError, ValueError):
            return None


def _words(error: Any) -> str:
    """Explain an NVMLError to the administrator."""
    return _WORDS.get(error.value) or f"NVML error: {error}"
