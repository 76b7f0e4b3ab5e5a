"""Unfinished jobs of other versions.

Older versions: the stored ledgers in tests/data/ledgers, each killed half way. This version finishes the job
with the very same requests, or the job waits in processing/. Newer versions: a ledger of an unknown format.

Three stored jobs are finished with the same requests for their rows and other requests for comparison
(`COMPARED_ANEW`): an audit at the end and repeated isolated answers of the pilot exist no more, and a job
that was still reading its rows has no plan yet, so today's audit applies to it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemons import clean_env, daemon, fake_ollama, make_spool, run_once, wait_for, write_job
from spoolama import __version__
from spoolama.spool.ledger_format import FORMAT, MIGRATIONS

pytestmark = pytest.mark.slow

LEDGERS = Path(__file__).parents[1] / "data" / "ledgers"
CASES = sorted(path.parent for path in LEDGERS.glob("format-*/*/expected.jsonl"))
PICKED = ("model", "messages", "format", "think", "options")
"""The parts of a request body that decide an answer."""


ANSWERS = ("--answer", "labels:good,bad,mixed")
COMPARED_ANEW = {"audit": 16, "pilot": 60, "reading": 40}
"""Jobs whose requests are the same only for rows, and the maximum number of others."""
SEED = 7
"""Of requests for rows and for trials in a conversation; isolated answers for comparison have another."""


def text_of(request: dict[str, Any]) -> str:
    """Return a request as text: messages and format byte for byte, options in any order."""
    picked = {key: request[key] for key in PICKED if key in request}
    picked["options"] = dict(sorted(picked.get("options", {}).items()))
    return json.dumps(picked, ensure_ascii=False)


def requests(log: Path) -> list[str]:
    """The chat requests to the server, in order."""
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    bodies = [json.loads(c["body"]) for c in calls if c["event"] == "call" and c["path"] == "/api/chat"]
    return [text_of(body) for body in bodies if body["messages"]]


def of_rows(sent: list[str]) -> list[str]:
    """Return the requests for rows in their place and for trials in a conversation."""
    return [request for request in sent if json.loads(request)["options"].get("seed") == SEED]


def killed_job(case: Path, spool: Path) -> Path:
    """Put the stored job into processing/ of this spool."""
    (job,) = (case / "processing").iterdir()
    return shutil.copytree(job, spool / "processing" / job.name)


def assert_finished(spool: Path, job: Path, case: Path, log: Path) -> None:
    """Check that it is in done/, with every row answered once by exactly the expected requests."""
    assert list((spool / "processing").iterdir()) == []
    assert [path.name for path in (spool / "failed").iterdir()] == []
    done = spool / "done" / job.name
    expected = [text_of(json.loads(line)) for line in (case / "expected.jsonl").read_text().splitlines()]
    sent = requests(log)
    if most := COMPARED_ANEW.get(case.name):
        assert of_rows(sent) == of_rows(expected)
        others = [request for request in sent if request not in of_rows(sent)]
        assert 0 < len(others) <= most
        assert all(len(json.loads(request)["messages"]) == 2 for request in others), "each in isolation"
    else:
        assert sent == expected
    file = done / "rows.jsonl" if (done / "rows.jsonl").exists() else done / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("case", CASES, ids=[f"{path.parent.name}-{path.name}" for path in CASES])
def test_a_job_of_an_older_version_is_finished_with_the_same_requests(tmp_path: Path, case: Path) -> None:
    """The job is in done/, every row is answered once, and each remaining request is the same byte for byte.

    Where the removed guard and audit decide the requests for comparison, only those may differ.
    """
    spool, log = make_spool(tmp_path / "spool"), tmp_path / "calls"
    job = killed_job(case, spool)
    with fake_ollama(log, *ANSWERS) as url:
        done = run_once(clean_env(spool, url, SPOOLAMA_LANES="1"))
    assert done.returncode == 0, done.stderr
    assert_finished(spool, job, case, log)


def test_a_job_begun_under_the_old_audit_continues_in_the_nearest_form_and_reports_it(tmp_path: Path) -> None:
    """A job killed in its audit keeps the audited rows, and `on_collapse: redo` is read."""
    case = LEDGERS / "format-3" / "audit"
    spool, log = make_spool(tmp_path / "spool"), tmp_path / "calls"
    job = killed_job(case, spool)
    with fake_ollama(log, *ANSWERS) as url:
        assert run_once(clean_env(spool, url, SPOOLAMA_LANES="1")).returncode == 0
    metrics = json.loads((spool / "done" / job.name / "metrics.json").read_text())
    audit = metrics["audit"]
    assert (audit["rows"], audit["random"], audit["begun_before"], audit["on_harm"]) == (
        8,
        8,
        True,
        "isolate",
    )
    summary = " ".join((spool / "done" / job.name / "summary.txt").read_text().split())
    assert "An earlier version began this job: the audit runs as segments end." in summary


WAITING = sorted(path.parent for path in LEDGERS.glob("format-*/*/processing") if path.parent not in CASES)
"""Jobs that this version cannot finish with the same prompts."""


@pytest.mark.parametrize("case", WAITING, ids=[f"{path.parent.name}-{path.name}" for path in WAITING])
def test_a_job_that_cannot_be_finished_with_the_same_prompts_waits(tmp_path: Path, case: Path) -> None:
    """The job stays unchanged in processing/, the message names the format, and nothing is sent."""
    spool, log = make_spool(tmp_path / "spool"), tmp_path / "calls"
    job = killed_job(case, spool)
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    with fake_ollama(log, *ANSWERS) as url:
        done = run_once(clean_env(spool, url))
    assert done.returncode == 0, done.stderr
    assert requests(log) == []
    assert {name: (job / name).read_bytes() for name in before} == before  # without SQLite's -wal and -shm
    assert [*(spool / "done").iterdir(), *(spool / "failed").iterdir()] == []
    number = case.parent.name.removeprefix("format-")
    words = f"The ledger of {job.name} has format {number}; this is spoolama "
    assert words in done.stderr
    assert "Install the version of spoolama that wrote it to finish it." in done.stderr


def in_newer_format(job: Path, *, named: bool) -> None:
    """Change the stored job to a later version: an unknown format, and a sidecar with an unknown key."""
    with contextlib.closing(sqlite3.connect(job / "ledger.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA user_version=9")
        if named:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('written_by', '\"2.3.0\"')")
        else:
            db.execute("ALTER TABLE meta RENAME TO notes")
    with (job / "isolated.yaml").open("a") as sidecar:
        sidecar.write("novelty: 1\n")


def as_this_version_made_it(job: Path, case: Path) -> None:
    """Simulate the installation of the newer version: its format is known again."""
    with contextlib.closing(sqlite3.connect(job / "ledger.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA user_version=3")
    shutil.copyfile(next(case.glob("processing/*/isolated.yaml")), job / "isolated.yaml")


def test_a_job_of_a_newer_version_waits_and_the_rest_of_the_queue_continues(tmp_path: Path) -> None:
    """A .cancel file changes nothing; log, both forms of status and NAME.json name the version to install.

    With that version the job is finished by exactly the remaining requests.
    """
    spool, case = make_spool(tmp_path / "spool"), LEDGERS / "format-3" / "isolated"
    job = killed_job(case, spool)
    in_newer_format(job, named=True)
    log, out = tmp_path / "calls", tmp_path / "log"
    words = (
        rf"The ledger of {job.name} has format 9, written by spoolama 2\.3\.0; "
        rf"this is spoolama {re.escape(__version__)}, which reads formats [\w ]+\. "
        r"The job waits in processing/ with its results\. Install spoolama 2\.3\.0 or newer to finish it\."
    )
    write_job(spool / "incoming", "after", 3, "model: smollm2:135m\nprompt: '{{ text }}'\n")
    with fake_ollama(tmp_path / "other-calls", *ANSWERS) as url:
        env = clean_env(spool, url, SPOOLAMA_LANES="1")
        with daemon(env, log=out):
            wait_for(lambda: any((spool / "done").glob("after-*")))
            (spool / "incoming" / "isolated.cancel").touch()
            wait_for(lambda: "is not cancelled" in out.read_text())
            status = spool / "status" / "isolated.csv.json"
            wait_for(lambda: status.exists() and json.loads(status.read_text())["state"] == "held")
            finished = subprocess.run(
                [sys.executable, "-m", "spoolama", "status", "isolated.csv"],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            )
        assert re.search(words, out.read_text())
        assert "Traceback" not in out.read_text()
        assert re.fullmatch(words, json.loads(status.read_text())["message"])
        assert re.search(words, finished.stdout)
        assert re.search(words, (spool / "status" / "service.txt").read_text())
        assert not (spool / "incoming" / "isolated.cancel").exists()
        assert list((spool / "failed").iterdir()) == []
    as_this_version_made_it(job, case)
    shutil.rmtree(next((spool / "done").glob("after-*")))
    with fake_ollama(log, *ANSWERS) as url:
        assert run_once(clean_env(spool, url, SPOOLAMA_LANES="1")).returncode == 0
    assert_finished(spool, job, case, log)


def test_a_newer_ledger_that_does_not_name_its_version_waits_too(tmp_path: Path) -> None:
    """If a later format has no readable version, the message names only the format."""
    spool = make_spool(tmp_path / "spool")
    job = killed_job(LEDGERS / "format-3" / "isolated", spool)
    in_newer_format(job, named=False)
    with fake_ollama(None) as url:
        done = run_once(clean_env(spool, url))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (spool / "processing").iterdir()] == [job.name]
    assert [*(spool / "done").iterdir(), *(spool / "failed").iterdir()] == []
    assert f"The ledger of {job.name} has format 9; this is spoolama" in done.stderr
    assert "Install a newer spoolama to finish it." in done.stderr


def test_there_are_ledgers_of_every_format() -> None:
    """Every format has stored ledgers; see tests/data/ledgers/README.md."""
    formats = {int(path.parent.name.removeprefix("format-")) for path in CASES}
    assert formats == {*(step.before for step in MIGRATIONS), FORMAT}
