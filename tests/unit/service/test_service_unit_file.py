"""packaging/spoolama.service has what the service needs of systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from spoolama.service.settings import load_settings

UNIT = Path(__file__).parents[3] / "packaging" / "spoolama.service"


def keys() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_has_what_the_service_relies_on() -> None:
    """The unit has each setting that the service relies on; each was measured to matter."""
    unit = keys()
    assert unit["Type"] == ["notify"]
    assert unit["KillMode"] == ["mixed"]
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == ["78"]
    assert "WatchdogSec" in unit
    # One mount, because renames between the spool's directories must not leave it.
    assert unit["ReadWritePaths"] == [str(load_settings(None, {}).spool)]
    assert "PrivateUsers" not in unit


def test_the_unit_can_read_memory() -> None:
    """The unit can read model processes, /proc/meminfo and each device that NVML opens, also for MIG."""
    unit = keys()
    assert unit["ProtectProc"] == ["default"]
    assert "ProcSubset" not in unit
    assert "PrivateDevices" not in unit
    assert {f"char-{name} rw" for name in ("nvidia", "nvidiactl", "nvidia-caps")} <= set(unit["DeviceAllow"])


def test_systemd_does_not_give_up_on_a_crash_loop_that_the_service_handles() -> None:
    """Only a service that runs less than a second after each start reaches the start limit."""
    unit = keys()
    assert unit["StartLimitIntervalSec"] == ["10min"]
    restart_s = int(unit["RestartSec"][0].removesuffix("s"))
    assert int(unit["StartLimitBurst"][0]) * (restart_s + 1) >= 600


def test_draining_ends_well_before_the_stop_timeout() -> None:
    """The default drain_s is well below TimeoutStopSec."""
    timeout_s = int(keys()["TimeoutStopSec"][0].removesuffix("s"))
    assert load_settings(None, {}).drain_s + 20 <= timeout_s


@pytest.mark.system
def test_systemd_accepts_the_unit_with_low_exposure(tmp_path: Path) -> None:
    """systemd knows every key of the unit and rates its exposure at 2.0 or less."""
    if shutil.which("systemd-analyze") is None:
        pytest.fail("systemd-analyze is not installed: apt-get install systemd")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/spoolama", shutil.which("true") or "/bin/true"))
    verify = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
    assert (verify.returncode, verify.stderr) == (0, "")
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", copy],
        capture_output=True,
        text=True,
    )
    assert security.returncode == 0, security.stdout[-300:]
