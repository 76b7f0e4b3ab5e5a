"""metrics.json: every number with how it was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from spoolama.jobtools.published import open_published
from spoolama.publish.agreement import AnswerDistribution
from spoolama.publish.encoding import json_document
from spoolama.publish.metrics import MemoryUse, definitions
from support.published import publish_job

SIDECAR = 'model: m\nprompt: "{{ text }}"\n'
NAMES = {
    "total",
    "completed",
    "failed",
    "skipped",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_hit_rate",
    "context_current",
    "context_peak",
    "context_limit",
    "trim_count",
    "peak_vram_gb",
    "rows_per_second",
    "tokens_per_second",
    "latency_p50_s",
    "latency_p90_s",
    "latency_p99_s",
    "eta_s",
    "errors",
    "retries",
    "segments",
    "plans",
    "model",
    "model_digest",
    "server",
    "server_wait_s",
    "lanes",
}


def metrics_of(path: Path, rows: int = 20, **options: Any) -> dict[str, Any]:
    data = b"text\n" + b"x\n" * rows
    publish_job(
        path,
        data_name="d.csv",
        data=data,
        sidecar=SIDECAR,
        answer=lambda row: f"a{row.ordinal % 2}",
        **options,
    )
    loaded: dict[str, Any] = json.loads((path / "metrics.json").read_bytes())
    return loaded


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_every_number_has_its_measurement(tmp_path: Path, rows: int) -> None:
    """Each key has its `how`, each null its reason, and the promised names exist."""
    metrics = metrics_of(tmp_path / "j", rows)
    how = metrics.pop("how")

    assert set(how) == set(metrics)
    assert set(metrics) >= NAMES
    assert all(how[name].startswith("null: ") for name, value in metrics.items() if value is None)
    assert not [name for name, value in metrics.items() if value is not None and how[name].startswith("null")]


def test_the_numbers_are_those_of_the_rows(tmp_path: Path) -> None:
    """For 20 rows in two segments of ten, sums, rates and peaks equal those computed by hand."""
    metrics = metrics_of(tmp_path / "j", model={"name": "m", "num_ctx": 2048, "server": {"kind": "ollama"}})

    prompt = 2 * sum(100 + 20 * place for place in range(10))
    cached = 2 * sum(80 + 20 * place for place in range(10)) - 80
    assert metrics["prompt_tokens"] == prompt
    assert metrics["cached_tokens"] == cached
    assert metrics["evaluated_tokens"] == prompt - cached
    assert metrics["cache_hit_rate"] == pytest.approx(cached / prompt, abs=1e-6)
    assert (metrics["context_peak"], metrics["context_current"], metrics["context_limit"]) == (285, 285, 2048)
    assert (metrics["rows_per_second"], metrics["tokens_per_second"]) == (2.0, 10.0)
    assert metrics["segments"] == 2
    assert (metrics["latency_p50_s"], metrics["latency_max_s"]) == (0.39, 0.49)
    assert metrics["answers"]["counts"] == {"a0": 10, "a1": 10}


def test_missing_counts_of_the_server_are_null(tmp_path: Path) -> None:
    """Without the server's counts tokens are null, in the text too."""
    metrics = metrics_of(tmp_path / "j", counts=False)
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "cache_hit_rate", "context_peak"):
        assert metrics[name] is None
        assert metrics["how"][name].startswith("null: ")
    text = (tmp_path / "j" / "summary.txt").read_text()
    assert "not counted in prompts, the server does not count cached tokens" in text


def test_unreadable_rows_do_not_make_a_job_fast(tmp_path: Path) -> None:
    """Rows per second counts only rows that were asked."""
    data = b"text,b\nx,y\nragged\nx,y\n"
    publish_job(tmp_path / "j", data_name="d.csv", data=data, sidecar=SIDECAR, answer=lambda _: "a")
    metrics = json.loads((tmp_path / "j" / "metrics.json").read_bytes())
    assert (metrics["failed"], metrics["rows_per_second"]) == (1, 0.2)


def test_the_summary_is_one_screen(tmp_path: Path) -> None:
    """A job with many classes of failures fits 40 lines of 100 characters."""
    from spoolama.errors import RowError

    data = b"text\n" + b"x\n" * 60
    summary = publish_job(
        tmp_path / "j",
        data_name="d.csv",
        data=data,
        sidecar=SIDECAR,
        answer=lambda row: RowError(f"class_{row.ordinal % 20}", "why " * 200),
    )
    lines = summary.text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert "60 rows in = 0 ok + 60 failed + 0 skipped" in lines


def test_published_metrics_are_read_back_as_they_were(tmp_path: Path) -> None:
    """Every value is read back with its type, and null with its reason."""
    memory = {"seconds": {"ok": 9.5}, "peak_bytes": 2**30, "actions": {"paused": 2}}
    metrics_of(tmp_path / "j", memory=memory)
    content = json.loads((tmp_path / "j" / "metrics.json").read_bytes())

    found = open_published(tmp_path / "j").metrics

    assert json.loads(json_document(found.to_json())) == content
    assert isinstance(found.answers, AnswerDistribution)
    assert found.memory == MemoryUse(seconds={"ok": 9.5}, peak_bytes=2**30, actions={"paused": 2})
    assert found.peak_vram_gb == 1.0


def test_metrics_of_another_version_are_read_as_far_as_they_are_known(tmp_path: Path) -> None:
    """Unknown keys are ignored, missing ones have their default, and one of another type is null."""
    metrics_of(tmp_path / "j")
    path = tmp_path / "j" / "metrics.json"
    content = json.loads(path.read_bytes())
    del content["segments"]
    content |= {"unheard_of": 1, "trim": [], "answers": {**content["answers"], "more": 1}}
    path.write_text(json.dumps(content))

    found = open_published(tmp_path / "j").metrics

    assert (found.total, found.segments, found.trim) == (20, None, None)
    assert "another version" in found.how()["trim"]
    assert found.answers is not None
    assert found.answers.rows == 20


def test_each_metric_is_documented_with_its_unit() -> None:
    """docs/metrics.md has one line for each definition and no other."""
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    lines = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    assert lines == [(one.name, one.unit or "–", one.how) for one in definitions()]
