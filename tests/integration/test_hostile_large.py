"""Large inputs do not fill the memory of the service."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemons import clean_env, daemon, fake_ollama, make_spool, wait_for
from integration.hostile_cases import LARGE, Case
from integration.hostile_service import (
    ABOVE_IDLE_KB,
    FAKE,
    LANES,
    Watched,
    check_that_nothing_is_delayed,
    drop,
    outcome,
    published,
    service,
    status_kb,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_a_large_input_does_not_fill_the_memory_of_the_service(tmp_path: Path, url: str, case: Case) -> None:
    """For any large data file the service stays near its idle memory."""
    with service(tmp_path, url) as found:
        check_that_nothing_is_delayed(found, case)


def test_a_large_answer_does_not_fill_the_memory_of_the_service(tmp_path: Path) -> None:
    """An answer of 2 MB is saved, and the service stays near its idle memory."""
    side = (
        b"model: m\nmode: isolated\nprompt: '{{ name }}'\noptions: {num_ctx: 5000000, num_predict: 3000000}\n"
    )
    with fake_ollama(None, *FAKE, "--answer", "words:200000") as address:
        spool = make_spool(tmp_path / "spool")
        log = tmp_path / "log"
        log.write_text("")
        with daemon(clean_env(spool, address, SPOOLAMA_LANES=str(LANES)), log=log) as process:
            found = Watched(process, spool, log)
            wait_for(found.started)
            idle = status_kb(process.pid, "VmRSS")
            drop(spool, "large", {".yaml": side, ".csv": b"name\na\nb\nc\nd\n"})
            job = wait_for(lambda: published(spool, "large"))
            assert outcome(job) == ("", "")
            assert (job / "results.jsonl").stat().st_size > 4_000_000
            assert found.most - idle < ABOVE_IDLE_KB
