"""`spoolama gpu`: what it reads, estimates and prints; it never loads a model and never hangs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nvml_stub import FakeCard, Script
from spoolama.backends.base import HeldModel, LoadSpec
from spoolama.backends.model_shape import ModelShape
from spoolama.cli import gpu_report
from spoolama.cli.gpu import in_words
from spoolama.cli.gpu_report import GpuReport
from spoolama.cli.main import spoolama
from spoolama.clock import SystemClock
from spoolama.errors import RequestRefused, ServerAway
from spoolama.memory.readings import NoCards, NoReading
from spoolama.model.model_size import EstimatedSize
from spoolama.service.settings import load_settings
from support.backend import ScriptedBackend
from support.cards import GB, Scene, ScriptedCards, card

NOBODY = "http://127.0.0.1:9"
NO_DRIVER = NoReading("no NVIDIA driver on this machine", lasting=True)
LLAMA_8B = ModelShape(
    "llama",
    32,
    (8,) * 32,
    (False,) * 32,
    128,
    128,
    128,
    128,
    32,
    4096,
    16_068_894_912,
    feed_forward_length=14336,
    vocab_size=128_256,
    trained_ctx=131_072,
)
"""Llama 3.1 8B in F16, as tests/unit/memory/test_memory_estimate.py has it."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPOOLAMA_SPOOL", "SPOOLAMA_CONFIG"):
        monkeypatch.delenv(name, raising=False)


class _Server(ScriptedBackend):
    """A server with the models that the test sets."""

    listed: tuple[HeldModel, ...] | None = ()
    away = False

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        if self.away:
            raise ServerAway("nobody there")
        return self.listed


def look(
    scene: Scene,
    spec: LoadSpec | None = None,
    *,
    arrange: Callable[[_Server], None] = lambda _: None,
    config: Path | None = None,
    **settings: object,
) -> dict[str, Any]:
    """Return the report for these cards and this server."""
    clock = SystemClock()
    given = {f"SPOOLAMA_{key.upper()}": str(value) for key, value in settings.items()}
    server = _Server(clock, uses_gpus=True, shape_=LLAMA_8B)
    arrange(server)

    async def once() -> dict[str, Any]:
        seeing = GpuReport(load_settings(config, given), server, spec, ScriptedCards([(0, scene)], clock))
        task = asyncio.create_task(seeing.run(keep_on=False))
        try:
            async with asyncio.timeout(30):
                await seeing.looked()
            return seeing.payload()
        finally:
            task.cancel()

    found = asyncio.run(once())
    assert (server.loads, server.calls) == ([], []), "nothing is loaded, nothing is asked"
    return found


def printed(found: dict[str, Any]) -> str:
    return "\n".join(in_words(found))


def call(monkeypatch: pytest.MonkeyPatch, probe: object, *arguments: str) -> Result:
    """Run the command with these cards, as a user does."""
    monkeypatch.setattr(gpu_report, "NvmlCards", lambda: probe)
    return CliRunner().invoke(spoolama, ["gpu", *arguments], catch_exceptions=False)


