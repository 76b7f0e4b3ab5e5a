"""Memory is flat whatever the size."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.bench_rows import measure


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_thousand_rows_take_no_more_memory_than_a_thousand(tmp_path: Path) -> None:
    """Peak memory of the whole process, intake to publishing, within 20 MB."""
    small, large = measure(tmp_path, 1_000), measure(tmp_path, 20_000)
    print(f"peak: {small.peak_mb:.1f} MB at 1,000 rows, {large.peak_mb:.1f} MB at 20,000")
    assert abs(large.peak_mb - small.peak_mb) <= 20
