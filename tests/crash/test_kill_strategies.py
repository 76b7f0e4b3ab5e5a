"""kill -9 in conversations of every strategy: the prompts equal those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crash.test_kill_loop import FAKE, LANES, Calls
from daemons import clean_env, fake_ollama, make_spool, results, run_once, wait_for, write_job
from support.thorough import cases

ROWS = 240
KILLS = cases(2, 10)
SIDECAR = """
model: smollm2:135m
system: Judge.
prompt: "{{ text }}"
options: {num_ctx: 2048, num_predict: 16}
segment: 40
"""

STRATEGIES = {
    "reset": "{strategy: reset, every: 7}",
    "window": "{strategy: window, keep: 4, every: 6}",
    "anchors": "{strategy: anchors, anchors: 4}",
    "anchors with a tail": "{strategy: anchors, anchors: 3, every: 5}",
    "important": "{strategy: important, keep: 4, every: 6, score: uncertain}",
    "hybrid": "{strategy: hybrid, anchors: 3, keep: 4, every: 6}",
    "budget": "{strategy: budget, tokens: 150}",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STRATEGIES)
def test_kills_in_mid_conversation_change_no_prompt(tmp_path: Path, name: str) -> None:
    """The prompts are the same byte for byte, and no row is lost or answered twice."""
    seed = int(os.environ.get("SPOOLAMA_TEST_SEED", random.randrange(10**6)))
    print(f"SPOOLAMA_TEST_SEED={seed}")
    rng = random.Random(seed)
    sidecar = SIDECAR + f"trim: {STRATEGIES[name]}\n"
    prompts: list[set[tuple[str, str]]] = []
    for kills in (0, KILLS):
        spool, log = tmp_path / f"spool{kills}", tmp_path / f"calls{kills}"
        make_spool(spool)
        write_job(spool / "incoming", "job", ROWS, sidecar)
        calls = Calls(log)
        with fake_ollama(log, *(FAKE if kills else FAKE[2:])) as url, (tmp_path / "log").open("ab") as out:
            env = clean_env(spool, url, SPOOLAMA_LANES=str(LANES))
            for _ in range(kills):
                before = calls.read()
                process = subprocess.Popen(
                    [sys.executable, "-m", "spoolama", "run"], env=env, stdout=out, stderr=out
                )
                # On a slow machine the job may end before the last kill.
                wait_for(
                    lambda before=before, calls=calls, spool=spool: (
                        calls.read() > before + 20 or any((spool / "done").iterdir())
                    )
                )
                time.sleep(rng.uniform(0.0, 0.1))
                process.send_signal(signal.SIGKILL)
                process.wait()
            done = run_once(env)
            assert done.returncode == 0, done.stderr
        calls.read()
        prompts.append(set(calls.asked))
        (job,) = (spool / "done").iterdir()
        assert [(r["row"], r["status"]) for r in results(job)] == [(n + 1, "ok") for n in range(ROWS)]
    assert prompts[0] == prompts[1]