def test_without_gpu_and_server_the_report_gives_reasons_and_main_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU or a server, the command gives each reason, shows the machine's memory and
    exits with 0.
    """
    result = call(monkeypatch, NoCards("no NVIDIA driver on this machine"), "--url", NOBODY)

    assert result.exit_code == 0
    assert "GPUs: no readings, because no NVIDIA driver on this machine.\n" in result.output
    assert "This machine:\n" in result.output
    assert f"Model server ollama: cannot list its loaded models: {NOBODY}" in result.output


def test_everything_of_a_card_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has memory, the driver's own part, limits, temperature, power, throttling and
    each process.
    """
    full = card(
        15.5,
        name="NVIDIA L4",
        reserved_bytes=GB // 2,
        temperature_c=81,
        power_w=71.6,
        power_limit_w=72.0,
        throttled=("power", "heat"),
        processes={4711: 8 * GB, 4712: None},
    )
    probe = ScriptedCards([(0, (full,))], SystemClock())

    text = call(monkeypatch, probe, "--url", NOBODY).output

    assert text.startswith("Memory pressure is critical: GPU memory: 15.5 GB of 16.0 GB in use.\n")
    assert "GPU 0, NVIDIA L4:\n" in text
    assert "15.5 GB of 16.0 GB in use, 0.5 GB of it by the driver; 0.5 GB free" in text
    assert "high from 14.0 GB, critical from 15.0 GB; now critical" in text
    assert "at least 0.5 GB stay free for all processes together (vram.keep_free_gb)" in text
    assert "81 °C, 72 of 72 W, clocks throttled: power, heat" in text
    assert "process 4711: 8.0 GB\n  process 4712: size unknown\n" in text


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    """Missing values stay missing: for a card that reports only memory, for MIG, and for cards that do not
    count.
    """
    cards = (
        card(1, mig="2"),
        card(2, index=1, mig="on", processes={}, throttled=()),
    )

    (tmp_path / "c.yaml").write_text("vram: {cards: [0]}\n")

    text = printed(look(cards, config=tmp_path / "c.yaml"))

    assert "scripted card, MIG instance 2:\n" in text
    assert "in MIG mode, instances cannot be read (ignored: vram.cards):\n" in text
    assert text.count("by process: unknown") == text.count("no process uses it") == 1
    assert text.count("°C") == text.count(" W") == 0
    assert text.count("clocks not throttled") == 1


@pytest.mark.parametrize(("used", "level"), [(13.9, "ok"), (14, "high"), (14.9, "high"), (15, "critical")])
def test_the_level_is_that_of_this_moment(used: float, level: str) -> None:
    """One reading is enough, while the service waits for a peak to pass."""
    assert look((card(used),))["level"] == level


def test_the_level_follows_the_settings() -> None:
    """The limits are those of the service."""
    found = look((card(10),), vram__high=8, vram__critical=9)

    assert found["level"] == "critical"
    assert found["cards"][0]["critical_bytes"] == 9 * GB


def test_an_estimate_is_compared_with_free_memory() -> None:
    """A model whose estimate fits the free memory is reported as fitting."""
    found = look((card(2, 24),), LoadSpec("m", 8192, slots=2))["estimate"]

    assert found["fits"] is True
    assert found["may_be_taken_bytes"] == round(24 * 0.9375 * GB) - 2 * GB
    assert found["estimate"] == EstimatedSize(LLAMA_8B, on_card=True).to_json(LoadSpec("m", 8192, slots=2))


def test_a_model_that_does_not_fit_is_reported_with_free_memory() -> None:
    """A model that does not fit is reported with its estimate and the free memory."""
    found = look((card(2, 24),), LoadSpec("m", 65_536))
    text = printed(found)

    assert found["estimate"]["fits"] is False
    assert "Estimate for m with num_ctx 65,536 and 1 slot, on a GPU (no model was loaded):\n  about " in text
    assert "It does not fit now: 20.5 GB available below the critical limit." in text
    assert text.endswith("available below the critical limit.")


def test_a_model_that_the_server_does_not_have_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that the server does not have gives exit status 1; an unreachable server does not."""

    async def refuse(_: object, __: LoadSpec) -> None:
        raise RequestRefused("model 'nope' not found")

    monkeypatch.setattr("spoolama.backends.ollama.OllamaBackend.shape", refuse)
    probe = NoCards("no NVIDIA driver on this machine")
    result = call(monkeypatch, probe, "--url", NOBODY, "--model", "nope")
    assert (result.exit_code, "not possible, because model 'nope' not found." in result.output) == (1, True)
    monkeypatch.undo()
    assert call(monkeypatch, probe, "--url", NOBODY, "--model", "nope").exit_code == 0


def test_the_servers_own_models_count_as_free() -> None:
    """Memory of the server's other models counts as free, because it unloads them for a load."""

    def holds(server: _Server) -> None:
        server.listed = (HeldModel("old:8b", 18 * GB, 17 * GB, 4096),)

    found = look((card(19, 24),), LoadSpec("m", 4096), arrange=holds)

    assert found["estimate"]["fits"] is True
    assert found["estimate"]["may_be_taken_bytes"] == round((22.5 - 19 + 17) * GB)
    assert "  old:8b: 18.0 GB, 17.0 GB of it on GPUs, num_ctx 4,096\n" in printed(found)


