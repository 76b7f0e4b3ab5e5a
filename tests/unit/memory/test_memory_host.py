"""Memory of the machine, of the control group, and of the model processes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from spoolama.memory.host import HostProbe
from spoolama.memory.readings import Host, Runner
from support.hand_clock import HandClock

GB = 1 << 30
KIB_PER_GB = 1 << 20

MEMINFO = f"""\
MemTotal:       {64 * KIB_PER_GB} kB
MemFree:        {10 * KIB_PER_GB} kB
MemAvailable:   {40 * KIB_PER_GB} kB
SwapTotal:      {8 * KIB_PER_GB} kB
SwapFree:       {6 * KIB_PER_GB} kB
HugePages_Total:       0
"""

STATUS = """\
Name:\t{name}
State:\tS (sleeping)
VmRSS:\t {rss} kB
RssAnon:\t {anon} kB
Threads:\t8
"""


class Machine:
    """A copy of the layout of /proc and /sys/fs/cgroup, with a probe that reads it."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        self.clock = HandClock()
        self.probe = HostProbe(self.proc, self.groups, self.clock)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(MEMINFO)
        (self.proc / "self" / "cgroup").write_text("0::/system.slice/spoolama.service\n")
        (self.proc / "stat").write_text("cpu 1 2 3\n")

    def process(self, pid: int, *command: str, comm: str = "", rss: int = 100, anon: int = 60) -> None:
        """A process with this command line; sizes in KiB."""
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        name = comm or Path(command[0]).name
        (folder / "comm").write_text(name[:15] + "\n")
        (folder / "cmdline").write_text("".join(f"{word}\0" for word in command))
        (folder / "status").write_text(STATUS.format(name=name, rss=rss, anon=anon))

    def group(self, path: str, **files: int | str) -> None:
        """A control group with these files; `memory_max` is memory.max."""
        folder = self.groups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with 64 GB, 40 GB available and no limits."""
    return Machine(tmp_path)


def test_without_limits_the_machine_decides(machine: Machine) -> None:
    """Total and available memory and swap are in bytes, and groups without a limit do not count."""
    machine.group("system.slice", memory_max="max", memory_current=GB)
    assert machine.probe.host() == Host(64 * GB, 40 * GB, 8 * GB, 6 * GB)


def test_a_limit_of_the_unit_bounds_available_memory(machine: Machine) -> None:
    """Memory in use is subtracted from memory.max, except pages of files that can be dropped."""
    stat = f"anon {2 * GB}\nfile {4 * GB}\nshmem {GB}\ninactive_file {2 * GB}\nactive_file {GB}"
    machine.group("system.slice/spoolama.service", memory_max=8 * GB, memory_current=6 * GB, memory_stat=stat)
    assert machine.probe.host() == Host(8 * GB, 5 * GB, 8 * GB, 6 * GB, "memory.max of spoolama.service")
    stat += f"\nfile_dirty {GB}\nfile_writeback {GB}\nslab_reclaimable {GB}"
    machine.group("system.slice/spoolama.service", memory_stat=stat)
    host = machine.probe.host()
    assert host is not None
    assert host.available_bytes == 4 * GB, "what is yet to be written cannot be dropped"


def test_the_smallest_limit_around_the_unit_counts(machine: Machine) -> None:
    """A slice's limit applies to its units, and other units in the slice use it up."""
    machine.group("system.slice/spoolama.service", memory_max=8 * GB, memory_current=GB)
    machine.group("system.slice", memory_max=4 * GB, memory_current=3 * GB)
    host = machine.probe.host()
    assert host is not None
    assert (host.total_bytes, host.available_bytes) == (4 * GB, GB)
    assert host.bound == "memory.max of system.slice"
    machine.group("system.slice/spoolama.service", memory_max=2 * GB, memory_current=GB)
    host = machine.probe.host()
    assert host is not None
    assert (host.total_bytes, host.bound) == (2 * GB, "memory.max of spoolama.service")


def test_a_wide_limit_changes_nothing(machine: Machine) -> None:
    """A limit above the machine's memory has no effect, and the machine may have less left than
    the limit allows.
    """
    machine.group("system.slice/spoolama.service", memory_max=100 * GB, memory_current=99 * GB)
    assert machine.probe.host() == Host(64 * GB, 40 * GB, 8 * GB, 6 * GB)
    machine.group("system.slice/spoolama.service", memory_max=60 * GB, memory_current=GB)
    host = machine.probe.host()
    assert host is not None
    assert (host.total_bytes, host.available_bytes) == (60 * GB, 40 * GB)


def test_a_group_over_its_limit_has_nothing_available(machine: Machine) -> None:
    """If a limit was lowered below the memory in use, 0 is available."""
    machine.group("system.slice/spoolama.service", memory_max=GB, memory_current=2 * GB)
    host = machine.probe.host()
    assert host is not None
    assert (host.available_bytes, host.used_bytes) == (0, GB)


