"""Removal of old published jobs."""

from __future__ import annotations

from pathlib import Path

from spoolama.service.retention import remove_old
from spoolama.service.settings import KeepSection
from spoolama.spool.layout import Spool


def test_published_jobs_are_removed_only_by_setting(tmp_path: Path) -> None:
    """By default every job stays; with the setting, old jobs are removed with their status."""
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


def test_an_interrupted_removal_is_finished(tmp_path: Path) -> None:
    """An interrupted removal is finished later, and no half job is visible under its name."""
    spool = Spool(tmp_path)
    spool.create()
    (spool.done / ".going-a-1").mkdir()
    remove_old(spool, KeepSection(), 0.0)
    assert not list(spool.done.iterdir())
