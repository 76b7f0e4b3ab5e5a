"""What a job may ask besides its rows: the most of it, before any row is asked."""

from __future__ import annotations

from dataclasses import dataclass

from spoolama.effect.guard import CHECKS, GOLD_CHECKS, LEAST
from spoolama.effect.pilot_size import PilotSize, pilot_size
from spoolama.job.plan import first_plan, pilot_asks, sees_others
from spoolama.job.sidecar import Sidecar
from spoolama.job.trim import CANDIDATES

__all__ = ["AUDIT_TWICE", "Extra", "extra_of"]

AUDIT_TWICE = 4
"""At temperature 0 one audited row in so many is answered twice (`engine/auditing.py`)."""


@dataclass(frozen=True, slots=True)
class Extra:
    """Requests besides the rows, at most. Those that are made again since something failed are not in it."""

    pilot: int = 0
    size: PilotSize | None = None
    """What a pilot on these rows needs and can use; None: there is none."""
    candidates: int = 0
    """Rows answered alone first, of which anchors are chosen."""
    segments: int = 0
    """Conversations that are long enough for the guard."""
    checks: int = 0
    """Answers that the guard takes for one of them, where it looks odd."""
    redo: int = 0
    """Rows that are asked again where their conversation is found to have changed them."""
    audit: int = 0
    """Rows answered again alone at the end."""
    audit_twice: int = 0
    """Of these, how many twice."""

    @property
    def guard(self) -> int:
        """Answers that the guard takes, were every conversation to look odd."""
        return self.segments * self.checks

    @property
    def total(self) -> int:
        """All of it."""
        return self.pilot + self.candidates + self.guard + self.redo + self.audit + self.audit_twice


def extra_of(sidecar: Sidecar, total: int) -> Extra:
    """What a job of so many rows may ask besides them; OpenAI lines never do."""
    if not total or not sees_others(sidecar, total):
        return Extra()
    trim, noisy, gold = sidecar.trim, sidecar.options.temperature > 0, sidecar.gold is not None
    auto = trim.strategy == "auto"
    plan = first_plan(sidecar, total, pilot=auto)
    size = None
    if auto:
        longest = plan.segment_rows if 0 < plan.segment_rows <= total else None
        size = pilot_size(total, margin=trim.margin, noisy=noisy, gold=gold, longest=longest)
    candidates = len(trim.choose) if isinstance(trim.choose, tuple) else min(CANDIDATES, total)
    rows = plan.segment_rows or total
    first = not (auto or trim.anchor_rows)  # without anchors the first of a conversation sees none
    whole, rest = divmod(total, rows)
    segments = whole * (rows - first >= LEAST) + (rest - first >= LEAST)
    audit = min(sidecar.audit, total)
    return Extra(
        pilot=0 if size is None else min(pilot_asks(sidecar, total), size.most),
        size=size,
        candidates=candidates if trim.anchor_rows else 0,
        segments=segments,
        checks=GOLD_CHECKS if auto and gold else CHECKS * (2 if noisy else 1),
        redo=total if sidecar.on_collapse == "redo" and segments else 0,
        audit=audit,
        audit_twice=audit if noisy else -(-audit // AUDIT_TWICE),
    )