def test_a_container_sees_its_limit_at_the_root(machine: Machine) -> None:
    """In a cgroup namespace the group is `/`, and its files are at the root."""
    (machine.proc / "self" / "cgroup").write_text("1:cpu:/old\n0::/\n")
    machine.group("", memory_max=2 * GB, memory_current=GB)
    host = machine.probe.host()
    assert host is not None
    assert (host.total_bytes, host.bound) == (2 * GB, "memory.max of this container")


def test_the_swap_limit_of_the_unit_applies(machine: Machine) -> None:
    """memory.swap.max limits swap as memory.max limits memory."""
    machine.group("system.slice/spoolama.service", memory_swap_max=GB, memory_swap_current=0)
    host = machine.probe.host()
    assert host is not None
    assert (host.swap_total_bytes, host.swap_free_bytes) == (GB, GB)


def test_hidden_meminfo_is_no_reading(machine: Machine) -> None:
    """With ProcSubset=pid the file is missing, so the reading is None, not 0."""
    (machine.proc / "meminfo").unlink()
    assert machine.probe.host() is None


@pytest.mark.parametrize("text", ["", "1:cpu:/\n", "0::/../other\n"])
def test_without_a_readable_group_there_is_no_limit(machine: Machine, text: str) -> None:
    """Control groups of version 1, and groups outside the container, give no limit."""
    (machine.proc / "self" / "cgroup").write_text(text)
    machine.group("", memory_max=GB, memory_current=0)
    host = machine.probe.host()
    assert host is not None
    assert host.total_bytes == 64 * GB


def test_model_processes_are_known_by_their_command(machine: Machine) -> None:
    """llama-server and Ollama's runners are found; the server itself and commands that mention
    them are not.
    """
    machine.process(10, "/usr/lib/ollama/llama-server", "-m", "x.gguf", rss=2048, anon=512)
    machine.process(11, "/usr/bin/ollama", "runner", "--ollama-engine", "--model", "x")
    machine.process(12, "/tmp/ollama_llama_server", "--model", "x")
    machine.process(13, "/usr/bin/ollama", "serve")
    machine.process(14, "ollama")
    machine.process(15, "vi", "llama-server")
    machine.process(16, "")
    assert machine.probe.runners() == (
        Runner(10, "llama-server", 2048 << 10, 512 << 10),
        Runner(11, "ollama runner", 100 << 10, 60 << 10),
        Runner(12, "ollama_llama_server", 100 << 10, 60 << 10),
    )


def test_given_processes_are_listed_under_their_own_name(machine: Machine) -> None:
    """A process given by its number is listed under its own name, and only once if it is also found."""
    machine.process(20, "/venv/bin/python", "-m", "spoolama.backends.embedded_child", comm="embedded")
    machine.process(21, "llama-server")
    assert [(r.pid, r.name) for r in machine.probe.runners([21, 20])] == [
        (20, "embedded"),
        (21, "llama-server"),
    ]
    assert [r.pid for r in machine.probe.runners()] == [21]


def test_all_processes_are_scanned_every_ten_seconds(machine: Machine) -> None:
    """A new model process is found within 10 s, and known ones are read each time."""
    machine.process(30, "llama-server", rss=100)
    assert [r.pid for r in machine.probe.runners()] == [30]
    machine.process(31, "llama-server")
    machine.process(30, "llama-server", rss=200)
    machine.clock.move(9.9)
    assert [(r.pid, r.rss_bytes) for r in machine.probe.runners()] == [(30, 200 << 10)]
    machine.clock.move(0.1)
    assert [r.pid for r in machine.probe.runners()] == [30, 31]


def test_processes_that_ended_are_left_out(machine: Machine) -> None:
    """A process that is gone, a zombie or replaced under the same number is not listed."""
    for pid in (40, 41, 42, 43):
        machine.process(pid, "llama-server")
    assert len(machine.probe.runners()) == 4
    shutil.rmtree(machine.proc / "40")
    (machine.proc / "41" / "status").write_text("Name:\tllama-server\nState:\tZ (zombie)\n")
    machine.process(42, "/bin/sh")
    assert [r.pid for r in machine.probe.runners([40, 99])] == [43]


def test_an_old_kernel_without_the_anonymous_part(machine: Machine) -> None:
    """Without RssAnon only the resident size is given."""
    machine.process(50, "llama-server")
    (machine.proc / "50" / "status").write_text("Name:\tllama-server\nVmRSS:\t 7 kB\n")
    assert machine.probe.runners() == (Runner(50, "llama-server", 7 << 10),)


def test_the_real_machine_can_be_read() -> None:
    """The real /proc gives total memory and the size of the test's own process."""
    probe = HostProbe()
    host = probe.host()
    assert host is not None
    assert 0 < host.available_bytes <= host.total_bytes
    me = {runner.pid: runner for runner in probe.runners([os.getpid()])}[os.getpid()]
    assert 1 << 20 < me.rss_bytes < host.total_bytes + host.swap_total_bytes
    assert me.anonymous_bytes is not None
    assert 0 < me.anonymous_bytes <= me.rss_bytes
