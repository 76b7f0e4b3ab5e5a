"""What each failure means: one table, from the class of an error to whose fault it is and what happens.

Classes come from `spoolama.errors` (the request gave no answer) and from the checks of an answer
(`answer_cut`, `answer_empty`, `answer_invalid`, `prompt_truncated`). Nothing here looks at a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from spoolama.job.record import Attempt

__all__ = ["ANSWER_FAILURES", "POLICIES", "Policy", "Standing", "Then", "standing_of"]


class Then(Enum):
    """What the engine does next."""

    WAIT = "wait until the server answers again, then ask again"
    YIELD = "wait, then go on with fewer requests at once"
    REVIVE = "load the model again, then ask the row with nothing else in flight"
    PROBE = "see by a real generation that the server works, then ask again"
    END_JOB = "end the job with the words to mend it"
    SHRINK = "ask without earlier rows; without any, the row's error with the sizes"
    REPAIR = "ask again with another seed, later apart from the conversation"
    RETRY = "ask again; ten of the same in a row make the job see whether the server works"


@dataclass(frozen=True, slots=True)
class Policy:
    """One line of the table."""

    fault: str
    """`server`, `row` or `job`."""
    counts: bool
    """Whether the try counts against the row's retries."""
    then: Then


POLICIES: dict[str, Policy] = {
    "server_away": Policy("server", counts=False, then=Then.WAIT),
    "server_busy": Policy("server", counts=False, then=Then.YIELD),
    "server_died": Policy("server", counts=True, then=Then.REVIVE),
    "out_of_memory": Policy("server", counts=True, then=Then.REVIVE),
    "stalled": Policy("server", counts=True, then=Then.PROBE),
    "request_refused": Policy("job", counts=True, then=Then.END_JOB),
    "context_overflow": Policy("row", counts=True, then=Then.SHRINK),
    "answer_unfinished": Policy("row", counts=True, then=Then.REPAIR),
    "answer_cut": Policy("row", counts=True, then=Then.REPAIR),
    "answer_empty": Policy("row", counts=True, then=Then.REPAIR),
    "answer_invalid": Policy("row", counts=True, then=Then.REPAIR),
    "prompt_truncated": Policy("row", counts=True, then=Then.REPAIR),
    "unexpected": Policy("row", counts=True, then=Then.RETRY),
}

ANSWER_FAILURES = frozenset(code for code, policy in POLICIES.items() if policy.then is Then.REPAIR)
"""The server did its work, but what it gave is no answer."""

APART_AFTER = 2
"""A row whose answer failed so often is asked apart from the conversation, which may be what spoils it."""

SERVER_DEATHS = 3
"""A row in flight at so many deaths of the server is set aside (alone in flight from the second on)."""

SERVICE_DEATHS = 20
"""The same for deaths of the service itself, which usually have other reasons, such as a power cut."""


SERVER_LOSSES = 20
"""A row at which the server was away or busy so often, and seen to work between, is itself the reason. Until
then such tries count for nothing, and an outage is one of them: those after the first, before anything was
answered again, say nothing of the row, however well the server looks (`Attempt.counted` is false)."""

_LOSSES = ("server_away", "server_busy")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a row's earlier tries mean for the next one."""

    repairs: int
    """Answers that failed: the next seed is the configured one plus this."""
    apart: bool
    """Ask it apart from the conversation."""
    bare: bool
    """Ask it without earlier rows: with them it did not fit."""
    exclusive: bool
    """Ask it with nothing else in flight, so that a further death can only be its own."""
    prove: bool
    """If the server is away or busy at it again, only a real generation says that it is back."""
    last: bool
    """If the next try fails on the row's account, none follows."""
    over: str | None
    """Code of the end if there is no next try."""


def standing_of(attempts: Sequence[Attempt], retries: int) -> Standing:
    """What the earlier tries of a row mean; a pure function, so that a resumed row is asked the same."""
    repairs = sum(a.code in ANSWER_FAILURES for a in attempts)
    overflows = sum(a.code == "context_overflow" for a in attempts)
    deaths = sum(a.code == "server_died" or (a.code == "out_of_memory" and a.counted) for a in attempts)
    lost = sum(a.code == "open" for a in attempts)
    losses = [a for a in attempts if a.code in _LOSSES]
    away = sum(a.counted for a in losses)
    counted = [a for a in attempts if a.counted and a.code not in ("open", "context_overflow", *_LOSSES)]
    over: str | None = None
    if deaths >= SERVER_DEATHS:
        over = "server_died"
    elif lost >= SERVICE_DEATHS:
        over = "service_died"
    elif away >= SERVER_LOSSES:
        over = "server_away"
    elif overflows > 1:
        over = "context_overflow"
    elif len(counted) > retries:
        over = counted[-1].code
    return Standing(
        repairs=repairs,
        apart=repairs >= APART_AFTER,
        bare=overflows > 0,
        exclusive=deaths > 0 or lost > 1 or away > 2,
        prove=bool(losses),
        last=len(counted) >= retries,
        over=over,
    )
