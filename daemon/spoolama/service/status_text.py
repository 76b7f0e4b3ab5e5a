"""The service's state in words and as JSON: for `systemctl status`, for status/ and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from spoolama.memory.level import Level, in_gb
from spoolama.progress import Snapshot
from spoolama.service.queue import Queued
from spoolama.service.state import EndedJob, ServiceState
from spoolama.spool.names import readable
from spoolama.spool.ready import Held

__all__ = [
    "duration",
    "ended_payload",
    "failures_text",
    "held_payload",
    "memory_payload",
    "moment",
    "more_held_text",
    "queued_payload",
    "rows_text",
    "running_payload",
    "service_payload",
    "service_text",
    "status_line",
]


def duration(seconds: float) -> str:
    """A length of time as people say it: `40 s`, `12 min`, `9 h 10 min`, `3 d 4 h`."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def moment(at: float) -> str:
    """A time of day in UTC, to the second."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


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
    """`30 failed (28 answer_invalid, 2 empty_prompt)`; empty if none did."""
    if not failures:
        return ""
    parts = ", ".join(f"{n:,} {code}" for code, n in sorted(failures.items(), key=lambda i: (-i[1], i[0])))
    return f"{sum(failures.values()):,} failed ({parts})"


def _rate(rows_per_s: float) -> str:
    return f"{rows_per_s:.1f} rows/s" if rows_per_s >= 0.095 else f"{rows_per_s * 60:.1f} rows/min"


def _snapshot(snap: Snapshot, now: float) -> dict[str, Any]:
    return {
        "phase": snap.phase,
        "besides": snap.extra_requests,
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


def _job(item: Queued) -> dict[str, Any]:
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


def queued_payload(item: Queued, place: int) -> dict[str, Any]:
    """A job that waits; place 1 is the next."""
    standing = {"ready": "queued"}.get(item.standing, item.standing)
    return {"state": standing, "place": place, **_job(item), "message": item.reason or None}


def held_payload(held: Held) -> dict[str, Any]:
    """A name that stays in incoming."""
    return {
        "state": "arriving" if held.waiting else "held",
        "name": held.name,
        "job": None,
        "reason": held.code,
        "message": held.message,
        "since": moment(held.since),
    }


def ended_payload(done: EndedJob) -> dict[str, Any]:
    """A published job: where it is and how it went."""
    payload: dict[str, Any] = {
        "state": done.ended.where,
        "name": done.job.dropped_as,
        "job": done.job.name,
        "where": f"{done.ended.where}/{done.job.name}",
        "message": done.ended.message,
        "claimed_at": moment(done.job.claimed_at),
        "ended_at": moment(done.at),
    }
    if done.progress is not None:
        snap = _snapshot(done.progress.snapshot(), done.at)
        payload |= {"rows": snap["rows"], "failures": snap["failures"]}
        payload["rows"].pop("in_flight")
    return payload


def memory_payload(state: ServiceState) -> dict[str, Any] | None:
    """How tense memory is and what was read last, sizes in bytes; None: nobody watches, or not yet."""
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
        "no_cards": readings.blind,
        "machine": None if host is None else {"used_bytes": host.used_bytes, "total_bytes": host.total_bytes},
        "holders_rss_bytes": sum(r.rss_bytes for r in readings.runners) if readings.runners else None,
    }


def _memory_text(memory: Mapping[str, Any]) -> list[str]:
    """For service.txt: what decides first, then what that leaves out."""
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
        left = len(state.queue)
        return f"Stopped; {left} {'job is' if left == 1 else 'jobs are'} left for the next start."
    if state.phase == "stopping":
        text = "Stopping"
        if state.running is not None:
            flying = state.running.progress.in_flight
            text += f": {readable(state.running.item.job.dropped_as)} finishes {flying} rows in flight"
        return f"{text}."
    running, phase = running_payload(state), ""
    if running is not None:
        name = readable(running["name"])
        text = f"{name}: {rows_text(running)}"
        if running["waiting_for_server"] or not running["rows"]["done"]:
            phase = running["phase"]
            text = f"{name}: {phase}"
            text += f"; {rows_text(running)}" if running["rows"]["total"] else ""
        elif running["besides"]:
            text = f"{name}: {running['besides']}; {rows_text(running)}"
        failed = failures_text(running["failures"])
        text += f"; {failed}" if failed else ""
        text += f"; warning: {running['harm']}" if running["harm"] else ""
    elif state.server.away is not None:
        text = f"Ready, but the model server is away: {state.server.away}"
    else:
        text = "Ready"
    memory = state.memory
    # A phase that waits for memory, or makes room, says it already.
    if memory is not None and memory.level is not Level.OK and "memory" not in phase:
        text += f"; memory is {memory.level}: {memory.words}"
    in_line, held = state.queue.in_line(), sum(not h.waiting for h in state.held) + state.more_held
    held_jobs = sum(item.standing == "held" for item in in_line)
    waiting = len(in_line) - held_jobs
    arriving = sum(h.waiting for h in state.held) + state.more_arriving
    if waiting:
        more = " more" if running is not None else ""
        text += f"; {waiting}{more} {'job waits' if waiting == 1 else 'jobs wait'}"
    if held_jobs:
        text += f"; {held_jobs} {'job is' if held_jobs == 1 else 'jobs are'} held, see `spoolama status`"
    if arriving:
        text += f"; {arriving:,} {'file is' if arriving == 1 else 'files are'} arriving"
    if held:
        text += f"; {held:,} {'file' if held == 1 else 'files'} in incoming/ held, see status/service.txt"
    return f"{text}."


def service_payload(state: ServiceState, *, version: str, pid: int, started_at: float) -> dict[str, Any]:
    """status/service.json, without the time of writing."""
    return {
        "service": {
            "version": version,
            "pid": pid,
            "started_at": moment(started_at),
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
        "queue": [queued_payload(item, n) for n, item in enumerate(state.queue.in_line(), 1)],
        "held": [held_payload(h) for h in state.held],
        "more_held": state.more_held,
        "more_arriving": state.more_arriving,
        "ended": [ended_payload(done) for done in reversed(state.ended)],
    }


def more_held_text(payload: Mapping[str, Any]) -> list[str]:
    """For files that service.json does not list: `and 19,000 more files are held`."""
    lines = []
    for key, what in (("more_held", "held"), ("more_arriving", "arriving")):
        if number := payload.get(key, 0):  # an older service does not say
            lines.append(f"and {number:,} more {'file is' if number == 1 else 'files are'} {what}")
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
        lines.append(f"Drops are found by the rescan only: {payload['service']['events']}")
    if payload["memory"]:
        lines += _memory_text(payload["memory"])
    running = payload["running"]
    if running:
        lines += ["", f"Now: {readable(running['name'])} (job {running['job']})", f"  {running['phase']}"]
        if running["rows"]["total"]:
            lines.append(f"  {rows_text(running)}")
        if running["failures"]:
            lines.append(f"  {failures_text(running['failures'])}")
        if running["harm"]:
            lines.append(f"  Warning: {running['harm']}")
    if payload["queue"]:
        lines += ["", "In line:"]
        for item in payload["queue"]:
            why = f": {item['message']}" if item["message"] else ""
            rank = f", priority {item['priority']}" if item["priority"] else ""
            lines.append(f"  {item['place']}. {readable(item['name'])} ({item['state']}{rank}){why}")
    if payload["held"]:
        lines += ["", "In incoming/:"]
        lines += [f"  {readable(h['name'])}: {h['message']}" for h in payload["held"]]
        lines += [f"  {text}" for text in more_held_text(payload)]
    if payload["ended"]:
        lines += ["", "Ended lately:"]
        for e in payload["ended"]:
            lines.append(f"  {e['ended_at']}  {readable(e['name'])} -> {e['where']}: {e['message']}")
    return "\n".join(lines) + "\n"
