"""kill -9 at random moments of a running job, repeatedly: no row is lost and none is answered twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from daemons import clean_env, fake_ollama, make_spool, results, run_once, wait_for, write_job
from support.thorough import cases

KILLS = cases(50, 200)
ROWS = 20 * KILLS
AUDITED = ROWS // 50
"""Rows that the audit asks again in isolation, some of them twice."""
LANES = 4
SIDECAR = """
model: smollm2:135m
system: Judge.
prompt: "{{ text }}"
options: {num_ctx: 2048, num_predict: 16}
trim: {strategy: window}
segment: 100
"""
FAKE = ("--latency-ms", "20", "--slots", str(LANES), "--prompt-token-ms", "0", "--answer-token-ms", "0")


class Calls:
    """Reads the fake's call log as it grows."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = 0
        self.asked: list[tuple[str, str]] = []
        """(row, sha256 of the body) of each chat call."""

    def read(self) -> int:
        """Read new calls; return the number of chat calls so far."""
        if self._log.exists():
            with self._log.open("rb") as file:
                file.seek(self._at)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._at += len(line)
                    entry = json.loads(line)
                    if entry["event"] == "call" and entry["path"] == "/api/chat":
                        self.asked.append((entry["row"], entry["sha256"]))
        return len(self.asked)


def open_attempts(spool: Path) -> set[tuple[int, int]]:
    """Return the attempts that the dead process marked in the ledger without an end."""
    attempts: set[tuple[int, int]] = set()
    for ledger in (spool / "processing").glob("*/ledger.sqlite"):
        with sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True) as db:
            attempts |= set(db.execute("SELECT ordinal, number FROM attempts WHERE code='open'"))
        db.close()
    return attempts


def undisturbed(base: Path) -> Calls:
    """The same job without a kill."""
    spool, log = base / "spool", base / "calls"
    make_spool(spool)
    with fake_ollama(log, *FAKE[2:]) as url:
        write_job(spool / "incoming", "job", ROWS, SIDECAR)
        done = run_once(clean_env(spool, url, SPOOLAMA_LANES=str(LANES)))
        assert done.returncode == 0, done.stderr
    calls = Calls(log)
    assert ROWS + AUDITED <= calls.read() <= ROWS + 2 * AUDITED
    return calls


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_lose_nothing_double_nothing_and_change_no_prompt(tmp_path: Path) -> None:
    """After kill -9 and restarts every result exists, and only calls in flight are repeated.

    This includes the audit, because the ledger decides which rows it asks.
    """
    seed = int(os.environ.get("SPOOLAMA_TEST_SEED", random.randrange(10**6)))
    print(f"SPOOLAMA_TEST_SEED={seed}")
    rng = random.Random(seed)
    whole = undisturbed(tmp_path / "whole")
    spool, log = tmp_path / "spool", tmp_path / "calls"
    make_spool(spool)
    write_job(spool / "incoming", "job", ROWS, SIDECAR)
    calls, seen, in_flight, busy_kills = Calls(log), set[tuple[int, int]](), 0, 0
    with fake_ollama(log, *FAKE) as url, (tmp_path / "log").open("ab") as out:
        env = clean_env(spool, url, SPOOLAMA_LANES=str(LANES))
        for number in range(KILLS):
            before = calls.read()
            process = subprocess.Popen(
                [sys.executable, "-m", "spoolama", "run"], env=env, stdout=out, stderr=out
            )
            if number % 10:  # while rows are being answered
                wait_for(lambda before=before: calls.read() > before)
                time.sleep(rng.uniform(0.0, 0.12))
            else:  # any moment: start, recovery, intake
                time.sleep(rng.uniform(0.0, 1.2))
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            process.send_signal(signal.SIGKILL)
            process.wait()
            new = open_attempts(spool) - seen
            seen |= new
            in_flight += len(new)
            busy_kills += bool(new)
        done = run_once(env)
        assert done.returncode == 0, done.stderr
    calls.read()
    (job,) = (spool / "done").iterdir()
    rows = results(job)
    assert [r["row"] for r in rows] == list(range(1, ROWS + 1)), "0 lost, 0 doubled, in order"
    assert all(r["status"] == "ok" for r in rows)
    assert list((spool / "processing").iterdir()) == []
    repeated = len(calls.asked) - len(whole.asked)
    print(f"{KILLS} kills, {busy_kills} with requests in flight ({in_flight}), {repeated} calls repeated")
    assert busy_kills >= 0.8 * KILLS
    assert 0 <= repeated <= in_flight
    # The prompts equal those of the undisturbed run byte for byte; a repeated call repeats its prompt.
    assert set(calls.asked) == set(whole.asked)
    assert max(Counter(whole.asked).values()) <= 2, "an isolated answer may be asked twice, by another seed"
