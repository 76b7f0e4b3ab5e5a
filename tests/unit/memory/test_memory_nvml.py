"""Cards through the real pynvml, with a stub of NVIDIA's library that each test scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from nvml_stub import FakeCard, Reader, Script
from spoolama.memory.nvml import NvmlCards, throttle_words
from spoolama.memory.readings import Card, NoReading

GB = 1 << 30
DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of this module's script."""
    return tmp_path_factory.mktemp("nvml") / "script"


@pytest.fixture(scope="module")
def reader(place: Path) -> Iterator[Reader]:
    """One process with pynvml for all tests here, because starting one takes longer than all readings."""
    with Reader(Script(place)) as child:
        yield child


@pytest.fixture
def script(place: Path) -> Script:
    """Write a new script to the path that the process reads."""
    return Script(place)


def refused(reader: Reader) -> NoReading:
    """Return why there is no reading."""
    with pytest.raises(NoReading) as caught:
        reader.read()
    return caught.value


def test_an_idle_h100_reads_as_it_was_recorded(script: Script, reader: Reader) -> None:
    """The values of a real H100 are returned in the units of `Card`, with the driver's part as used."""
    recorded = json.loads((DATA / "h100-ollama.json").read_text())["nvml_idle"]
    values = {(call["call"], *call["args"]): call["value"] for call in recorded if "value" in call}
    memory = values["nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2]
    script.cards = [
        FakeCard(
            total=memory["total"],
            used=memory["used"],
            reserved=memory["reserved"],
            name=values["nvmlDeviceGetName",],
            uuid=values["nvmlDeviceGetUUID",],
            temp=values["nvmlDeviceGetTemperature", 0],
            power=values["nvmlDeviceGetPowerUsage",],
            limit=values["nvmlDeviceGetEnforcedPowerLimit",],
            throttle=values["nvmlDeviceGetCurrentClocksEventReasons",],
        )
    ]
    script.write()
    assert reader.read() == (
        Card(
            index=0,
            name="NVIDIA H100 80GB HBM3",
            total_bytes=85_520_809_984,
            used_bytes=values["nvmlDeviceGetMemoryInfo",]["used"],
            uuid="GPU-…",
            reserved_bytes=503_316_480,
            processes={},
            temperature_c=30,
            power_w=69.688,
            power_limit_w=700.0,
            throttled=(),
        ),
    )


def test_an_old_driver_without_the_second_memory_call_gives_the_same_used_memory(
    script: Script, reader: Reader
) -> None:
    """With either call used memory is what is not free, and the older call does not give the
    driver's part.
    """
    script.cards = [FakeCard(total=16 * GB, used=5 * GB, reserved=GB)]
    script.write()
    new = reader.read()[0]
    script.errors = {"nvmlDeviceGetMemoryInfo_v2": 13}
    script.write()
    old = reader.read()[0]
    assert (new.used_bytes, new.free_bytes, new.reserved_bytes) == (6 * GB, 10 * GB, GB)
    assert (old.used_bytes, old.free_bytes, old.reserved_bytes) == (6 * GB, 10 * GB, None)


def test_an_old_driver_gives_processes_and_clocks_by_its_older_calls(script: Script, reader: Reader) -> None:
    """Drivers before 510 and 535 are read without the third process list and without event reasons."""
    script.cards = [FakeCard(processes=[(4242, 7)], throttle=0x4)]
    script.errors = {
        "nvmlDeviceGetComputeRunningProcesses_v3": 13,
        "nvmlDeviceGetGraphicsRunningProcesses_v3": 13,
        "nvmlDeviceGetCurrentClocksEventReasons": 13,
    }
    script.write()
    card = reader.read()[0]
    assert card.processes == {4242: 7}
    assert card.throttled == ("power",)


def test_four_cards_keep_their_numbers(script: Script, reader: Reader) -> None:
    """All cards are in NVML's order with its numbers."""
    script.cards = [FakeCard(used=i * GB, uuid=f"GPU-{i}") for i in range(4)]
    script.write()
    read = [(card.index, card.uuid, card.used_bytes) for card in reader.read()]
    assert read == [(i, f"GPU-{i}", i * GB) for i in range(4)]


@pytest.mark.parametrize("call", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetHandleByIndex"])
def test_one_lost_card_of_four_does_not_hide_the_others(script: Script, reader: Reader, call: str) -> None:
    """Three cards are read under their own numbers while the third is lost, and four when it is back."""
    script.cards = [FakeCard() for _ in range(4)]
    script.errors = {f"{call} 2": 15}
    script.write()
    assert [card.index for card in reader.read()] == [0, 1, 3]
    script.errors = {}
    script.write()
    assert [card.index for card in reader.read()] == [0, 1, 2, 3]


def test_with_all_cards_lost_there_is_no_reading(script: Script, reader: Reader) -> None:
    """If all cards are lost, the error is temporary and gives the first card's reason."""
    script.cards = [FakeCard(), FakeCard()]
    script.errors = {"nvmlDeviceGetMemoryInfo": 15}
    script.write()
    error = refused(reader)
    assert error.reason.startswith("GPU 0: the GPU has fallen off the bus")
    assert not error.lasting


def test_each_mig_instance_is_a_card(script: Script, reader: Reader) -> None:
    """A MIG instance has its own memory and processes, the chip's temperature and clocks, and no power."""
    script.cards = [
        FakeCard(
            uuid="GPU-0",
            temp=61,
            throttle=0x20,
            instances={
                0: FakeCard(10 * GB, 4 * GB, name="H100 MIG 1g.10gb", uuid="MIG-a", processes=[(7, 4 * GB)]),
                3: FakeCard(20 * GB, GB, name="H100 MIG 2g.20gb", uuid="MIG-b"),
            },
        )
    ]
    script.write()
    first, second = reader.read()
    assert (first.index, first.mig, first.uuid, first.used_bytes) == (0, "0", "MIG-a", 4 * GB)
    assert first.processes == {7: 4 * GB}
    assert (second.index, second.mig, second.name) == (0, "3", "H100 MIG 2g.20gb")
    assert second.total_bytes == 20 * GB
    for instance in (first, second):
        assert (instance.temperature_c, instance.throttled, instance.power_w) == (61, ("heat",), None)


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetMaxMigDeviceCount", "no instance"]
)
def test_a_card_with_unreadable_instances_is_marked_as_partitioned(
    script: Script, reader: Reader, call: str
) -> None:
    """If the MIG instances cannot be read, the whole card's memory is given and marked as partitioned."""
    script.cards = [FakeCard(used=GB, instances={} if call == "no instance" else {0: FakeCard()})]
    script.errors = {call.replace(" ", "-"): 4}
    script.write()
    (card,) = reader.read()
    assert (card.mig, card.used_bytes, card.power_w) == ("on", GB, 50.0)


def test_processes_in_both_lists_are_counted_once(script: Script, reader: Reader) -> None:
    """A process in both lists is counted once, and a size that NVML does not give stays unknown."""
    script.cards = [FakeCard(processes=[(10, 5 * GB), (11, None)], drawing=[(10, 5 * GB), (12, GB)])]
    script.write()
    assert reader.read()[0].processes == {10: 5 * GB, 11: None, 12: GB}


def test_two_entries_of_a_process_are_added_up(script: Script, reader: Reader) -> None:
    """The sizes of a process that is twice in one list are added, if both are known."""
    script.cards = [FakeCard(processes=[(10, GB), (11, None), (12, GB), (10, 2 * GB), (11, GB), (12, None)])]
    script.write()
    assert reader.read()[0].processes == {10: 3 * GB, 11: None, 12: None}


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"]
)
def test_processes_that_may_not_be_listed_are_unknown(script: Script, reader: Reader, call: str) -> None:
    """Processes that may not be listed are unknown, not an empty list, and half a list counts as none."""
    script.cards = [FakeCard(processes=[(10, GB)], drawing=[(11, GB)])]
    script.errors = {call: 4}
    script.write()
    (card,) = reader.read()
    assert card.processes is None
    assert card.temperature_c == 40


