"""What a job may ask besides its rows, held against jobs that are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoolama.effect.extra import AUDIT_TWICE, Extra, extra_of
from spoolama.engine import auditing
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.sidecar import Sidecar
from unit.engine.test_engine_effect import SIDE, bench_of, follows, own


def sidecar_with(side: str) -> Sidecar:
    """That of the jobs below, with more; `options` given again takes the place of the first."""
    lines = [line for line in SIDE.splitlines() if "options:" not in side or not line.startswith("options:")]
    return parse_sidecar("\n".join(lines) + "\n" + side, "a.yaml")


@pytest.mark.parametrize("answer", [own, follows])
@pytest.mark.parametrize(
    "side",
    [
        "trim: {strategy: reset}\nsegment: 60\naudit: 20\n",
        "trim: {strategy: window, keep: 5, every: 5}\nsegment: 16\non_collapse: redo\naudit: 500\n",
        "trim: {strategy: anchors}\nsegment: 15\non_collapse: redo\naudit: 10\n",
        "trim: {strategy: auto, pilot: 300}\nsegment: 40\non_collapse: redo\naudit: 10\n",
        "trim: {strategy: auto, pilot: 10000}\ngold: text\naudit: 10\n",
        "trim: {strategy: reset}\nsegment: 20\non_collapse: redo\n"
        "options: {num_ctx: 4096, num_predict: 16, temperature: 1}\n",
    ],
)
def test_no_job_asks_more_than_was_said(tmp_path: Path, side: str, answer: object) -> None:
    """Whatever its conversations do."""
    rows = 200
    bench = bench_of(tmp_path, "", rows=rows, answer=answer)  # type: ignore[arg-type]
    bench.sidecar = sidecar_with(side)
    extra = extra_of(bench.sidecar, rows)
    assert bench.run(3).finished
    assert len(bench.backend.calls) <= rows + extra.total


def test_an_audit_takes_just_what_was_said(tmp_path: Path) -> None:
    """As many rows as were asked for, and one in four of them twice."""
    bench = bench_of(tmp_path, "trim: {strategy: reset}\nsegment: 15\naudit: 21\n", rows=120)
    extra = extra_of(bench.sidecar, 120)
    assert bench.run().finished
    assert (extra.audit, extra.audit_twice, extra.segments, extra.total) == (21, 6, 0, 27)
    assert len(bench.backend.calls) == 120 + 27
    assert auditing._AGAIN_EVERY == AUDIT_TWICE


@pytest.mark.parametrize("side", ["mode: isolated\non_collapse: redo\n", "audit: 20\n", "trim: {pilot: 0}\n"])
def test_rows_that_stand_alone_need_nothing_besides(side: str) -> None:
    """Neither guard nor audit has anything to look at."""
    assert extra_of(sidecar_with(side), 120) == Extra()
