"""Published jobs are removed by age, if the settings say so."""

from __future__ import annotations

from pathlib import Path

from spoolama.service.retention import remove_old
from spoolama.service.settings import KeepSection
from spoolama.spool.layout import Spool


def test_published_jobs_go_only_when_the_settings_say_so(tmp_path: Path) -> None:
    """By default everything stays; else what is old goes whole, and its status with it."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.done / "a-1").mkdir()
    (spool.done / "a-1" / "results.jsonl").touch()
    (spool.failed / "b-1").mkdir()
    (spool.status / "a.csv.json").write_text('{"job": "a-1"}')
    (spool.status / "b.csv.json").write_text('{"job": "b-1"}')
    born = (spool.done / "a-1").stat().st_ctime
    in_two_days = born + 2 * 86400 + 60
    assert remove_old(spool, KeepSection(), in_two_days) == []
    assert remove_old(spool, KeepSection(done_days=2), born + 86400) == []
    assert remove_old(spool, KeepSection(done_days=2), in_two_days) == [("done", spool.done / "a-1")]
    assert not list(spool.done.iterdir())
    assert [p.name for p in spool.failed.iterdir()] == ["b-1"]
    assert [p.name for p in spool.status.iterdir()] == ["b.csv.json"]


def test_a_removal_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    """Half a job is never seen under its name, and does not stay for ever."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.done / ".going-a-1").mkdir()
    remove_old(spool, KeepSection(), 0.0)
    assert not list(spool.done.iterdir())
