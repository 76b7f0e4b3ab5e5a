"""The bench of the evaluation process runs."""

from __future__ import annotations

import asyncio

import pytest

from bench.bench_evaluation import main


def test_it_prints_a_line_for_each_number_of_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """The output has four lines with times, on a few rows."""
    asyncio.run(main(rows=32, repeats=1))

    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:19].strip() for line in lines] == [
        "process,  1 at once",
        "process,  4 at once",
        "process, 16 at once",
        "on the spot",
    ]
    assert all("ms of CPU" in line for line in lines)
