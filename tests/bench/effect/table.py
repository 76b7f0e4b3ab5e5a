"""What came of many simulated jobs of a kind, counted, and as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.effect.jobs import Outcome, Scenario
from spoolama.effect.forms import ALONE

__all__ = ["HARM", "NOTHING", "Counted", "counted", "markdown", "totals", "wilson"]

HARM = 0.10
"""Points of agreement with alone that a job may not lose unseen."""
NOTHING = 0.02
"""What nothing is: so few points lost, chance included."""


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212)."""
    if not of:
        return 0.0, 1.0
    z, share = 1.959964, hits / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


@dataclass(frozen=True, slots=True)
class Counted:
    """Jobs of one kind."""

    name: str
    jobs: int
    forms: dict[str, int]
    """How many took which form."""
    harm: float
    """What the form that was on trial, or forced, takes of the agreement with alone; mean."""
    harmful: int
    """Jobs in which that is `HARM` or more, and was not chosen for being better on gold."""
    by_pilot: int
    """Of these, those in which the pilot did not choose it."""
    by_guard: int
    by_audit: int
    missed: int
    """Found by none of them."""
    cleared: int
    """Of the missed, those that an audit called clear."""
    quiet: int
    """Jobs in which there is nothing to be found, or better answers were chosen."""
    alarms: int
    """Of these, those in which guard or audit claims harm all the same."""
    quiet_open: int
    """Of these, those that an audit called neither changed nor clear."""
    drift: int
    """Jobs in which drift is claimed."""
    asked: float
    """Answers beyond one a row, without those of the audit; mean."""


def counted(scenario: Scenario, outcomes: Sequence[Outcome]) -> Counted:
    """The counts of jobs of one kind."""
    better = [o for o in outcomes if o.decision is not None and o.decision.why == "better"]
    harmful = [o for o in outcomes if o.would_harm >= HARM and o not in better]
    loose = [o for o in harmful if o.form != ALONE and o.harm >= HARM]
    missed = [o for o in loose if not o.guarded and not (o.audit and o.audit.changed)]
    quiet = [o for o in outcomes if abs(o.would_harm) < NOTHING or o in better]
    return Counted(
        scenario.name,
        len(outcomes),
        dict(Counter(o.form for o in outcomes).most_common()),
        sum(o.would_harm for o in outcomes) / len(outcomes),
        len(harmful),
        sum(o.form == ALONE for o in harmful),
        sum(o.guarded > 0 for o in harmful),
        sum(o.audit is not None and o.audit.changed for o in harmful),
        len(missed),
        sum(o.audit is not None and o.audit.clear for o in missed),
        len(quiet),
        sum(o.guarded > 0 or (o.audit is not None and o.audit.changed and o not in better) for o in quiet),
        sum(o.audit is not None and not o.audit.changed and not o.audit.clear for o in quiet),
        sum(o.audit is not None and o.audit.drift is not None for o in outcomes),
        sum(sum(n for what, n in o.asked.items() if what != "audit") for o in outcomes) / len(outcomes),
    )


def _rate(hits: int, of: int) -> str:
    if not of:
        return "–"
    low, high = wilson(hits, of)
    return f"{hits} of {of} ({low:.1%} to {high:.1%})"


def markdown(rows: Sequence[Counted]) -> str:
    """One line a kind of job; rates with their 95 % intervals."""
    lines = [
        "| job | form taken | points lost | found by pilot / guard / audit | missed | false alarms"
        " | drift said | answers more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = f"{row.by_pilot} / {row.by_guard} / {row.by_audit}" if row.harmful else "–"
        forms = ", ".join(f"{name} {number}" for name, number in row.forms.items())
        lines.append(
            f"| {row.name} | {forms} | {row.harm * 100:.1f} | {found} | {_rate(row.missed, row.harmful)}"
            f" | {_rate(row.alarms, row.quiet)} | {row.drift} | {row.asked:.0f} |"
        )
    return "\n".join(lines)


def totals(rows: Sequence[Counted]) -> str:
    """All kinds together, in two lines."""
    missed, harmful = sum(r.missed for r in rows), sum(r.harmful for r in rows)
    alarms, quiet = sum(r.alarms for r in rows), sum(r.quiet for r in rows)
    cleared, unsure = sum(r.cleared for r in rows), sum(r.quiet_open for r in rows)
    return (
        f"harm of {HARM:.0%} or more missed: {_rate(missed, harmful)}, {cleared} of them called clear\n"
        f"false alarms where nothing is: {_rate(alarms, quiet)}; the audit left {unsure} of these open"
    )
