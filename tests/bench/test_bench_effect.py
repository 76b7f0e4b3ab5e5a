"""`make bench-effect` with 20 jobs a kind: pilot and audit find harm early and raise no false alarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import bench_effect
from bench.effect.jobs import run_job
from bench.effect.scenarios import by_name, small
from bench.effect.table import HARM, Counted


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counted]:
    """20 jobs of 10,000 rows of each kind."""
    path = tmp_path_factory.mktemp("effect") / "table.md"
    found = bench_effect.main(
        ["--seeds", "20", "--first-seed", "0", "--rows", "10000", "--markdown", str(path)]
    )
    table = Path(path).read_text()
    assert all(f"| {row.name} |" in table for row in found)
    return {row.name: row for row in found}


@pytest.mark.slow
def test_harm_of_ten_points_is_found(rows: dict[str, Counted]) -> None:
    """All jobs of a kind except one are found, and over 95 % of all together; strong harm is found early."""
    harmful = [row for row in rows.values() if row.harmful]
    assert len(harmful) >= 10
    assert sum(row.missed for row in harmful) < 0.05 * sum(row.harmful for row in harmful)
    assert all(row.missed <= 1 for row in harmful)
    for row in harmful:
        if "strong" in row.name and row.known_late is not None:
            assert row.known_late <= 3000


@pytest.mark.slow
def test_no_alarm_is_raised_without_harm(rows: dict[str, Counted]) -> None:
    """Shuffled or sorted, labels or scores, with noise, half the margin or better answers:
    under 5 % alarms.
    """
    quiet = [row for row in rows.values() if row.quiet]
    assert len(quiet) >= 7
    assert sum(row.alarms for row in quiet) < 0.05 * sum(row.quiet for row in quiet)


@pytest.mark.slow
def test_the_pilot_chooses_the_right_form(rows: dict[str, Counted]) -> None:
    """The pilot chooses a form that agrees better with gold, and isolated rows everywhere else."""
    right = {
        "gold: ignores the conversation": "isolated",
        "gold: better with examples": "anchors",
        "gold: better with examples, a little": "anchors",
        "gold: follows the majority, strong": "isolated",
        "gold: follows the previous answer, mild": "isolated",
    }
    assert {name: next(iter(rows[name].forms)) for name in right} == right
    assert all(rows[name].forms[form] >= 19 for name, form in right.items())


@pytest.mark.slow
def test_smaller_jobs_find_their_smallest_detectable_harm() -> None:
    """The audit finds its stated smallest harm in 90 % of 40 jobs (95 % by the documentation)."""
    for size in (300, 1000, 3000):
        job, share = small(size)
        found = [run_job(job, seed) for seed in range(40)]
        assert sum(o.lost for o in found) / 40 == pytest.approx(share, abs=0.05)
        assert sum(o.known_after is not None for o in found) >= 36


def test_a_job_is_the_same_for_a_seed() -> None:
    """A seed gives the same table everywhere."""
    (scenario,) = by_name("follows the majority, mild, temperature 1")
    assert run_job(scenario, 3) == run_job(scenario, 3) != run_job(scenario, 4)
    assert HARM < run_job(scenario, 3).lost < 2 * HARM
