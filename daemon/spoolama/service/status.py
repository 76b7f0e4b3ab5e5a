"""Writes the status of the service and of each upload, for systemd, for status/ and for a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from spoolama import __version__
from spoolama.clock import Clock, duration, moment
from spoolama.errors import DiskFull
from spoolama.memory.level import Level, in_gb
from spoolama.progress import Snapshot
from spoolama.service.logs import say
from spoolama.service.queue import QueuedJob
from spoolama.service.state import EndedJob, ServiceState
from spoolama.spool.layout import Spool
from spoolama.spool.names import readable
from spoolama.spool.scanner import Held
from spoolama.spool.status_files import SERVICE_JSON, StatusBoard

_EVERY_S = 2.0
_AT_LEAST_S = 30.0


def rows_text(snap: Mapping[str, Any]) -> str:
    """`12,000 of 170,000 rows (7 %), 4.8 rows/s, about 9 h 10 min left`, from a payload with `rows`."""
    rows = snap["rows"]
    done, total = rows["done"], rows["total"]
    if not total:
        return str(snap["phase"])
    text = f"{done:,} of {total:,} rows ({done * 100 // total} %)"
    if snap["rows_per_s"]:
        text += f", {_rate(snap['rows_per_s'])}"
    if snap["eta_s"] is not None and done < total:
        text += f", about {duration(snap['eta_s'])} left"
    return text


def failures_text(failures: Mapping[str, int]) -> str:
    """`30 failed (28 answer_invalid, 2 empty_prompt)`; empty without failures."""
    if not failures:
        return ""
    parts = ", ".join(f"{n:,} {code}" for code, n in sorted(failures.items(), key=lambda i: (-i[1], i[0])))
    return f"{sum(failures.values()):,} failed ({parts})"


def _rate(rows_per_s: float) -> str:
    return f"{rows_per_s:.1f} rows/s" if rows_per_s >= 0.095 else f"{rows_per_s * 60:.1f} rows/min"


def _snapshot(snap: Snapshot, now: float) -> dict[str, Any]:
    return {
        "phase": snap.phase,
        "extra_requests": snap.extra_requests,
        "waiting_for_server": snap.waiting,
        "rows": {
            "total": snap.total,
            "done": snap.done,
            "ok": snap.ok,
            "failed": snap.failed,
            "skipped": snap.skipped,
            "in_flight": snap.in_flight,
        },
        "rows_per_s": None if snap.rows_per_s is None else round(snap.rows_per_s, 3),
        "eta_s": None if snap.eta_s is None else round(snap.eta_s),
        "eta": None if snap.eta_s is None else moment(now + snap.eta_s),
        "failures": dict(sorted(snap.failures.items())),
        "harm": snap.harm,
    }


def _job(item: QueuedJob) -> dict[str, Any]:
    job = item.job
    return {
        "name": job.dropped_as,
        "job": job.name,
        "claimed_at": moment(job.claimed_at),
        "priority": item.priority,
    }


def running_payload(state: ServiceState) -> dict[str, Any] | None:
    """The running job; None if there is none."""
    if state.running is None:
        return None
    snap = state.running.progress.snapshot()
    return {"state": "running", "place": 0, **_job(state.running.item), **_snapshot(snap, state.clock.time())}


def queued_payload(item: QueuedJob, place: int) -> dict[str, Any]:
    """A waiting job; place 1 is the next."""
    state = "queued" if item.state == "ready" else item.state
    return {"state": state, "place": place, **_job(item), "message": item.reason or None}


def held_payload(held: Held) -> dict[str, Any]:
    """A file that stays in incoming/."""
    return {
        "state": "arriving" if held.waiting else "held",
        "name": held.name,
        "job": None,
        "reason": held.code,
        "message": held.message,
        "since": moment(held.since),
    }


def ended_payload(done: EndedJob) -> dict[str, Any]:
    """A published job: its directory and its result."""
    payload: dict[str, Any] = {
        "state": done.ended.where,
        "name": done.job.dropped_as,
        "job": done.job.name,
        "where": f"{done.ended.where}/{done.job.name}",
        "message": done.ended.message,
        "fix": done.ended.fix or None,
        "claimed_at": moment(done.job.claimed_at),
        "ended_at": moment(done.at),
    }
    if done.progress is not None:
        snap = _snapshot(done.progress.snapshot(), done.at)
        payload |= {"rows": snap["rows"], "failures": snap["failures"]}
        payload["rows"].pop("in_flight")
    return payload


def memory_payload(state: ServiceState) -> dict[str, Any] | None:
    """Memory pressure and the last readings, in bytes; None: memory is not watched, or not read yet."""
    if state.memory is None or state.memory.latest is None:
        return None
    readings = state.memory.latest
    host = readings.host
    return {
        "level": str(state.memory.level),
        "message": state.memory.words,
        "cards": None
        if readings.cards is None
        else [
            {"index": c.index, "mig": c.mig, "used_bytes": c.used_bytes, "total_bytes": c.total_bytes}
            for c in readings.cards
        ],
        "no_cards": readings.unreadable,
        "machine": None if host is None else {"used_bytes": host.used_bytes, "total_bytes": host.total_bytes},
        "model_processes_rss_bytes": sum(r.rss_bytes for r in readings.runners) if readings.runners else None,
    }


def _memory_text(memory: Mapping[str, Any]) -> list[str]:
    """The lines for service.txt: first what determines the level, then the rest."""
    cards, machine = memory["cards"] or [], memory["machine"]
    lines = [f"Memory: {memory['level']}, {memory['message']}" if cards or machine else "Memory: not watched"]
    if len(cards) > 1:
        lines += [
            f"  GPU {c['index']}{'' if c['mig'] is None else ' MIG ' + c['mig']}: {_used(c)}" for c in cards
        ]
    if cards and machine:
        lines.append(f"  this machine: {_used(machine)}")
    if memory["no_cards"]:
        lines.append(f"  GPUs are not watched: {memory['no_cards']}")
    return lines


def _used(of: Mapping[str, int]) -> str:
    return f"{in_gb(of['used_bytes'])} of {in_gb(of['total_bytes'])} in use"


def status_line(state: ServiceState) -> str:
    """One line for `systemctl status`."""
    if state.phase == "stopped":
        if not state.queue:
            return "Stopped. No jobs are waiting."
        return f"Stopped. {_counted(len(state.queue), 'job continues', 'jobs continue')} at the next start."
    if state.phase == "stopping":
        if state.running is None:
            return "Stopping."
        in_flight = state.running.progress.in_flight
        return f"Stopping: {readable(state.running.item.job.dropped_as)} finishes {in_flight} rows in flight."
    running, phase = running_payload(state), ""
    if running is not None:
        parts = []
        if running["waiting_for_server"] or not running["rows"]["done"]:
            parts.append(phase := running["phase"])
            parts += [rows_text(running)] if running["rows"]["total"] else []
        else:
            parts += [running["extra_requests"]] if running["extra_requests"] else []
            parts.append(rows_text(running))
        parts += [failures_text(running["failures"])] if running["failures"] else []
        parts += [f"warning: {running['harm']}"] if running["harm"] else []
        parts[0] = f"{readable(running['name'])}: {parts[0]}"
    elif state.server.away is not None:
        parts = [f"Ready, but the model server is away: {state.server.away}"]
    else:
        parts = ["Ready"]
    memory = state.memory
    # A phase that waits for memory, or frees some, already says so.
    if memory is not None and memory.level is not Level.OK and "memory" not in phase:
        parts.append(f"memory is {memory.level}: {memory.words}")
    queued = state.queue.waiting()
    held_jobs = sum(item.state == "held" for item in queued)
    arriving = sum(held.waiting for held in state.held) + state.more_arriving
    held_files = sum(not held.waiting for held in state.held) + state.more_held
    more = "" if running is None else "more "
    for number, one, several in (
        (len(queued) - held_jobs, f"{more}job waits", f"{more}jobs wait"),
        (held_jobs, "job is held, see `spoolama status`", "jobs are held, see `spoolama status`"),
        (arriving, "file is arriving", "files are arriving"),
        (held_files, "file in incoming/ held", "files in incoming/ held"),
    ):
        parts += [_counted(number, one, several)] if number else []
    return "; ".join(parts) + (", see status/service.txt." if held_files else ".")


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def service_payload(state: ServiceState) -> dict[str, Any]:
    """status/service.json, without the time of writing."""
    return {
        "service": {
            "version": __version__,
            "pid": os.getpid(),
            "started_at": moment(state.started_at),
            "state": state.phase,
            "status": status_line(state),
            "events": state.unwatched or "ok",
            "silent": state.silent(),
        },
        "server": {
            "kind": state.server.kind,
            "address": state.server.address,
            "version": state.server.version,
            "away": state.server.away,
        },
        "memory": memory_payload(state),
        "running": running_payload(state),
        "queue": [queued_payload(item, n) for n, item in enumerate(state.queue.waiting(), 1)],
        "held": [held_payload(h) for h in state.held],
        "more_held": state.more_held,
        "more_arriving": state.more_arriving,
        "ended": [ended_payload(done) for done in reversed(state.ended)],
    }


def more_held_text(payload: Mapping[str, Any]) -> list[str]:
    """For files that service.json does not list: `and 19,000 more files are held`."""
    lines = []
    for key, what in (("more_held", "held"), ("more_arriving", "arriving")):
        if number := payload.get(key, 0):  # an older service does not report it
            lines.append("and " + _counted(number, f"more file is {what}", f"more files are {what}"))
    return lines


def service_text(payload: Mapping[str, Any], at: float) -> str:
    """status/service.txt: one screen for a person, from service.json's payload."""
    server = payload["server"]
    lines = [
        f"spoolama, {moment(at)}",
        payload["service"]["status"],
        "",
        f"Model server: {server['kind']} {server['version'] or ''}".rstrip()
        + (f" at {server['address']}" if server["address"] else "")
        + (f" - AWAY: {server['away']}" if server["away"] else ""),
    ]
    if payload["service"]["events"] != "ok":
        lines.append(f"Uploads are found by the periodic scan only: {payload['service']['events']}")
    if payload["memory"]:
        lines += _memory_text(payload["memory"])
    running = payload["running"]
    if running:
        lines += ["", f"Running: {readable(running['name'])} (job {running['job']})", f"  {running['phase']}"]
        if running["rows"]["total"]:
            lines.append(f"  {rows_text(running)}")
        if running["failures"]:
            lines.append(f"  {failures_text(running['failures'])}")
        if running["harm"]:
            lines.append(f"  Warning: {running['harm']}")
    if payload["queue"]:
        lines += ["", "Queue:"]
        for item in payload["queue"]:
            why = f": {item['message']}" if item["message"] else ""
            rank = f", priority {item['priority']}" if item["priority"] else ""
            lines.append(f"  {item['place']}. {readable(item['name'])} ({item['state']}{rank}){why}")
    if payload["held"]:
        lines += ["", "In incoming/:"]
        lines += [f"  {readable(h['name'])}: {h['message']}" for h in payload["held"]]
        lines += [f"  {text}" for text in more_held_text(payload)]
    if payload["ended"]:
        lines += ["", "Ended recently:"]
        for e in payload["ended"]:
            lines.append(f"  {e['ended_at']}  {readable(e['name'])} -> {e['where']}: {_indented(e)}")
    return "\n".join(lines) + "\n"


