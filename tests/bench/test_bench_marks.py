"""The bench of learned marks at a size that takes seconds."""

from __future__ import annotations

import pytest

from bench import bench_marks


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_conversations_take_turns_and_each_mark_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """`make bench-marks` in small: simulated machines, then a real model, where 14 rows teach nothing yet."""
    bench_marks.main(
        [
            *("--keep", "5", "--tokens", "60", "--rows", "60", "--step", "3"),
            *("--models", "smollm2:135m", "--threads", "1", "--learn-rows", "64"),
            *("--real-learn-rows", "14", "--real-keep", "2", "--real-tried", "2,4"),
            *("--real-rows", "14"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()

    assert sum(line.split()[0] in ("CPU", "CARD_16GB", "CARD_LARGE") for line in lines if line) == 3
    start = lines.index("smollm2:135m, keep 2")
    real = [line.split() for line in lines[start + 2 : start + 4]]
    assert [row[0] for row in real] == ["2", "4"]
    assert [int(row[1]) for row in real] == [10, 8], "whole periods, from the first trim on"
    assert "1.000" in {row[3] for row in real}
    evaluated, prompt = ([float(row[n]) for row in real] for n in (4, 5))
    assert evaluated[0] > evaluated[1], "trims are dear: the kept rows are evaluated again"
    assert prompt[0] < prompt[1], "and make prompts short"
    assert lines[start + 4].startswith("nothing was learned: only 14 requests")
