"""Cards that follow a script, for simulations with a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from spoolama.clock import Clock
from spoolama.memory.readings import Card, NoReading

GB = 1 << 30
"""Cards are sold in these units: 16 GB are 16 x 2^30 bytes."""

Scene = tuple[Card, ...] | NoReading
"""A reading: the cards, or the reason why there is none."""

Script = Callable[[float], Scene] | Iterable[tuple[float, Scene]]
"""A function of seconds, or scenes with the second from which each applies."""


def card(used_gb: float, total_gb: float = 16, **fields: Any) -> Card:
    """Make a card with this much memory, in GB of 2^30 bytes.

    Args:
        used_gb: What is not free.
        total_gb: The card's size.
        fields: Other fields of `Card`, or other values for `index` and `name`.
    """
    plain = Card(0, "scripted card", total_bytes=round(total_gb * GB), used_bytes=round(used_gb * GB))
    return replace(plain, **fields)


class ScriptedCards:
    """A `CardProbe` that follows a script.

    Args:
        script: The readings by time. Seconds count from the creation of this object; the first scene of a
            list applies before its second as well.
        clock: Time.
    """

    def __init__(self, script: Script, clock: Clock) -> None:
        self._script = script if callable(script) else _by_steps(script)
        self._clock = clock
        self._start = clock.monotonic()
        self.reads = 0
        """The number of readings."""

    def read(self) -> tuple[Card, ...]:
        """Read the cards of this moment.

        Raises:
            NoReading: by the script.
        """
        self.reads += 1
        scene = self._script(self._clock.monotonic() - self._start)
        if isinstance(scene, NoReading):
            # A new exception each time, because raising one object again would chain its tracebacks
            # endlessly.
            raise NoReading(scene.reason, lasting=scene.lasting)
        return scene


def _by_steps(steps: Iterable[tuple[float, Scene]]) -> Callable[[float], Scene]:
    """Return a function of time that keeps each scene until the next one's second."""
    ordered = sorted(steps, key=lambda step: step[0])
    if not ordered:
        raise ValueError("a script needs one scene at least")

    def at(seconds: float) -> Scene:
        scene = ordered[0][1]
        for since, what in ordered:
            if since <= seconds:
                scene = what
        return scene

    return at
