"""Defines for each class of failure whether server, row or job is at fault, and what the engine does next.

Classes come from `spoolama.errors` (the request gave no answer) and from the checks of an answer
(`answer_cut`, `answer_empty`, `answer_invalid`, `prompt_truncated`). Message texts are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from spoolama.job.row import Attempt


class RetryAction(Enum):
    """The next action of the engine."""

    WAIT = "wait until the server answers again, then ask again"
    YIELD = "wait, then continue with fewer requests at once"
    REVIVE = "load the model again, then ask the row with nothing else in flight"
    PROBE = "check with a real generation that the server works, then ask again"
    END_JOB = "end the job with instructions to fix it"
    SHRINK = "ask without earlier rows; without any, the row's error with the sizes"
    REPAIR = "ask again with another seed and temperature, later in isolation"
    RETRY = "ask again; after ten of the same in a row check that the server works"


@dataclass(frozen=True, slots=True)
class Policy:
    """One line of the table."""

    fault: str
    """`server`, `row` or `job`."""
    counts: bool
    """Whether the attempt counts against the row's retries."""
    then: RetryAction


POLICIES: dict[str, Policy] = {
    "server_away": Policy("server", counts=False, then=RetryAction.WAIT),
    "server_busy": Policy("server", counts=False, then=RetryAction.YIELD),
    "server_died": Policy("server", counts=True, then=RetryAction.REVIVE),
    "out_of_memory": Policy("server", counts=True, then=RetryAction.REVIVE),
    "stalled": Policy("server", counts=True, then=RetryAction.PROBE),
    "request_refused": Policy("job", counts=True, then=RetryAction.END_JOB),
    "context_overflow": Policy("row", counts=True, then=RetryAction.SHRINK),
    "answer_unfinished": Policy("row", counts=True, then=RetryAction.REPAIR),
    "answer_cut": Policy("row", counts=True, then=RetryAction.REPAIR),
    "answer_empty": Policy("row", counts=True, then=RetryAction.REPAIR),
    "answer_invalid": Policy("row", counts=True, then=RetryAction.REPAIR),
    "prompt_truncated": Policy("row", counts=True, then=RetryAction.REPAIR),
    "unexpected": Policy("row", counts=True, then=RetryAction.RETRY),
}

ANSWER_FAILURES = frozenset(code for code, policy in POLICIES.items() if policy.then is RetryAction.REPAIR)
"""The server replied, but the reply is not a valid answer."""

ISOLATED_AFTER = 2
"""After this many invalid answers a row is asked in isolation, because the conversation may be the cause."""

SERVER_DEATHS = 3
"""After this many deaths of the server during a row, the row fails; from the second attempt on, no other
request is in flight."""

SERVICE_DEATHS = 20
"""After this many deaths of the service during a row, the row fails; from the third attempt on, no other
request is in flight. They count less than deaths of the server, because most have other causes."""


SERVER_LOSSES = 20
"""A row fails after this many attempts at which the server was away or busy, with answers to other requests
in between. An outage counts once: further attempts before the next answered request do not count, even if the
server looks healthy (`Attempt.counted` is false)."""

_LOSSES = ("server_away", "server_busy")


@dataclass(frozen=True, slots=True)
class RetryState:
    """What a row's earlier attempts mean for the next one."""

    repairs: int
    """Number of invalid answers. It is added to the seed; from the first on `repair.temperature` applies."""
    isolated: bool
    """Ask the row in isolation."""
    prefix_only: bool
    """Put only the prefix before the row, because it did not fit with more; later rows can see it."""
    exclusive: bool
    """Ask the row with no other request in flight, so that a further death is caused by this row."""
    prove: bool
    """If the server is away or busy again, only a real generation proves that it is back."""
    last: bool
    """If the next attempt fails because of the row, no further one follows."""
    over: str | None
    """Code of the final error; None: there is a next attempt."""


def retry_state_of(attempts: Sequence[Attempt], retries: int) -> RetryState:
    """Evaluate the earlier attempts of a row; pure, so that a resumed row is asked the same way."""
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
    return RetryState(
        repairs=repairs,
        isolated=repairs >= ISOLATED_AFTER,
        prefix_only=overflows > 0,
        exclusive=deaths > 0 or lost > 1 or away > 2,
        prove=bool(losses),
        last=len(counted) >= retries,
        over=over,
    )
