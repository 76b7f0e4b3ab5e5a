"""What does not fit together in a sidecar whose keys are right, each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Set

from spoolama.job.plan import sees_others
from spoolama.job.sidecar import Sidecar

__all__ = ["Misfit", "misfits"]

Misfit = tuple[tuple[str, ...], str, str]
"""The key's path, what is wrong, and what to write instead."""


def misfits(sidecar: Sidecar, *, openai: bool, unknown: Set[str] = frozenset()) -> Iterator[Misfit]:
    """Keys that ask for what the others rule out.

    Args:
        sidecar: What is asked.
        openai: Whether it belongs to OpenAI batch lines.
        unknown: Top keys that hold something wrong: what they will be is not known, so nothing is said that
            depends on them.
    """
    if "vram" not in unknown:
        yield from _vram(sidecar)
    if "answer_key" not in unknown:
        yield from _answer_key(sidecar)
    if openai:
        yield from _lines(sidecar)
    elif not unknown & {"mode", "trim", "segment"}:
        yield from _audit(sidecar)


def _vram(sidecar: Sidecar) -> Iterator[Misfit]:
    """A share and a number of GB cannot be compared before the card is known."""
    vram = sidecar.vram
    if vram is None or vram.high is None or vram.critical is None:
        return
    if (vram.high <= 1) == (vram.critical <= 1) and vram.high > vram.critical:
        yield ("vram", "high"), f"{vram.high:g} is above vram.critical {vram.critical:g}", "take less"


def _lines(sidecar: Sidecar) -> Iterator[Misfit]:
    """What is not done for OpenAI lines is refused rather than ignored."""
    if sidecar.trim.anchor_rows:
        hint = "use strategy reset or window, or put the turns into the lines"
        yield ("trim", "strategy"), "OpenAI lines have no anchors", hint
    if sidecar.audit:
        yield ("audit",), "OpenAI lines have no audit", "leave it out"
    if sidecar.on_collapse != "report":
        yield ("on_collapse",), "nobody watches the conversations of OpenAI lines", "leave it out"


def _audit(sidecar: Sidecar) -> Iterator[Misfit]:
    """An audit compares rows that saw others with themselves alone: it needs such rows."""
    if not sidecar.audit or sees_others(sidecar):
        return
    why = "mode: isolated" if sidecar.mode == "isolated" else "this trim or segment"
    hint = "leave audit out, or let rows see others"
    yield ("audit",), f"with {why} no row has others in sight, so nothing can be audited", hint


def _answer_key(sidecar: Sidecar) -> Iterator[Misfit]:
    keys = sidecar.format.get("properties") if isinstance(sidecar.format, dict) else None
    if not isinstance(keys, dict):
        return
    if sidecar.answer_key is not None and sidecar.answer_key not in keys:
        yield ("answer_key",), f"format has no key {sidecar.answer_key!r}", f"one of {', '.join(keys)}"
    elif sidecar.gold is not None and sidecar.answer_key is None and len(keys) > 1:
        hint = f"for example answer_key: {next(iter(keys))}"
        yield ("gold",), "the answer has several keys: say in answer_key which one is compared", hint
