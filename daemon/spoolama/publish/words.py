"""Formats numbers for people: counts, shares and intervals."""

from __future__ import annotations


def count(number: int | None) -> str:
    """`1,234,567`, or `not counted`."""
    return "not counted" if number is None else f"{number:,}"


def counted(number: int, what: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def percent(share: float) -> str:
    """`93 %`; with a decimal place below 1 % and above 99 %."""
    return f"{share * 100:.0f} %" if share in (0, 1) or 0.01 <= share <= 0.99 else f"{share * 100:.1f} %"


def percent_range(low: float, high: float) -> str:
    """`88 to 96 %`."""
    return f"{low * 100:.0f} to {high * 100:.0f} %"


def interval_words(interval: tuple[float, float] | None, *, percent: bool = False) -> str:
    """` (95 % interval 0.41 to 0.57)`; empty without an interval."""
    if interval is None:
        return ""
    shown = percent_range(*interval) if percent else f"{interval[0]:.2f} to {interval[1]:.2f}"
    return f" (95 % interval {shown})"


def short(text: str, most: int = 40) -> str:
    """The text on one line, cut if it is longer than `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
