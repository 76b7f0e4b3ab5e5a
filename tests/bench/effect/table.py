"""The results of many simulated jobs of a kind: counts and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.effect.jobs import Outcome, Scenario
from spoolama.compare.evidence import wilson
from spoolama.compare.pilot import ISOLATED

HARM = 0.10
"""Points of agreement with isolated answers that a job must not lose undetected."""
NOTHING = 0.025
"""The limit of no harm: at most half the margin lost, chance included."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Jobs of one kind."""

    name: str
    rows: int
    jobs: int
    forms: dict[str, int]
    """Number of jobs by the chosen form."""
    lost: float
    """Points of agreement lost, mean over jobs with a conversation."""
    harmful: int
    """Jobs that lose `HARM` or more in a form that was not chosen by gold."""
    missed: int
    quiet: int
    """Jobs that lose at most half the margin, or whose form was chosen by gold."""
    alarms: int
    """Those of them in which the audit reports harm."""
    found: dict[str, int]
    """What found the harm."""
    known_after: float | None
    """Rows answered when harm was known, median of the harmful jobs in which it was found."""
    known_late: float | None
    """The same, 90th percentile of these jobs."""
    asked_again: float
    """Isolated answers that the audit took, mean of jobs in which it found no harm."""


def counted(scenario: Scenario, outcomes: Sequence[Outcome]) -> Counted:
    """The counts of jobs of one kind."""
    open_ones = [o for o in outcomes if o.form != ISOLATED]
    harmful = [o for o in open_ones if o.lost >= HARM and not o.better]
    quiet = [o for o in open_ones if abs(o.lost) < NOTHING or o.better]
    known = sorted(o.known_after for o in harmful if o.known_after is not None)
    whole = [o.asked_again for o in open_ones if o.known_after is None]
    return Counted(
        scenario.name,
        scenario.rows,
        len(outcomes),
        dict(Counter(o.form for o in outcomes).most_common()),
        sum(o.lost for o in open_ones) / max(1, len(open_ones)),
        len(harmful),
        sum(o.known_after is None for o in harmful),
        len(quiet),
        sum(o.known_after is not None for o in quiet),
        dict(Counter(o.found_by for o in harmful if o.found_by).most_common()),
        median(known) if known else None,
        known[int(0.9 * len(known))] if known else None,
        sum(whole) / len(whole) if whole else 0.0,
    )


def _rate(hits: int, of: int) -> str:
    if not of:
        return "–"
    low, high = wilson(hits, of)
    return f"{hits} of {of} ({low:.1%} to {high:.1%})"


def markdown(rows: Sequence[Counted]) -> str:
    """Return one line for each kind of job; rates with their 95 % intervals."""
    lines = [
        "| kind of job | rows | taken | points lost | missed | false alarms | known after: median, 90 %"
        " | found by | asked again without harm |",
        "|---|---:|---|---:|---|---|---|---|---:|",
    ]
    for row in rows:
        forms = ", ".join(f"{name} {number}" for name, number in row.forms.items())
        known = "–" if row.known_after is None else f"{row.known_after:,.0f}, {row.known_late:,.0f}"
        by = ", ".join(f"{name} {number}" for name, number in row.found.items()) or "–"
        again = f"{row.asked_again:.0f}" if row.asked_again else "–"
        lines.append(
            f"| {row.name} | {row.rows:,} | {forms} | {row.lost * 100:.1f} | {_rate(row.missed, row.harmful)}"
            f" | {_rate(row.alarms, row.quiet)} | {known} | {by} | {again} |"
        )
    return "\n".join(lines)


def totals(rows: Sequence[Counted]) -> str:
    """Return all kinds together, in two lines."""
    missed, harmful = sum(r.missed for r in rows), sum(r.harmful for r in rows)
    alarms, quiet = sum(r.alarms for r in rows), sum(r.quiet for r in rows)
    return (
        f"harm of {HARM:.0%} or more missed: {_rate(missed, harmful)}\n"
        f"false alarms where nothing is: {_rate(alarms, quiet)}"
    )


def small_table(found: Sequence[tuple[Scenario, float, int, Sequence[Outcome]]]) -> str:
    """Return the table of smaller jobs: job, smallest harm, audited rows, outcomes."""
    lines = ["| rows | asked again | smallest harm | found |", "|---:|---:|---:|---|"]
    for scenario, share, audited, outcomes in found:
        hits = sum(o.known_after is not None for o in outcomes)
        lines.append(f"| {scenario.rows:,} | {audited} | {share:.0%} | {_rate(hits, len(outcomes))} |")
    return "\n".join(lines)
