"""The estimate of a load compared with what the embedded engine allocates for two real models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench.bench_estimate import Compared, compare
from spoolama.backends.base import LoadSpec

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None,
        reason="xllamacpp, the embedded engine, is not installed",
    ),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are joined, once for all sizes."""
    return tmp_path_factory.mktemp("models")


def close(found: Compared) -> None:
    """Check keys and values within 1 %, and buffers and process within 15 %."""
    assert found.kv_error == pytest.approx(0, abs=0.01)
    assert found.buffers_error == pytest.approx(0, abs=0.15)
    assert found.process_error == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("window", [2048, 4096])
def test_a_model_with_a_whole_window_takes_the_estimate(window: int, slots: int, cache: Path) -> None:
    """The estimate fits Gemma 3 270M, whose short windows the backend keeps whole, as its shape says."""
    found = compare(LoadSpec("gemma3:270m", window, slots=slots), cache_dir=cache)

    assert found.whole
    close(found)


def test_a_model_with_a_sliding_window_takes_the_estimate(cache: Path) -> None:
    """The estimate fits the same model with its own window of 512, as for longer windows."""
    found = compare(LoadSpec("gemma3:270m", 4096, slots=2), whole=False, cache_dir=cache)

    assert not found.whole
    close(found)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("window", [2048, 4096])
def test_a_model_with_plain_attention_takes_the_estimate(window: int, slots: int, cache: Path) -> None:
    """The estimate fits SmolLM2-135M, whose tensors no CPU copies."""
    found = compare(LoadSpec("smollm2:135m", window, slots=slots), cache_dir=cache)

    assert not found.whole
    close(found)
