"""Defines every event that the service logs: its stable name, level, sentence and journal MESSAGE_ID.

The name is for programs (`SPOOLAMA_EVENT=job.ended`), the sentence for people. `journalctl MESSAGE_ID=…`
finds one kind of event in every version. A sentence may use the event's fields; a missing one shows as `?`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error", "critical"]


@dataclass(frozen=True, slots=True)
class EventKind:
    """One kind of event."""

    level: Level
    text: str
    """The sentence, with the event's fields in braces."""
    message_id: str
    """128 bits in hexadecimal, which never change."""


EVENTS: Mapping[str, EventKind] = {
    "service.started": EventKind(
        "info",
        "spoolama {version} started with the spool {spool} and the model server {backend}.",
        "f22968a0ec2541aba2f59bea52f3eb72",
    ),
    "service.stopping": EventKind(
        "info",
        "The service stops ({reason}); rows in flight get up to {drain_s} s to finish.",
        "67b7fb0dd5b541299d00a877de4a0b59",
    ),
    "service.stopped": EventKind(
        "info", "The service stopped with exit status {status}.", "fb143495856d4814817e1ce31cc6606f"
    ),
    "service.reloaded": EventKind(
        "info", "The settings were reloaded: {changed}.", "265e1acf7a0a442ca04a8701caabd5a3"
    ),
    "service.reload_refused": EventKind(
        "error",
        "The new settings are not valid, so the old ones stay in force: {error}",
        "87c5258c98fd4b76a567d47df092c20f",
    ),
    "service.crashed": EventKind(
        "error", "The previous run of the service crashed: {what}.", "85983a8d277d4a78b873ccb9776b1c15"
    ),
    "service.task_died": EventKind(
        "critical",
        "The task {task} failed ({error}), so the service stops.",
        "e3688c6936954d129be6eb2409a5cf05",
    ),
    "service.silent": EventKind(
        "error",
        "{who} made no progress, so systemd gets no watchdog pings until it does.",
        "d51a71b9628741839d8ab9e3d57373df",
    ),
    "service.unwatched": EventKind(
        "warning",
        "incoming/ cannot be watched for events ({why}); uploads are found by the periodic scan.",
        "4e80e9cfadce4a57a5645a7d6648cc11",
    ),
    "models.released": EventKind(
        "info",
        "The queue is empty, so the models that the service loaded were unloaded.",
        "47fbd498c7154d2799acf02049f4a81c",
    ),
    "models.release_failed": EventKind(
        "warning", "The models could not be unloaded: {error}", "ac62e7cc30044057bf7cc9e9e729b48b"
    ),
    "memory.ok": EventKind(
        "info", "Memory pressure is ok again: {reason}.", "96e19cbad29d4d84ade13c743cd5d7e0"
    ),
    "memory.high": EventKind(
        "warning",
        "Memory pressure is high: {reason}. Nothing is loaded until it is ok.",
        "ed92c84b8c7c49d1a32aa9004238b5d2",
    ),
    "memory.critical": EventKind(
        "warning",
        "Memory pressure is critical: {reason}. The model is unloaded to free memory.",
        "05517df525ad4078b6136920ad1db035",
    ),
    "memory.unreadable": EventKind(
        "info", "GPU memory is not watched: {reason}.", "d0240c0058fb451199ce8037e43318dc"
    ),
    "memory.readable": EventKind(
        "info", "GPU memory is watched: {cards} card(s).", "1022aaa46ec84b84a338e13e8f22ebf7"
    ),
    "memory.action": EventKind(
        "warning", "Because of memory pressure: {action} ({reason}).", "7efdc4d12a0d4b5b9c249e69fa691b35"
    ),
    "spool.recovered": EventKind(
        "info", "Found in processing/: {action}.", "328948bb6d7241a487dafc701b1cd0ae"
    ),
    "spool.disk_full": EventKind(
        "error", "The disk of the spool is full: {error}", "4ea51004fc3e4798a06c356f4974ec92"
    ),
    "drop.held": EventKind(
        "warning", "{name} stays in incoming/: {reason}", "cc9448a0e27947f29698151b2d413570"
    ),
    "drop.many_held": EventKind(
        "warning",
        "{listed} files stay in incoming/, and {more} more, which are not listed one by one. Remove "
        "files that do not belong there.",
        "3870cf2b47154436a56ae9e93b22d6bb",
    ),
    "drop.rejected": EventKind(
        "warning", "{name} was rejected: {reason}", "71e45c12a4f844a0823dc133cc12e421"
    ),
    "drop.commanded": EventKind("info", "{name} was executed: {what}.", "157deccc5ee14116b4217be392ef38f4"),
    "job.claimed": EventKind("info", "{name} was claimed as job {job}.", "7acc4c6d7a724cd4b50fa6382a9aeb52"),
    "job.settling": EventKind(
        "info",
        "{job} waits: a process still has one of its files open for writing.",
        "74fe78da567b41a3b896fe252498bf48",
    ),
    "job.started": EventKind("info", "{job} started.", "dde17c38311d4fcdb3564a0c81ed0734"),
    "job.ended": EventKind("info", "{job} is in {where}/: {outcome}", "47834122b73449d0bdc8c7c3326f81f5"),
    "job.failed": EventKind("warning", "{job} is in failed/: {outcome}", "6ca32ada00da42409e2c52f606fdd1a2"),
    "job.harm": EventKind("warning", "{job}: {harm}.", "b046bcb3dc534b6bb24921a6affcb6de"),
    "model.changed": EventKind("warning", "{job}: {notice} ({kind})", "c1f0c2a8f7c34a6e9d0a3b1e5b7d2c94"),
    "job.left": EventKind(
        "info", "{job} stopped and keeps its results: {outcome}", "44809291975d4ce1a0f67ede10c0077c"
    ),
    "job.crashed": EventKind(
        "critical",
        "A defect in spoolama ended {job} ({error}); it stays in processing/, and the service stops.",
        "ba96ad97f4a64570a5514211cf0ec1ad",
    ),
    "job.held": EventKind(
        "error", "{job} cannot continue for now: {error}", "bf64fd040fda4359a7f8e09d4678e6ae"
    ),
    "job.delayed": EventKind("warning", "{job} waits: {reason}", "f11388c41cc94421b1291b79ffae31e2"),
    "job.deaths_cleared": EventKind(
        "warning",
        "The service also crashed while no job ran, so its crashes during {job} no longer count.",
        "e8e036c1d6f64f068b5b8271641e99df",
    ),
    "job.held_after_deaths": EventKind(
        "error", "{job} is held: {reason}", "58e2b2ec08c244bcbb2dbe3de35b17a1"
    ),
    "job.removed": EventKind(
        "info",
        "{job} was removed from {where}/: it was older than {days} days (setting `keep`).",
        "733889f3a6044539ad612930b7cd03c9",
    ),
    "server.away": EventKind(
        "warning", "The model server is away: {error}", "1384f3c182384218b00d12c3ecf454c3"
    ),
    "server.back": EventKind(
        "info", "The model server is back after {seconds} s.", "068554c48155426480dd7269bf42bc9e"
    ),
    "evaluation.ended": EventKind(
        "warning",
        "The process that evaluates templates and sidecars {text}. A new process repeats its work.",
        "1c08eccb9a4a47b8a7007b211e6d7e48",
    ),
    "evaluation.unrestricted": EventKind(
        "warning",
        "This machine has no seccomp filter for the process that evaluates templates and sidecars. "
        "Only its resource limits and Jinja2's sandbox protect the service.",
        "feebfafb227c4d2a94da80418a22f232",
    ),
    "library.message": EventKind("warning", "{logger}: {text}", "5bc687868a18466ca43ea8dc1ea79fad"),
}


class _Lenient(string.Formatter):
    """Shows a missing field as `?`: a log line must not raise."""

    def get_value(self, key: int | str, args: Any, kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG002
        return kwargs.get(str(key), "?")


def sentence(event: str, fields: Mapping[str, Any]) -> str:
    """The sentence of an event; only its name if the table does not have it."""
    kind = EVENTS.get(event)
    return _Lenient().vformat(kind.text, (), fields) if kind else event
