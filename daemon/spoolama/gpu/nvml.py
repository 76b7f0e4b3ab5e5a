"""Cards read through NVML, NVIDIA's management library, by the module `pynvml` of nvidia-ml-py.

Facts are from nvml.h (the comments of its functions) and from calls on an H100, tests/data/h100-ollama.json.
The calls of one reading took 4.6 ms there in sum, 3.4 of them for power, with the card idle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from spoolama.gpu.readings import Card, NoReading

__all__ = ["NvmlCards", "throttle_words"]

T = TypeVar("T")

_NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _DRIVER_NOT_LOADED = 3, 4, 6, 9
_LIBRARY_NOT_FOUND, _FUNCTION_NOT_FOUND, _VERSION_MISMATCH, _ARGUMENT_VERSION = 12, 13, 18, 25
# nvmlReturn_t

_WORDS = {
    _NOT_SUPPORTED: "its driver does not tell the GPU's memory, which is shared with the machine's",
    _NO_PERMISSION: "no permission to read it; the unit's DeviceAllow may lack the device",
    _DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    _LIBRARY_NOT_FOUND: "no NVIDIA driver on this machine (libnvidia-ml.so.1 was not found)",
    _VERSION_MISMATCH: "the NVIDIA driver was replaced while it was in use; restart the machine",
    15: "the GPU is lost: it does not answer on its bus; restart the machine",
    16: "the GPU must be reset before it can be used again",
}
_NO_CARD = (
    "the NVIDIA driver lists no GPU; if `nvidia-smi` shows one, the unit's DeviceAllow may lack the device"
)

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
    """NVML's reasons for lowered clocks, in words; an idle card and clocks that somebody set are none.

    `slower partner`: clocks are kept together with another card's (sync boost).
    `hardware`: the card slowed itself down and does not say whether for heat or for power.
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
    """All cards of this machine. A `CardProbe`; not for several threads at once.

    The library is loaded at the first reading. After an error it is shut down, and initialised anew at the
    next reading, so that a driver that returns is seen. A lost card does not hide the others: it is left out,
    and sought again every 60 readings.

    Args:
        nvml: The module to call; None: `pynvml`.
        only: NVML's numbers of the cards to read; None: all. (CUDA may number cards in another order.)
    """

    def __init__(self, nvml: Any = None, *, only: tuple[int, ...] | None = None) -> None:
        self._nvml = nvml
        self._only = only
        self._ready = False
        self._reads_with_a_loss = 0

    def read(self) -> tuple[Card, ...]:
        """All cards now, a MIG instance being a card of its own.

        Raises:
            NoReading: none can be read; `lasting` where there is no driver or card, or none tells its memory.
        """
        if self._nvml is None:
            import pynvml  # here, since most machines that only queue jobs have no card

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
            # A driver that is gone cannot say goodbye.
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _all_cards(self) -> tuple[Card, ...]:
        count = self._nvml.nvmlDeviceGetCount()
        if not count:
            raise NoReading(_NO_CARD, lasting=True)
        wanted = range(count) if self._only is None else [i for i in self._only if i < count]
        if not wanted:
            asked = ", ".join(str(i) for i in self._only or ())
            raise NoReading(f"no GPU has the number {asked}; the driver lists {count}, counted from 0")
        cards: list[Card] = []
        lost: dict[int, Any] = {}
        for index in wanted:
            try:
                cards += self._cards_at(index)
            except self._nvml.NVMLError as error:
                lost[index] = error
        complete = not lost and len(wanted) == (count if self._only is None else len(self._only))
        self._reads_with_a_loss = 0 if complete else self._reads_with_a_loss + 1
        if not cards:
            index, first = next(iter(lost.items()))
            silent = all(error.value == _NOT_SUPPORTED for error in lost.values())
            raise NoReading(f"GPU {index}: {_words(first)}", lasting=silent)
        return tuple(cards)

    def _cards_at(self, index: int) -> Iterable[Card]:
        """The card of this number, or its MIG instances."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        mode = self._optional(lambda: nvml.nvmlDeviceGetMigMode(handle))
        if not mode or not mode[0]:
            return [self._card(index, handle)]
        instances = list(self._instances(index, handle))
        return instances or [self._card(index, handle, mig="on")]

    def _instances(self, index: int, handle: Any) -> Iterator[Card]:
        """The MIG instances that can be read; their numbers may have gaps."""
        nvml = self._nvml
        most = self._optional(lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
        for number in range(most):
            with contextlib.suppress(nvml.NVMLError):
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                yield self._card(index, instance, mig=str(number), chip=handle)

    def _card(self, index: int, handle: Any, *, mig: str | None = None, chip: Any = None) -> Card:
        """One card or instance.

        NVML tells heat and clocks of the whole `chip` alone, and they hold for each instance. Its power does
        not: whoever added it up over instances would count it several times.
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
        """Bytes in all, free, and reserved by the driver.

        The first version of the call counts the reserved part as used, the second tells it apart (since
        driver 510), so what is used is taken as what is not free: the same by both.
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
        """Process id -> bytes, of programs that compute or draw; ids as the driver's machine numbers them.

        None where NVML does not tell, since a part of the list would make known programs look absent. Cards
        that cannot draw refuse the second list alone, which is then empty.
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
            # In both lists a program has the same size twice; two entries in one list are two parts of it.
            here: dict[int, int | None] = {}
            for process in listed:
                size, before = process.usedGpuMemory, here.get(process.pid, 0)
                here[process.pid] = None if size is None or before is None else before + int(size)
            sizes = here | sizes
        return sizes

    def _listed(self, kind: str, handle: Any) -> list[Any]:
        """The programs that NVML lists of this kind, by the call of driver 510 and later or the one before.

        By their versions, since pynvml's functions without one raise an error outside of its tree with an
        older driver.
        """
        call = f"nvmlDeviceGet{kind}RunningProcesses"
        try:
            return list(getattr(self._nvml, f"{call}_v3")(handle))
        except self._nvml.NVMLError as error:
            if error.value != _FUNCTION_NOT_FOUND:
                raise
            return list(getattr(self._nvml, f"{call}_v2")(handle))

    def _first(self, *calls: Callable[[], T]) -> T | None:
        """What the first of these calls says that works."""
        for call in calls:
            if (told := self._optional(call)) is not None:
                return told
        return None

    def _optional(self, call: Callable[[], T]) -> T | None:
        """What this call says; None where it fails: a field that is missing must not cost the memory reading.

        Besides NVML's errors: functions that this pynvml lacks, and names that are no UTF-8.
        """
        try:
            return call()
        except (self._nvml.NVMLError, AttributeError, ValueError):
            return None


def _words(error: Any) -> str:
    """What an NVMLError means for whoever runs the service."""
    return _WORDS.get(error.value) or f"NVML says: {error}"
