"""The engine's bench at a size that takes seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import bench_engine
from bench.engine.measured import Measured, RowCount, steady, trims
from bench.engine.rounds import Given
from bench.engine.table import summaries, with_loops

ROWS = 6
RUN = ("alone", "ceiling", "reset", "window", "loop")


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bench_measures_each_configuration_and_its_counts_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small `make bench-engine` has a line for each configuration, every row answered, and
    counts that add up.
    """
    bench_engine.main(
        [
            *("--rows", str(ROWS), "--models", "smollm2:135m", "--slots", "2", "--repeats", "1"),
            # Two threads wait for each other actively, which takes minutes on shared cores.
            *("--threads", "1"),
            *("--only", ",".join(RUN), "--cache-dir", str(tmp_path)),
            *("--json", str(tmp_path / "raw.json"), "--markdown", str(tmp_path / "table.md")),
        ]
    )
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    table = [line.split("|") for line in printed.splitlines() if line.startswith("| ")]
    assert [line[1].strip() for line in table[1:]] == [
        "alone", "**raw ceiling**", "reset", "window", "first try's loop (emulated)"
    ]  # fmt: skip
    assert all(line[2].strip() == "1" for line in table[1:])
    assert "best is" in printed
    assert "not measured: at least 90% of the ceiling with 4 slots" in printed

    runs = json.loads((tmp_path / "raw.json").read_text())["measured"]
    assert [run["name"] for run in runs] == list(RUN)
    for run in runs:
        assert run["wrong"] is None, run["name"]
        assert [row["ordinal"] for row in run["rows"]] == list(range(ROWS)), run["name"]
        counts, rows = run["counts"], run["rows"]
        assert counts["evaluated"] + counts["cached"] == counts["prompt"], run["name"]
        assert sum(row["prompt"] for row in rows) <= counts["prompt"], run["name"]
        assert all(0 < row["own"] <= row["prompt"] and row["completion"] > 0 for row in rows), run["name"]
        assert run["seconds"] > 0
    alone, ceiling = runs[:2]
    own = sum(row["own"] for row in ceiling["rows"])
    assert ceiling["counts"]["evaluated"] <= own, "only the rows' own tokens are evaluated"
    assert [row["completion"] for row in ceiling["rows"]] == [row["completion"] for row in alone["rows"]]


def test_a_refused_sidecar_is_skipped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that this version refuses has its line in the table and its reason below it."""
    from bench.engine import rounds, settings
    from bench.engine.ceiling import Rendered

    odd = settings.Configuration("alone", "mode: sideways")

    async def rendered(*_: object) -> Rendered:
        return Rendered((1,), ((1, 2),) * ROWS)

    monkeypatch.setattr(rounds, "CONFIGURATIONS", (odd,))
    monkeypatch.setattr(rounds, "render", rendered)
    bench_engine.main(
        ["--rows", str(ROWS), "--models", "m", "--slots", "1", "--only", "alone", "--repeats", "1"]
    )
    printed, errors = capsys.readouterr()
    assert "| alone | 0 | –" in printed
    assert "- alone: skipped, its sidecar is refused" in printed
    assert "mode" in errors


def _row(
    ordinal: int, place: int, visible_rows: tuple[int, ...], *, prompt: int = 100, cached: int = 90
) -> RowCount:
    return RowCount(ordinal, 0, place, visible_rows, prompt, cached, 3, 10, False, '"positive"', 0.1)


def test_a_trim_is_a_row_that_does_not_continue_the_last_one() -> None:
    """The visible rows decide what a trim is, whatever the strategy calls it."""
    rows = [_row(0, 0, ()), _row(1, 1, (0,)), _row(2, 2, (0, 1)), _row(3, 3, (0,)), _row(4, 4, (0, 3))]
    assert [row.ordinal for row in trims(rows)] == [3]
    anchored = [
        replace(_row(n, n, (1,)), isolated=n == 1, visible_rows=(1,) if n != 1 else ()) for n in range(5)
    ]
    assert [row.ordinal for row in trims(anchored)] == [2, 3, 4]
    assert [row.ordinal for row in steady(rows, 1)] == [2, 3, 4]
    alone = [_row(n, 0, ()) for n in range(6)]
    assert [row.ordinal for row in steady(alone, 2)] == [4, 5]


def test_tokens_cached_by_chance_do_not_count() -> None:
    """A word that a row shares with the last one by chance gives no share above 1."""
    assert _row(0, 0, (), prompt=100, cached=95).shared == 90
    assert _row(0, 0, (), prompt=100, cached=50).shared == 50


def test_the_first_loop_runs_once_for_every_number_of_slots() -> None:
    """The loop sends one request at a time, so one run of it stands for four slots."""
    given = Given(ROWS, ("a", "b"), (1, 4), ("alone", "loop"), 1, 1.0, 3, 1, Path())
    assert [item for item in given.items if item[2] == "loop"] == [("a", 1, "loop"), ("b", 1, "loop")]
    found = with_loops(summaries(Measured(*item, 0, asked=ROWS, seconds=2.0) for item in given.items))
    assert {(s.model, s.slots) for s in found if s.name == "loop"} == {(m, n) for m in "ab" for n in (1, 4)}
