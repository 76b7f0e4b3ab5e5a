"""Describes for `spoolama check` how a job's GPU memory limits combine with the service's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spoolama.memory.level import GB, RelativeLimits, in_gb, stricter

if TYPE_CHECKING:
    from spoolama.job.sidecar import Vram

__all__ = ["memory_limits"]


def memory_limits(vram: Vram, service: RelativeLimits, totals: Sequence[int]) -> list[str]:
    """The limits in force while the job runs, and its own limits that have no effect or cannot be met.

    Args:
        vram: The sidecar's limits.
        service: The service's limits.
        totals: Sizes in bytes of the cards that can be read now.
    """
    if not totals:
        return [_unread(vram, service), *_looser(vram, service)]
    lines = []
    for total in sorted(set(totals)):
        job = RelativeLimits(vram.high or 1.0, vram.critical or 1.0, vram.keep_free_gb or 0.0)
        found = stricter(service.limits(total), job.limits(total))
        lines.append(
            f"vram: high from {in_gb(found.high_bytes)}, critical from {in_gb(found.critical_bytes)} "
            f"on a GPU of {in_gb(total)}, counting all processes."
        )
        lines += _useless(vram, service, total)
    return lines


def _useless(vram: Vram, service: RelativeLimits, total: int) -> Iterator[str]:
    """Values of the job that have no effect on a card of this size, or cannot be met there."""
    theirs = service.limits(total)
    for name, mark, alone, limit in (
        (
            "high",
            vram.high,
            RelativeLimits(vram.high or 1.0, 1.0, 0.0).limits(total).high_bytes,
            theirs.high_bytes,
        ),
        (
            "critical",
            vram.critical,
            RelativeLimits(1.0, vram.critical or 1.0, 0.0).limits(total).critical_bytes,
            theirs.critical_bytes,
        ),
    ):
        if mark is not None and alone > limit:
            yield (
                f"Warning: vram.{name}: {mark:g} exceeds the service's {in_gb(limit)} on a GPU of "
                f"{in_gb(total)}, so it is ignored there."
            )
    kept = vram.keep_free_gb
    if kept is None:
        return
    left = total - theirs.critical_bytes
    if kept * GB < left:
        yield (
            f"Warning: vram.keep_free_gb: {kept:g} is lower than the service's limit, which keeps "
            f"{in_gb(left)} of a GPU of {in_gb(total)} free, so it is ignored there."
        )
    elif kept * GB > total / 2:
        yield (
            f"Warning: vram.keep_free_gb: {kept:g} is more than half of a GPU of {in_gb(total)}. "
            f"At most half is kept free, so critical is at {in_gb(total // 2)} there."
        )


def _looser(vram: Vram, service: RelativeLimits) -> Iterator[str]:
    """The same without a card, where only values of the same unit can be compared."""
    pairs = (("high", vram.high, service.high), ("critical", vram.critical, service.critical))
    for name, mark, theirs in pairs:
        if mark is not None and (mark <= 1) == (theirs <= 1) and mark > theirs:
            yield f"Warning: vram.{name}: {mark:g} exceeds the service's {theirs:g}, so it is ignored."
    if vram.keep_free_gb is not None and vram.keep_free_gb < service.keep_free_gb:
        yield (
            f"Warning: vram.keep_free_gb: {vram.keep_free_gb:g} is lower than the service's "
            f"{service.keep_free_gb:g}, so it is ignored."
        )


def _unread(vram: Vram, service: RelativeLimits) -> str:
    free = max(vram.keep_free_gb or 0.0, service.keep_free_gb)
    return (
        f"vram: high from {_lower(vram.high, service.high)}; critical from "
        f"{_lower(vram.critical, service.critical)}, or with less than {free:g} GB free. "
        "No GPU can be read on this machine now, so its size is unknown."
    )


def _lower(job: float | None, service: float) -> str:
    if job is None or job == service:
        return _mark(service)
    if (job <= 1) == (service <= 1):
        return _mark(min(job, service))
    return f"{_mark(job)} or {_mark(service)}, whichever is less"


def _mark(mark: float) -> str:
    return f"{mark * 100:g} % of a GPU" if mark <= 1 else f"{mark:g} GB"
