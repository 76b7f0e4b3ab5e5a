"""The limits of GPU memory in `spoolama check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolama.cli import gpu_report
from spoolama.cli.check import memory_limits
from spoolama.cli.main import spoolama
from spoolama.clock import SystemClock
from spoolama.job.sidecar import Vram
from spoolama.memory.level import GB, RelativeLimits
from support.cards import ScriptedCards, card

CARD = [16 * GB]


def printed(*totals: int, **vram: float) -> str:
    return "\n".join(memory_limits(Vram(**vram), RelativeLimits(), totals))


def test_check_echoes_the_limits_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` shows the limits for the cards found now, with the service's limit where the
    sidecar has none.
    """
    monkeypatch.delenv("SPOOLAMA_CONFIG", raising=False)
    probe = ScriptedCards([(0, (card(3),))], SystemClock())
    monkeypatch.setattr(gpu_report, "NvmlCards", lambda: probe)
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "a.yaml").write_text("model: m\nprompt: '{{ text }}'\nvram: {critical: 0.9}\n")
    output = CliRunner().invoke(spoolama, ["check", str(tmp_path / "a.csv")], catch_exceptions=False).output
    lines = [line for line in output.splitlines() if "vram" in line]
    assert lines == [
        "vram: high from 14.0 GB, critical from 14.4 GB on a GPU of 16.0 GB, counting all processes."
    ]


def test_cards_of_one_size_share_one_line() -> None:
    """Cards of one size share one line."""
    assert printed(16 * GB, 16 * GB, 24 * GB, critical=0.9).count("vram: high from") == 2


@pytest.mark.parametrize(
    ("vram", "words"),
    [
        ({"high": 0.95}, "vram.high: 0.95 exceeds the service's 14.0 GB on a GPU of 16.0 GB"),
        ({"critical": 15.5}, "vram.critical: 15.5 exceeds the service's 15.0 GB"),
        (
            {"keep_free_gb": 0.7},
            "vram.keep_free_gb: 0.7 is lower than the service's limit, which keeps",
        ),
        ({"keep_free_gb": 9}, "vram.keep_free_gb: 9 is more than half of a GPU of 16.0 GB"),
    ],
)
def test_a_limit_without_effect_gives_a_warning(vram: dict[str, float], words: str) -> None:
    """A limit above the service's own gives a warning, because it has no effect."""
    assert f"Warning: {words}" in printed(*CARD, **vram)


@pytest.mark.parametrize(
    ("vram", "limits"),
    [
        ({"high": 0.875}, "high from 14.0 GB, critical from 15.0 GB"),
        ({"critical": 12}, "high from 12.0 GB, critical from 12.0 GB"),
        ({"keep_free_gb": 1}, "high from 14.0 GB, critical from 15.0 GB"),
        ({"keep_free_gb": 8}, "high from 8.0 GB, critical from 8.0 GB"),
    ],
)
def test_a_limit_within_the_services_own_is_in_force(vram: dict[str, float], limits: str) -> None:
    """A limit at or below the service's own is shown without a warning."""
    assert printed(*CARD, **vram) == f"vram: {limits} on a GPU of 16.0 GB, counting all processes."


def test_without_a_card_only_shares_are_compared() -> None:
    """Without a card, shares are compared with shares, and a share with a size is not compared."""
    text = printed(high=12, critical=0.95, keep_free_gb=0.2)
    assert "high from 12 GB or 87.5 % of a GPU, whichever is less; critical from 93.75 % of a GPU, or" in text
    assert "with less than 0.5 GB free" in text
    assert "Warning: vram.critical: 0.95 exceeds the service's 0.9375" in text
    assert "Warning: vram.keep_free_gb: 0.2 is lower than the service's 0.5" in text
    assert text.count("Warning: ") == 2
