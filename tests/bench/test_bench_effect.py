"""`make bench-effect` at 20 jobs a kind: pilot, guard and audit find what is there and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import bench_effect
from bench.effect.jobs import run_job
from bench.effect.scenarios import by_name
from bench.effect.table import HARM, Counted, wilson


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counted]:
    """20 jobs of 10,000 rows of each kind."""
    path = tmp_path_factory.mktemp("effect") / "table.md"
    found = bench_effect.main(["--seeds", "20", "--markdown", str(path)])
    table = Path(path).read_text()
    assert all(f"| {row.name} |" in table for row in found)
    return {row.name: row for row in found}


@pytest.mark.slow
def test_harm_of_ten_points_is_found(rows: dict[str, Counted]) -> None:
    """At temperature 0 in all but one job of a kind at most, and in all of them together in over 95 %."""
    harmful = [row for row in rows.values() if row.harmful]
    assert len(harmful) >= 15
    assert sum(row.missed for row in harmful) < 0.05 * sum(row.harmful for row in harmful)
    assert all(row.missed <= 1 for row in harmful if "temperature 1" not in row.name)
    assert all(row.cleared <= 1 for row in harmful), "a miss is said to be too few rows, not to be no harm"


@pytest.mark.slow
def test_no_alarm_is_raised_where_nothing_is(rows: dict[str, Counted]) -> None:
    """Shuffled or sorted, labels or scores: none at temperature 0, under 5 % in all together."""
    quiet = [row for row in rows.values() if row.quiet]
    assert len(quiet) >= 10
    assert sum(row.alarms for row in quiet) < 0.05 * sum(row.quiet for row in quiet)
    assert all(
        row.alarms == 0 for row in quiet if "temperature 1" not in row.name and "gold: better" not in row.name
    )


@pytest.mark.slow
def test_the_pilot_chooses_what_is_right(rows: dict[str, Counted]) -> None:
    """The faster form where it changes nothing, the better one on gold, rows alone everywhere else."""
    right = {
        "auto: ignores the conversation": "tail-20",
        "auto: ignores, file sorted by outcome": "tail-20",
        "auto: ignores, scores": "tail-20",
        "auto: follows the previous answer, mild": "alone",
        "auto: follows the majority, strong": "alone",
        "auto: drifts with depth": "alone",
        "auto: better with examples, no gold": "alone",
        "gold: ignores the conversation": "tail-20",
        "gold: better with examples": "tail-20",
        "gold: better, no form is faster": "anchors",
        "gold: follows the majority, strong": "alone",
    }
    assert {name: next(iter(rows[name].forms)) for name in right} == right
    assert all(rows[name].forms[form] >= 19 for name, form in right.items())


@pytest.mark.slow
def test_a_collapse_is_found_by_the_guard_without_an_audit(rows: dict[str, Counted]) -> None:
    """In a forced window, at temperature 0 and at 1, in nearly every job."""
    for name in ("strong", "strong, temperature 1"):
        assert rows[f"window: follows the majority, {name}"].by_guard >= 19


def test_a_job_is_the_same_for_a_seed() -> None:
    """The table is the same everywhere."""
    (scenario,) = by_name("window: follows the majority, mild, temperature 1")
    assert run_job(scenario, 3) == run_job(scenario, 3) != run_job(scenario, 4)
    assert HARM < run_job(scenario, 3).harm < 2 * HARM


def test_wilsons_interval_is_that_of_scipy() -> None:
    """Against another computation."""
    from scipy.stats import binomtest

    for hits, of in ((0, 200), (7, 200), (200, 200)):
        exact = binomtest(hits, of).proportion_ci(0.95, method="wilson")
        assert wilson(hits, of) == pytest.approx((exact.low, exact.high), abs=1e-6)
