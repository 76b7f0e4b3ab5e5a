"""The whole service on a machine with modelled memory: real daemon, fake server, stub of NVML."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from daemons import clean_env, daemon, fake_ollama, make_spool, results, wait_for
from nvml_stub import FakeCard, Script
from support.card_model import Habits

GB = 1 << 30
MODEL: Mapping[str, Any] = {
    "name": "judge:12b",
    "parameters": 10_500_000_000,
    "size_bytes": 6 * GB,
    "context_length": 131_072,
    "load_s": 0.05,
}
"""6 GB of weights; with a short window it takes 6.8 GB of a card."""


def gb(number: float) -> int:
    """Bytes."""
    return int(number * GB)


def card(used_gb: float = 1.0, total_gb: float = 16.0, **more: Any) -> FakeCard:
    """A card of 16 GB of which others use this much; 14 GB count as high and 15 as critical."""
    return FakeCard(total=gb(total_gb), used=gb(used_gb), reserved=gb(0.4), **more)


def words(tokens: int) -> str:
    """A text with this many tokens by the fake's count."""
    return "long" * tokens


@dataclass
class Scene:
    """The state of the scene, and the actions of a test."""

    script: Script
    spool: Path
    calls: Path
    log: Path
    proc: Path
    """The directory that the service reads instead of /proc."""
    command: tuple[str, ...]
    """Starts the service."""
    env: dict[str, str]
    service: subprocess.Popen[bytes] = field(init=False)

    def others(self, used_gb: float, place: int = 0) -> None:
        """Let other programs use this much of a card."""
        self.script.cards[place].used = gb(used_gb)
        self.script.write()

    def submit(self, rows: Sequence[str], **sidecar: Any) -> None:
        """Submit a job with these texts; the rest of its sidecar is short and simple."""
        options = {"num_ctx": 2048, "num_predict": 16} | sidecar.pop("options", {})
        body = {"model": MODEL["name"], "prompt": "{{ text }}", "mode": "isolated", "options": options}
        self.incoming.mkdir(parents=True, exist_ok=True)
        (self.incoming / "job.csv").write_text("text\n" + "".join(f"{row}\n" for row in rows))
        (self.incoming / "job.yaml").write_text(json.dumps(body | sidecar))

    @property
    def incoming(self) -> Path:
        """The directory for uploads."""
        return self.spool / "incoming"

    def asked(self) -> list[str]:
        """The requests to the server in order: `chat`, `load` with its window, or `unload`."""
        found = []
        for line in self.calls.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] != "call":
                continue
            body = json.loads(entry["body"])
            if entry["path"] == "/api/chat":
                found.append("chat")
            elif body.get("keep_alive") == 0:
                found.append("unload")
            else:
                found.append(f"load {body['options']['num_ctx']}")
        return found

    def chats(self) -> int:
        """The rows in requests to the server."""
        return self.asked().count("chat") if self.calls.exists() else 0

    def wait_for_chats(self, count: int) -> None:
        """Wait until the job has sent this many chats."""
        wait_for(lambda: self.chats() >= count)

    def events(self, name: str = "memory.") -> list[dict[str, Any]]:
        """Events in the service's log whose name has this beginning."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry for line in lines if (entry := json.loads(line))["event"].startswith(name)]

    def wait_for_event(self, name: str, **facts: str) -> dict[str, Any]:
        """Wait for the first event whose facts have this beginning."""

        def there() -> dict[str, Any] | None:
            found = (
                e for e in self.events(name) if all(str(e.get(k)).startswith(v) for k, v in facts.items())
            )
            return next(found, None)

        try:
            event: dict[str, Any] = wait_for(there)
        except AssertionError:
            raise AssertionError(f"no {name} {facts} in:\n{self.log.read_text()[-6000:]}") from None
        return event

    def wait_for_status(self, words: str) -> str:
        """Wait for a status/service.txt with these words, and return it."""
        path = self.spool / "status" / "service.txt"

        def there() -> str | None:
            text = path.read_text() if path.exists() else ""
            return text if words in text else None

        found: str = wait_for(there)
        return found

    def levels(self) -> list[str]:
        """The changes of level in the log, in order."""
        names = ("memory.ok", "memory.high", "memory.critical")
        return [e["event"].removeprefix("memory.") for e in self.events() if e["event"] in names]

    def ended(self, where: str = "done", *, seconds: float = 40) -> Published:
        """Return the published job, after checking that its counts add up."""

        def there() -> Path | None:
            return next((self.spool / where).glob("job-*"), None)

        try:
            path = wait_for(there, seconds=seconds)
        except AssertionError:
            raise AssertionError(f"no job in {where}/:\n{self.log.read_text()[-8000:]}") from None
        return Published(path)


@dataclass
class Published:
    """A published job."""

    path: Path
    metrics: dict[str, Any] = field(init=False)
    rows: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = json.loads((self.path / "metrics.json").read_text())
        self.rows = results(self.path)
        m = self.metrics
        assert m["total"] == m["completed"] + m["failed"] + m["skipped"] == len(self.rows)
        assert [row["id"] for row in self.rows] == [str(n) for n in range(1, m["total"] + 1)], (
            "lost or doubled"
        )

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows completed, failed and skipped."""
        return self.metrics["completed"], self.metrics["failed"], self.metrics["skipped"]

    @property
    def memory(self) -> dict[str, Any]:
        """The memory of the job."""
        found: dict[str, Any] = self.metrics["memory"]
        return found

    @property
    def actions(self) -> dict[str, int]:
        """The actions for memory."""
        found: dict[str, int] = self.memory["actions"]
        return found

    @property
    def windows(self) -> list[int]:
        """The window of each measured load."""
        return [load["num_ctx"] for load in self.metrics["loads"] or []]


@contextlib.contextmanager
def running(
    base: Path,
    *cards: FakeCard,
    model: Mapping[str, Any] = MODEL,
    habits: Habits | None = None,
    host: tuple[int, int] = (64 * GB, 8 * GB),
    pace: float = 20,
    latency_ms: int = 25,
    before: Callable[[Scene], None] = lambda _scene: None,
    **env: str,
) -> Iterator[Scene]:
    """Run the service on this machine until the end of the block.

    Args:
        base: A directory for all of it.
        cards: The machine's cards; none: one of 16 GB of which others use 1.
        model: The model of the server.
        habits: What models take besides their weights.
        host: Bytes of main memory in total and in use by others.
        pace: How many times faster than normal the watchdog is.
        latency_ms: Of each answer.
        before: Called before the service starts.
        env: Its settings.
    """
    script = Script(base / "nvml", cards=list(cards) or [card()], host=host)
    script.write()
    spool, calls, proc = make_spool(base / "spool"), base / "calls", base / "proc"
    proc.mkdir()
    arguments = ["--model", json.dumps(model), "--memory", str(script.path), "--proc", str(proc)]
    arguments += ["--habits", json.dumps(asdict(habits or Habits())), "--latency-ms", str(latency_ms)]
    with fake_ollama(calls, *arguments) as url:
        settings = clean_env(spool, url, **(script.env() | env))
        settings["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[1])
        command = ("support.fast_service", str(pace), str(proc))
        scene = Scene(script, spool, calls, base / "log", proc, command, settings)
        before(scene)
        with daemon(scene.env, log=scene.log, command=command) as scene.service:
            yield scene