def test_a_card_without_graphics_lists_compute_processes(script: Script, reader: Reader) -> None:
    """A card that does not support the list of graphics processes still lists compute processes."""
    script.cards = [FakeCard(processes=[(10, GB)])]
    script.errors = {"nvmlDeviceGetGraphicsRunningProcesses": 3}
    script.write()
    assert reader.read()[0].processes == {10: GB}


def test_a_field_that_fails_is_none_and_affects_no_other(script: Script, reader: Reader) -> None:
    """Each call except that for memory may fail alone and makes only its own field None."""
    script.cards = [FakeCard(used=GB)]
    fields = {
        "uuid": ["nvmlDeviceGetUUID"],
        "processes": ["nvmlDeviceGetComputeRunningProcesses"],
        "temperature_c": ["nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"],
        "power_w": ["nvmlDeviceGetPowerUsage"],
        "power_limit_w": ["nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit"],
        "throttled": ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"],
    }
    for field, calls in fields.items():
        script.errors = dict.fromkeys(calls, 999)
        script.write()
        (card,) = reader.read()
        missing = [name for name in fields if getattr(card, name) is None]
        assert (missing, card.used_bytes) == ([field], GB)
    script.errors = dict.fromkeys([call for calls in fields.values() for call in calls], 3)
    script.errors |= {"nvmlDeviceGetName": 999, "nvmlDeviceGetMigMode": 3}
    script.write()
    assert reader.read() == (Card(0, "GPU 0", 16 * GB, GB, reserved_bytes=0),)


