"""Jobs that an older version began and did not finish: this version finishes them by the very same requests.

They are in tests/data/ledgers, each killed half way.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from daemons import clean_env, fake_ollama, make_spool, run_once

LEDGERS = Path(__file__).parents[1] / "data" / "ledgers"
CASES = sorted(path.parent for path in LEDGERS.glob("format-*/*/expected.jsonl"))
PICKED = ("model", "messages", "format", "think", "options")
"""What decides an answer, of the body of a request."""


ANSWERS = ("--answer", "labels:good,bad,mixed")


def text_of(request: dict[str, Any]) -> str:
    """A request as text: messages and format byte for byte, options in any order."""
    picked = {key: request[key] for key in PICKED if key in request}
    picked["options"] = dict(sorted(picked.get("options", {}).items()))
    return json.dumps(picked, ensure_ascii=False)


def requests(log: Path) -> list[str]:
    """The chat requests that the server got, in order."""
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    bodies = [json.loads(c["body"]) for c in calls if c["event"] == "call" and c["path"] == "/api/chat"]
    return [text_of(body) for body in bodies if body["messages"]]


def killed_job(case: Path, spool: Path) -> Path:
    """The stored job, in processing/ of this spool."""
    (job,) = (case / "processing").iterdir()
    return shutil.copytree(job, spool / "processing" / job.name)


def assert_finished(spool: Path, job: Path, case: Path, log: Path) -> None:
    """Published in done/, every row answered once, and asked by exactly the expected requests."""
    assert list((spool / "processing").iterdir()) == []
    assert [path.name for path in (spool / "failed").iterdir()] == []
    done = spool / "done" / job.name
    expected = [text_of(json.loads(line)) for line in (case / "expected.jsonl").read_text().splitlines()]
    assert requests(log) == expected
    file = done / "rows.jsonl" if (done / "rows.jsonl").exists() else done / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("case", CASES, ids=[f"{path.parent.name}-{path.name}" for path in CASES])
def test_a_job_of_an_older_version_is_finished_by_the_requests_that_it_would_have_sent(
    tmp_path: Path, case: Path
) -> None:
    """Published in done/, every row answered once, each remaining request byte for byte as expected."""
    spool, log = make_spool(tmp_path / "spool"), tmp_path / "calls"
    job = killed_job(case, spool)
    with fake_ollama(log, *ANSWERS) as url:
        done = run_once(clean_env(spool, url, SPOOLAMA_LANES="1"))
    assert done.returncode == 0, done.stderr
    assert_finished(spool, job, case, log)
