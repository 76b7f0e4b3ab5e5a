"""The phase of the audit: rows answered in conversation are answered again alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from spoolama.effect.audit import rows_to_audit
from spoolama.effect.forms import SEED
from spoolama.engine.anchoring import RunLanes
from spoolama.engine.handout import Handout
from spoolama.engine.lane import Lane
from spoolama.engine.progress import Progress
from spoolama.engine.store import RowStore
from spoolama.job.plan import Plan
from spoolama.job.sidecar import Sidecar

__all__ = ["AUDIT", "AUDIT_AGAIN", "audit_rows", "left_to_look_at"]

AUDIT = "audit"
AUDIT_AGAIN = "audit-again"
_AGAIN_EVERY = 4
"""At temperature 0 one row in so many is answered alone twice, to see whether that repeats."""
_CHUNK = 8


async def audit_rows(
    sidecar: Sidecar, store: RowStore, plan: Plan, run: RunLanes, progress: Progress
) -> None:
    """Answer as many rows again as the sidecar asks for; those that were before a restart are not."""
    if not sidecar.audit:
        return
    rows = rows_to_audit(await store.in_company(), sidecar.audit, sidecar.options.seed)
    twice = rows if sidecar.options.temperature > 0 else rows[::_AGAIN_EVERY]
    left: dict[str, list[int]] = {}
    for kind, wanted in ((AUDIT, rows), (AUDIT_AGAIN, twice)):
        done = {row.ordinal for row in await store.trials(kind)}
        left[kind] = [n for n in wanted if n not in done]
    most = len(rows) + len(twice)
    with progress.counting("audit", most, done=most - sum(map(len, left.values()))):
        for kind, wanted in left.items():
            waiting = Handout(_chunks(wanted))

            async def work(lane: Lane, kind: str = kind, waiting: Handout[Sequence[int]] = waiting) -> None:
                while (some := await waiting.take()) is not None:
                    await lane.run_apart(kind, some, plan, seed=SEED if kind == AUDIT else 2 * SEED)

            await run(work)
    await store.note(audited=True)


async def left_to_look_at(sidecar: Sidecar, store: RowStore) -> bool:
    """Whether guard or audit have not ended, though all rows may have."""
    if await store.unguarded():
        return True
    audited = not sidecar.audit or await store.meta("audited", False)
    return not audited and bool(await store.in_company())


async def _chunks(rows: Sequence[int]) -> AsyncIterator[Sequence[int]]:
    for first in range(0, len(rows), _CHUNK):
        yield rows[first : first + _CHUNK]
