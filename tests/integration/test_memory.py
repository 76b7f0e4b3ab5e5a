"""Memory does not grow with the number of rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import bench_rows
from bench.bench_rows import measure
from support.thorough import cases


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_rows_take_no_more_memory_than_a_thousand(tmp_path: Path) -> None:
    """From intake to publishing, the peak memory of the process grows by at most 1 kB for each row."""
    rows = cases(9_000, 100_000)
    small, large = measure(tmp_path, 1_000), measure(tmp_path, rows)
    print(f"peak: {small.peak_mb:.1f} MB at 1,000 rows, {large.peak_mb:.1f} MB at {rows:,}")
    assert large.peak_mb - small.peak_mb <= 8


def test_the_bench_prints_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make bench` with a size of one second prints the machine, a line for each size, and the spread."""
    monkeypatch.setattr("sys.argv", ["bench_rows.py", "--rows", "20,40", "--mode", "conversation"])
    bench_rows.main()
    head, columns, *lines, peaks = capsys.readouterr().out.splitlines()
    assert head.startswith("on the fake server at zero latency")
    assert columns.split()[:2] == ["rows", "rows/s"]
    assert [line.split()[0] for line in lines] == ["20", "40"]
    assert all(float(number) > 0 for line in lines for number in line.split()[1:4])
    assert peaks.startswith("peaks of memory within")
