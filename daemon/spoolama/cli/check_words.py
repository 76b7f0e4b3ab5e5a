"""What `spoolama check` says of earlier rows and of what is asked besides the rows, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spoolama.job.plan import PILOT_ROWS
from spoolama.job.sidecar import CANDIDATES

if TYPE_CHECKING:
    from spoolama.cli.checking import Findings

__all__ = ["besides", "earlier_rows"]


def earlier_rows(findings: Findings) -> str | None:
    """What stands before a row and is not in the estimate of tokens; None: nothing does.

    Which rows it will be is known only when the job runs; how many tokens at most, by `high`, is known now.
    """
    rows = findings.rows_before
    if findings.mode != "conversation" or (findings.alone and not findings.pilot):
        return None
    bound = (
        f"and are dropped before a prompt passes {findings.high_tokens:,} tokens "
        f"({findings.trim.high:g} of the room, trim.high)"
    )
    if findings.alone:
        return (
            "Earlier rows are not in it. If the pilot chooses a conversation, up to 20 earlier ones, or 6 "
            f"fixed and up to 5 earlier ones, stand before a row with their answers, {bound}."
        )
    parts = []
    if findings.anchors:
        parts.append(f"{findings.anchors} fixed {'row' if findings.anchors == 1 else 'rows'}")
    if rows is None:
        within = f" within {findings.trim.tokens:,} tokens" if findings.trim.tokens else ""
        parts.append(f"earlier ones{within}")
    elif rows:
        parts.append(f"up to {rows:,} earlier {'one' if rows == 1 else 'ones'}")
    if not parts:
        return None
    if rows == 0:
        bound = f"in at most half of the room of {findings.room_tokens - 1:,} tokens"
    return f"Other rows are not in it: {' and '.join(parts)} stand before a row with their answers, {bound}."


def besides(findings: Findings) -> list[str]:
    """What is asked besides the rows, and how much that is at most."""
    lines = []
    if findings.mode == "conversation" and findings.strategy == "auto" and findings.format != "openai":
        lines += _pilot(findings)
    candidates = min(CANDIDATES, findings.rows)
    if isinstance(findings.trim.choose, tuple):
        candidates = len(findings.trim.choose)
    if findings.anchors:
        lines.append(f"Anchors: {candidates} rows are answered in isolation first, to choose from.")
    if findings.audit.rows:
        lines += _audit(findings)
    return lines


def _audit(findings: Findings) -> list[str]:
    rows = findings.audit.rows
    times = "twice" if findings.noisy else "once, and those that differ twice"
    small = findings.smallest_harm
    lines = [
        f"Audit: at most {_counted(rows, 'row')} of conversations are asked again in isolation, {times}."
    ]
    if small is None:
        lines.append("Warning: so few rows cannot show harm. Set audit to a larger number.")
    else:
        lines.append(
            f"It finds, with 95 % probability, a conversation that changes {small * 100:.0f} % of the answers"
            " or more."
        )
    if findings.on_harm == "isolate":
        lines.append(
            "on_harm: isolate: then the remaining rows are asked in isolation, and those of harmed segments "
            f"again: at most {findings.rows:,} more answers."
        )
    return lines


def _pilot(findings: Findings) -> list[str]:
    if not findings.gold:
        return ["Each row is asked in isolation behind the shared part."]
    if not findings.pilot:
        return [
            "Each row is asked in isolation behind the shared part. A pilot, which tries whether earlier "
            f"rows make the answers agree better with gold, runs from {PILOT_ROWS:,} rows on (trim.pilot: N "
            "has one in any case)."
        ]
    lines = [
        f"A pilot of at most {findings.pilot:,} answers tries whether earlier rows make the answers agree "
        "better with gold. Without proof each row is asked in isolation."
    ]
    if findings.pilot_least is None:
        lines.append(
            f"Warning: {_counted(findings.rows, 'row')} in such segments cannot give that proof. Set "
            "trim.pilot: 0."
        )
    elif findings.pilot < findings.pilot_least:
        lines.append(
            f"Warning: {findings.pilot:,} answers are too few for a proof. It takes at least "
            f"trim.pilot: {findings.pilot_least}."
        )
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
