"""What `spoolama check` says of earlier rows and of what is asked besides the rows, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spoolama.job.plan import PILOT_ROWS

if TYPE_CHECKING:
    from spoolama.service.checking import Findings

__all__ = ["besides", "earlier_rows"]


def earlier_rows(findings: Findings) -> str | None:
    """What stands before a row and is not in the estimate of tokens; None: nothing does.

    Which rows it will be is known only when the job runs; how many tokens at most, by `high`, is known now.
    """
    extra, rows = findings.extra, findings.rows_before
    if findings.mode != "conversation" or (findings.alone and not extra.pilot):
        return None
    bound = (
        f"and are dropped before a prompt passes {findings.high_tokens:,} tokens "
        f"({findings.trim.high:g} of the room, trim.high)"
    )
    if findings.alone:
        return (
            "Earlier rows are not in it. If the pilot lets rows see others, up to 20 earlier ones, or 6 "
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
    extra = findings.extra
    lines = []
    if findings.mode == "conversation" and findings.strategy == "auto" and findings.format != "openai":
        lines += _pilot(findings)
    if extra.candidates:
        lines.append(f"Anchors: {extra.candidates} rows are answered alone first, to choose from.")
    if extra.segments:
        lines.append(
            f"Guard: where a conversation's answers look odd, up to {extra.checks} of its rows are answered "
            f"again alone: at most {extra.guard:,} answers in {_counted(extra.segments, 'conversation')}."
        )
    if extra.redo:
        lines.append(
            "on_collapse: redo: conversations that are found to change answers are asked again, row by row "
            f"alone: at most {extra.redo:,} answers."
        )
    if extra.audit:
        lines.append(
            f"Audit: {_counted(extra.audit, 'row')} that saw others are answered again alone at the end, "
            f"{extra.audit_twice:,} of them twice."
        )
    elif findings.audit:
        lines.append(
            "Audit: nothing is audited, since each row stands alone. trim.pilot: N has a pilot in any case."
        )
    if extra.total:
        lines.append(
            f"Together at most {extra.total:,} requests more than the {findings.rows:,} rows, if nothing has "
            "to be asked again because it failed."
        )
    return lines


def _pilot(findings: Findings) -> list[str]:
    size, pilot = findings.extra.size, findings.pilot
    if not pilot:
        return [
            "Each row stands alone behind the shared part: a pilot, which looks whether earlier rows do any "
            f"good, is worth its answers from {PILOT_ROWS:,} rows on (trim.pilot: N has one in any case)."
        ]
    lines = [
        f"A pilot of at most {findings.extra.pilot:,} answers looks whether earlier rows may stand before a "
        "row. Without proof that they do no harm each row stands alone."
    ]
    if size is None:
        return lines
    if size.least is None:
        lines.append(
            f"Warning: {_counted(findings.rows, 'row')} cannot give such a proof, whatever is spent on it. "
            "Say trim.pilot: 0, or mode: isolated."
        )
    elif pilot < size.least:
        lines.append(
            f"Warning: {pilot:,} answers are too few for such a proof. It takes at least trim.pilot: "
            f"{size.least}, and more where some answers differ."
        )
    elif pilot > size.most:
        lines.append(
            f"Warning: trim.pilot: {pilot:,} is more than can be asked: {findings.rows:,} rows in all forms "
            f"are {size.most:,} answers. A proof takes at least {size.least}."
        )
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