def _indented(ended: Mapping[str, Any]) -> str:
    """The message and the fix of an ended job; their further lines are indented below its first line."""
    lines = [*ended["message"].splitlines(), *filter(None, [ended.get("fix")])]
    return "\n    ".join(lines)


class StatusReporter:
    """Writes changed status files every two seconds, and at once when the state changes."""

    def __init__(self, spool: Spool, state: ServiceState, clock: Clock) -> None:
        self._spool = spool
        self._board = StatusBoard(spool)
        self._state = state
        self._clock = clock
        self._service: dict[str, Any] = {}
        self._written_at = float("-inf")
        self._drops: dict[str, Mapping[str, Any]] = {}
        self._full = False

    async def run(self) -> None:
        """Write until cancelled."""
        await asyncio.to_thread(self._forget_stale)
        while True:
            self._state.changed.clear()
            await self.write()
            # Not asyncio.wait_for: in Python 3.11 it swallows a cancellation that comes with the event
            # (github.com/python/cpython/issues/86296); then a dead worker would not end the service.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._state.changed.wait()

    async def write(self) -> None:
        """Update the files now."""
        service = service_payload(self._state)
        unwritten, self._state.unwritten = self._state.unwritten, []
        ended = [ended_payload(done) for done in unwritten]
        drops = {h.name: held_payload(h) for h in self._state.held}
        # A waiting job hides a later upload of the same name only in NAME.json; service.json has both.
        for place, item in reversed(list(enumerate(self._state.queue.waiting(), 1))):
            drops[item.job.dropped_as] = queued_payload(item, place)
        running = running_payload(self._state)
        if running is not None:
            drops[running["name"]] = running
        try:
            await asyncio.to_thread(self._put, service, drops, ended)
            self._full = False
        except DiskFull as error:
            self._state.unwritten = unwritten + self._state.unwritten
            if not self._full:
                say("spool.disk_full", error=str(error))
            self._full = True

    def _put(
        self, service: dict[str, Any], drops: Mapping[str, Mapping[str, Any]], ended: list[dict[str, Any]]
    ) -> None:
        for payload in ended:
            self._board.write(payload["name"], payload)
        finished = {payload["name"] for payload in ended}
        for name in self._drops.keys() - drops.keys() - finished:
            if self._drops[name]["job"] is None:  # the owner removed it from incoming/
                self._board.forget(name)
        for name, drop in drops.items():
            self._board.write(name, drop)
        self._drops = dict(drops)
        now = self._clock.time()
        if service != self._service or now - self._written_at >= _AT_LEAST_S:
            self._board.write_service({**service, "at": moment(now)}, service_text(service, now))
            self._service, self._written_at = service, now

    def _forget_stale(self) -> None:
        """Remove the status of files in incoming/ from an earlier run; the first scan writes it again."""
        for path in self._spool.status.glob("*.json"):
            if path.name == SERVICE_JSON:
                continue
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if json.loads(path.read_bytes()).get("state") in ("held", "arriving"):
                    path.unlink()