def test_a_newer_library_without_the_old_temperature_call_is_read(script: Script, reader: Reader) -> None:
    """A library without the old temperature call, as CUDA 14 plans, is read by nvmlDeviceGetTemperatureV."""
    script.errors = {"nvmlDeviceGetTemperature": 13}
    script.write()
    assert reader.read()[0].temperature_c == 40


def test_a_driver_may_go_and_come_back(tmp_path: Path) -> None:
    """Readings fail while the driver is away and work at once when it is back, even after a reload."""
    script = Script(tmp_path / "script", [FakeCard(used=GB)])
    with Reader(script) as reader:
        away = refused(reader)  # no script yet: no driver
        assert (away.reason, away.lasting) == ("the NVIDIA driver is not loaded", False)
        script.write()
        assert reader.read()[0].used_bytes == GB
        script.errors = {"*": 999}
        script.write()
        assert refused(reader).reason == "NVML error: Unknown Error"
        assert refused(reader).lasting is False
        script.errors, script.cards = {}, [FakeCard(used=2 * GB)]
        script.write()
        assert reader.read()[0].used_bytes == 2 * GB
        script.epoch = 2
        script.write()
        assert refused(reader).reason == "NVML error: Uninitialized"
        assert reader.read()[0].used_bytes == 2 * GB


def test_no_card_is_reported_with_possible_causes(script: Script, reader: Reader) -> None:
    """A driver without GPU is reported with the possible cause that the unit may not use the devices."""
    script.cards = []
    script.write()
    error = refused(reader)
    assert "lists no GPU" in error.reason
    assert "DeviceAllow" in error.reason
    assert error.lasting


def test_a_card_with_shared_memory_is_not_watched(script: Script, reader: Reader) -> None:
    """A GPU that shares the machine's memory is not watched, because NVML never gives its memory."""
    script.errors = {"nvmlDeviceGetMemoryInfo": 3}
    script.write()
    error = refused(reader)
    assert "shared with main memory" in error.reason
    assert error.lasting


def test_a_missing_library_is_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without libnvidia-ml.so.1 has no driver, which is permanent."""

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", absent)
    with pytest.raises(NoReading, match="no NVIDIA driver on this machine") as caught:
        NvmlCards().read()
    assert caught.value.lasting


def test_a_lost_card_is_looked_for_once_a_minute() -> None:
    """A lost card is found again by initialising the library, once a minute because that is slow."""

    class OneOfTwo:
        """A module in which card 1 cannot be read before the third initialisation."""

        NVMLError = pynvml.NVMLError
        NVML_TEMPERATURE_GPU = 0
        nvmlMemory_v2 = pynvml.nvmlMemory_v2
        inits = 0

        def nvmlInit(self) -> None:
            self.inits += 1

        def nvmlShutdown(self) -> None:
            pass

        def nvmlDeviceGetCount(self) -> int:
            return 2

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
            if index and self.inits < 3:
                raise pynvml.NVMLError(15)
            return index

        def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: int) -> Any:
            raise pynvml.NVMLError(4)

        def nvmlDeviceGetMemoryInfo(self, handle: int, version: int) -> Any:
            info = pynvml.c_nvmlMemory_v2_t()
            info.total, info.free = 16 * GB, 15 * GB
            return info

    nvml = OneOfTwo()
    probe = NvmlCards(nvml)
    counts = [len(probe.read()) for _ in range(200)]
    assert counts == [1] * 120 + [2] * 80
    assert nvml.inits == 3


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x0, ()),
        (0x1 | 0x2 | 0x100, ()),
        (0x4, ("power",)),
        (0x20, ("heat",)),
        (0x8 | 0x40, ("heat",)),
        (0x8 | 0x80, ("power brake",)),
        (0x8, ("hardware",)),
        (0x4 | 0x10 | 0x60, ("power", "heat", "slower partner")),
        (0x8000, ("reason 0x8000",)),
    ],
)
def test_throttling_is_described(bits: int, words: tuple[str, ...]) -> None:
    """Idle and set clocks are no throttling, and a hardware slowdown is described by its cause."""
    assert throttle_words(bits) == words
