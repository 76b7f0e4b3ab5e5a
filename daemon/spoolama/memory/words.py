"""Describes memory readings as text and as figures for the status, the log and the metrics."""

from __future__ import annotations

from typing import Any

from spoolama.memory.level import LevelState
from spoolama.memory.limits import in_gb
from spoolama.memory.readings import Card, Readings

__all__ = ["figures", "in_words"]

_WORTH_SAYING_S = 600.0


def in_words(readings: Readings, place: int | None, state: LevelState) -> str:
    """Describe in one line the memory that determines the level.

    Args:
        readings: The latest readings.
        place: Index of the card in the readings; None: this machine's memory.
        state: State of that card or of the machine.
    """
    card = _card(readings, place)
    if card is not None:
        name = "GPU memory" if len(readings.cards or ()) == 1 else f"GPU {card.index}"
        words = f"{name}: {in_gb(card.used_bytes)} of {in_gb(card.total_bytes)} in use"
    elif place is None and readings.host is not None and (state.level or not readings.cards):
        host = readings.host
        of = f"{host.bound}, " if host.bound else ""
        words = f"{of}{in_gb(host.used_bytes)} of {in_gb(host.total_bytes)} of this machine's memory in use"
    else:
        return readings.blind or "memory cannot be read"
    if state.full_in_s is not None and 0 < state.full_in_s < _WORTH_SAYING_S:
        words += f", critical in {state.full_in_s:.0f} s at this rate"
    return words


def figures(readings: Readings, place: int | None, state: LevelState) -> dict[str, Any]:
    """Return the readings behind a change, for the log and metrics.json."""
    found: dict[str, Any] = {}
    if state.full_in_s is not None:
        found["full_in_s"] = round(state.full_in_s, 1)
    card = _card(readings, place)
    if card is not None:
        found |= {"card": card.index, "used": in_gb(card.used_bytes), "total": in_gb(card.total_bytes)}
    if readings.host is not None:
        found["host_used"] = in_gb(readings.host.used_bytes)
    if readings.runners:
        found["runner"] = in_gb(sum(runner.rss_bytes for runner in readings.runners))
    return found


def _card(readings: Readings, place: int | None) -> Card | None:
    cards = readings.cards
    return cards[place] if cards is not None and place is not None and place < len(cards) else None
