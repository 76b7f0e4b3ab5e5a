"""What is told of the audit: whether rows asked again alone were answered as in the conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from spoolama.effect.audit import Audit, audit
from spoolama.effect.forms import ALONE
from spoolama.effect.likeness import likeness_of
from spoolama.job.labels import enum_of
from spoolama.job.sidecar import Sidecar
from spoolama.report.agreed import percent
from spoolama.report.harm import ADVICE
from spoolama.report.labels import label_of_answer
from spoolama.report.pilot import span
from spoolama.spool.ledger_read import LedgerReader

__all__ = ["NOTHING_TO_AUDIT", "audit_metrics"]

Put = Callable[..., None]

_HOW = (
    "rows drawn at random from all that were answered in sight of others were answered again alone at"
    " the end. `agreement`: mean likeness of both answers, 0 to 1 (`compared` says of what), with 95 %"
    " intervals by Clopper and Pearson; `by_depth`: in thirds by the number of rows that the"
    " conversation had before,"
    " `along_job`: by their place in the file; `floor`: likeness of alone and alone again, of all rows"
    " above temperature 0, else of a quarter; `lost`: best guess of the share that the conversation"
    " changed; `changed`: by more than `margin` beyond the floor, and beyond chance; `clear`: `lost` is"
    " within `margin`, and twice the margin can be ruled out; if neither, the rows are too few to tell;"
    " `certain`: whether it changed any answers at all, however few; `lost_elsewhere`: `lost` outside the"
    " segments that the guard found changed, null where there are none or no such row was audited;"
    " `drift`: Spearman's correlation of likeness with depth or place, from 20 rows on. It"
    " does not say which answer is right"
)

NOTHING_TO_AUDIT = ", so there was nothing to audit"


def audit_metrics(
    put: Put,
    ledger: LedgerReader,
    sidecar: Sidecar,
    pilot: Mapping[str, Any] | None,
    guard: Mapping[str, Any] | None,
) -> None:
    """Add `audit`.

    Args:
        put: Takes name, value, how it was measured and, as `missing`, why there is none.
        ledger: The job's ledger.
        sidecar: What was asked.
        pilot: What metrics.json says of the pilot.
        guard: Likewise of the guard.
    """
    harmed = (guard or {}).get("verdicts", [])
    found, depths, elsewhere = _found(ledger, sidecar, harmed)
    if sidecar.mode == "isolated":
        why = "rows were asked alone"
    elif not ledger.in_company():
        left = "is left that " if ledger.replaced() else ""
        why = f"no row {left}was answered in sight of others"
        if sidecar.audit:
            why += NOTHING_TO_AUDIT
    elif not sidecar.audit:
        why = "not asked for; `audit: 200` has 200 rows answered again alone and compared"
    else:
        why = "the job ended before its audit"
    value = None
    if found is not None:
        value = {**found.to_json(), "asked": sidecar.audit, "margin": sidecar.trim.margin}
        if len(depths) == 1:  # its thirds would be the same depth three times
            whole = {**asdict(found.by_depth[0]), "where": f"after {min(depths)} rows", "rows": found.rows}
            value["by_depth"] = [
                {**whole, "agreement": found.agreement, "low": found.low, "high": found.high}
            ]
        wanted = (pilot or {}).get("why") == "better"
        value["sentence"] = f"{_likeness(found)}. {_verdict(found, sidecar, wanted=wanted)}"
        harm = found.changed and not wanted
        value["lost_elsewhere"] = elsewhere if harmed else None
        beyond = harmed and elsewhere is not None and elsewhere > sidecar.trim.margin
        value["warning"] = _warning(found, elsewhere=bool(beyond)) if harm else None
        value["warning_in_short"] = _brief(found) if harm else None
    put("audit", value, _HOW, missing=why)


def _brief(found: Audit) -> str:
    """In words for equal answers, by how far for numbers and texts."""
    if found.compared == "equal answers":
        much = f"about {percent(found.lost)} of the answers"
    else:
        much = f"the answers by about {percent(found.lost)}"
    return f"the audit shows that the conversation changed {much}"


def _warning(found: Audit, *, elsewhere: bool) -> str:
    more = ", not only in the segments below" if elsewhere else ""
    return (
        f"Warning: {_brief(found)}{more} (see Audit).{ADVICE}nothing, if earlier rows were meant to count;"
        " else drop the job again with `mode: isolated`."
    )


def _found(
    ledger: LedgerReader, sidecar: Sidecar, harmed: Sequence[Mapping[str, Any]]
) -> tuple[Audit | None, set[int], float | None]:
    """What the audit found, the depths of its rows, and its `lost` outside the segments of these verdicts."""

    def label(answer: str) -> str:
        return label_of_answer(answer, sidecar)

    rows = ledger.compared("audit")
    alone = {row.ordinal: label(row.alone) for row in rows}
    others = {**ledger.sample_answers(), **ledger.trial_answers(ALONE), **ledger.trial_answers("guard")}
    known = [*alone.values(), *(label(answer) for ordinal, answer in others.items() if ordinal not in alone)]
    # A trim that keeps rows hands on what they did; else the conversation begins anew.
    keeps = sidecar.trim.keep_rows or sidecar.trim.strategy == "budget"
    depths = {row.ordinal: row.place if keeps else row.depth for row in rows}
    given = {row.ordinal: label(row.given) for row in rows}
    again = {n: label(answer) for n, answer in ledger.trial_answers("audit-again").items()}
    like, margin = likeness_of(known, listed=enum_of(sidecar) is not None), sidecar.trim.margin
    within = {n for v in harmed for n in given if v["first_row"] <= n + 1 <= v["last_row"]}
    others_given = {n: answer for n, answer in given.items() if n not in within}
    elsewhere = audit(others_given, alone, again, depths, like, margin=margin)
    return (
        audit(given, alone, again, depths, like, margin=margin),
        set(depths.values()),
        None if elsewhere is None else elsewhere.lost,
    )


def _likeness(found: Audit) -> str:
    interval = f"95 % interval {span(found.low, found.high)}"
    if found.compared == "equal answers":
        same = f"{percent(found.agreement)} of {found.rows:,} rows got the same answer"
        text = f"Asked again alone, {same} ({interval})"
    else:
        text = (
            f"Asked again alone, {found.rows:,} rows are answered {percent(found.agreement)} alike"
            f" ({found.compared}; {interval})"
        )
    if found.floor is not None and found.floor < 1:
        text += f"; alone, asked twice, {percent(found.floor)}"
    return text


def _verdict(found: Audit, sidecar: Sidecar, *, wanted: bool) -> str:
    allowed, twice = (f"{sidecar.trim.margin * times * 100:g} %" for times in (1, 2))
    if found.changed and wanted:
        text = f"The conversation changed answers, as it was to: it agrees better with {sidecar.gold}."
    elif found.changed:
        text = f"The conversation changed the answers, by more than the {allowed} that `margin` allows."
    elif found.lost > sidecar.trim.margin:
        text = (
            f"By the best guess more changed than the {allowed} that `margin` allows, but so few rows cannot"
            " tell."
        )
    else:
        sure = f"{twice} or more can be ruled out"
        if not found.clear:
            sure = f"so few rows cannot rule a change of {twice} out"
        if found.certain and found.lost > 0:
            much = f"{percent(found.lost)} of the answers"
            if found.compared != "equal answers":
                much = f"the answers by {percent(found.lost)}"
            text = f"The conversation changed {much}, within the {allowed} that `margin` allows; {sure}."
        elif found.clear:
            text = f"No sign that the conversation changed the answers: {sure}."
        else:
            text = f"A change beyond {allowed} is not shown, but {sure}."
    if found.drift == "depth":
        text += " The more rows stood before a row, the less its answers agree."
    elif found.drift == "job":
        text += " The later in the job, the less the answers agree."
    return text
