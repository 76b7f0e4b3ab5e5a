"""The bench of forms at a size that takes seconds."""

from __future__ import annotations

import pytest

from bench import bench_forms


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_form_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A small `make bench-forms` has lines for 8 isolated rows and for the pilot's choice."""
    bench_forms.main(
        [*("--rows", "8", "--forms", "alone,auto", "--pilot", "12", "--lanes", "2", "--threads", "1")],
    )
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]

    assert [line[0].split(":")[0] for line in lines[1:]] == ["| alone", "| auto"]
    assert lines[1][2] == "–"
    assert lines[2][2].startswith("100%"), "auto found no proof on 8 rows, so rows stand alone"