def test_without_a_card_main_memory_counts() -> None:
    """Without a card the estimate is compared with main memory, which Ollama then uses."""
    found = look(NO_DRIVER, LoadSpec("m", 4096))["estimate"]

    assert found["where"] == "host"
    assert found["fits"] is not None


def test_unreadable_cards_leave_the_question_open() -> None:
    """If the driver does not answer, the command does not decide whether the model fits."""
    found = look(NoReading("NVML error: Unknown Error"), LoadSpec("m", 4096))

    assert found["estimate"]["fits"] is None
    assert found["estimate"]["where"] == "card"
    assert "Whether it fits is unknown" in printed(found)


def test_why_there_is_no_estimate() -> None:
    """A server without model details and an unreachable server are each given as the reason."""

    def shapeless(server: _Server) -> None:
        server.shape_ = None

    def away(server: _Server) -> None:
        server.away = True
        shapeless(server)

    text = printed(look((card(1),), LoadSpec("m", 4096), arrange=shapeless))
    assert text.endswith("1 slot: not possible, because the server does not report the shape of the model.")
    assert "cannot list its loaded models: nobody there." in printed(look((card(1),), arrange=away))


def test_a_server_on_another_host_does_not_use_these_cards() -> None:
    """For a server on another host no level is shown, and this machine's cards are named as not
    the server's.
    """
    found = look((card(15.9),), backend__url="http://192.0.2.1:11434")

    assert (found["level"], found["cards"]) == (None, None)
    assert printed(found).startswith("Memory pressure is unknown: the model server is on another machine.\n")
    assert "This machine (not the server's):\n" in printed(found)


def test_json_has_the_same_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON has bytes, and null for unknown values."""
    probe = ScriptedCards([(0, (card(3, processes={7: 5}),))], SystemClock())

    found = json.loads(call(monkeypatch, probe, "--url", NOBODY, "--json").output)

    assert found["level"] == "ok"
    assert found["cards"][0]["used_bytes"] == 3 * GB
    assert found["cards"][0]["processes"] == [{"pid": 7, "name": None, "bytes": 5}]
    assert found["cards"][0]["temperature_c"] is None
    assert found["estimate"] is None


def test_a_window_without_a_model_is_an_error() -> None:
    """A window without a model is an error."""
    result = CliRunner().invoke(spoolama, ["gpu", "--num-ctx", "8192"])

    assert result.exit_code == 2
    assert "--model" in result.output


_HEARS_CTRL_C = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from spoolama.cli.main import spoolama; spoolama(sys.argv[1:])"
)
"""A shell starts background jobs with Ctrl-C ignored, and children inherit that."""


def _child(script: Script, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HEARS_CTRL_C, "gpu", "--url", NOBODY, *arguments]
    return subprocess.Popen(
        command, env=os.environ | script.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_driver_that_hangs_does_not_hang_the_command(tmp_path: Path) -> None:
    """A driver call that blocks for a minute does not delay the command, which reports the hang."""
    script = Script(tmp_path / "script", hanging=["nvmlDeviceGetMemoryInfo"])
    script.write()

    with _child(script) as child:
        out, err = child.communicate(timeout=30)

    assert (child.returncode, err) == (0, "")
    assert re.search(r"^GPUs: no readings, because NVML has not answered for \d+ s\.$", out, re.MULTILINE)
    assert "This machine:\n" in out


def test_watch_follows_the_card_until_it_is_interrupted(tmp_path: Path) -> None:
    """The JSON lines follow the card's memory, and Ctrl-C ends the command silently with status 0."""
    script = Script(tmp_path / "script", cards=[FakeCard(used=GB)])
    script.write()

    with _child(script, "--watch", "--json") as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["cards"][0]["used_bytes"] == GB
        script.cards = [FakeCard(used=15 * GB)]
        script.write()
        levels = iter(lambda: json.loads(child.stdout.readline())["level"], None)  # type: ignore[union-attr]
        assert "critical" in (next(levels) for _ in range(20))
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)

    assert (child.returncode, err) == (0, "")
