"""Other users' programs on a card during a night: their times and their memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spoolama.memory.level import GB


@dataclass(frozen=True, slots=True)
class Use:
    """A program's use of the card."""

    name: str
    begin_s: float
    end_s: float
    gb: float
    """Memory that it wants from its start on."""
    gb_per_s: float = 0.0
    """Growth for each second: a leak."""

    def wants(self, seconds: float) -> int:
        """Return the bytes that it wants at this moment."""
        if not self.begin_s <= seconds < self.end_s:
            return 0
        return round((self.gb + self.gb_per_s * (seconds - self.begin_s)) * GB)


class Users:
    """All other users of the card.

    Args:
        uses: Their programs.
    """

    def __init__(self, uses: Sequence[Use]) -> None:
        self.uses = tuple(sorted(uses, key=lambda use: use.begin_s))

    @property
    def end_s(self) -> float:
        """The time of the last start or end."""
        return max((use.end_s for use in self.uses if use.end_s < float("inf")), default=0.0)

    def want(self, seconds: float) -> dict[str, int]:
        """Return bytes by program; programs of one name are added up."""
        found: dict[str, int] = {}
        for use in self.uses:
            if use.begin_s > seconds:
                break
            if size := use.wants(seconds):
                found[use.name] = found.get(use.name, 0) + size
        return found


@dataclass(frozen=True, slots=True)
class _Habit:
    """A kind of program: its frequency, duration and memory."""

    name: str
    every_h: float
    stays_s: tuple[float, float]
    gb: tuple[float, float]
    grows_gb: tuple[float, float] = (0.0, 0.0)
    """Its growth until its end."""


_HABITS = (
    _Habit("job", 1.0, (120.0, 900.0), (2.6, 3.6)),
    _Habit("model", 3.5, (1500.0, 2000.0), (8.5, 9.5)),
    _Habit("spike", 0.15, (1.0, 2.2), (2.0, 3.3)),
    _Habit("leak", 3.0, (900.0, 2400.0), (0.0, 0.1), (2.5, 5.0)),
    _Habit("greedy", 2.5, (5.0, 120.0), (64.0, 64.0)),
)
"""`greedy` wants more than any card has, so it takes all that is left."""

_DESKTOP_CHANGES_S = (60.0, 1800.0)


def night_of(seed: int, hours: float, *, often: float = 1.0) -> Users:
    """Make a night with each kind of program at least once and only the desktop afterwards.

    Args:
        seed: Decides all of it.
        hours: The time of the last start.
        often: Frequency relative to a usual night.
    """
    rng = random.Random(f"night {seed}")
    return Users([*_desktop(rng, hours * 3600), *_visits(rng, hours, often)])


def _desktop(rng: random.Random, seconds: float) -> Iterator[Use]:
    """A desktop that always uses 0.3 to 1 GB."""
    at = 0.0
    while at < seconds:
        until = at + rng.uniform(*_DESKTOP_CHANGES_S)
        last = until >= seconds
        yield Use("desktop", at, float("inf") if last else until, rng.uniform(0.3, 1.0))
        at = until


def _visits(rng: random.Random, hours: float, often: float) -> Iterator[Use]:
    for habit in _HABITS:
        for _ in range(max(1, round(hours * often / habit.every_h))):
            begin, stays = rng.uniform(0, hours * 3600), rng.uniform(*habit.stays_s)
            grows = rng.uniform(*habit.grows_gb) / stays
            yield Use(habit.name, begin, begin + stays, rng.uniform(*habit.gb), grows)
