"""What is told of the guard: what it looked at, what it found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spoolama.effect.forms import ALONE
from spoolama.effect.guard import LEAST, NO_REFERENCE
from spoolama.job.sidecar import Sidecar
from spoolama.report.agreed import percent
from spoolama.spool.ledger_read import LedgerReader
from spoolama.spool.ledger_read_effect import Guarded

__all__ = ["guard_metrics"]

Put = Callable[..., None]

_MOST = 100
"""Segments whose verdicts are told one by one."""
_NAMED = 3
"""Segments that the warning names."""
_REFERENCE = 20
"""Answers given alone below which the spread of a segment has nothing to be held against."""
_ALONE = "alone, without other rows before them"
_HOW = (
    "a segment whose answers are spread otherwise than those given alone, or are nearly all the same,"
    f" was looked into, as was a long one as long as under {_REFERENCE} answers given alone were there to"
    " compare with: some of its rows were answered again alone, and only these decided `harm`, by odds"
    " of 20 to 1 or more. `differ`: of `rows` asked again, how many came out otherwise (numbers and"
    " texts count by how far); `floor`: likewise alone against alone again, above temperature 0. Where"
    " the pilot chose a form for agreeing better with gold: `differ` rows or pairs further from gold"
    " than alone, `floor` nearer to it. `segment` counts from 0 as in results.jsonl, `first_row` and"
    " `last_row` from 1. `in_sight`: rows whose answer in the results was given in sight of others."
    " `not_settled`: suspicions for which no row could be compared. Small changes go unseen:"
    " an audit finds them"
)


def guard_metrics(put: Put, ledger: LedgerReader, sidecar: Sidecar, pilot: Mapping[str, Any] | None) -> None:
    """Add `guard`.

    Args:
        put: Takes name, value, how it was measured and, as `missing`, why there is none.
        ledger: The job's ledger.
        sidecar: What was asked.
        pilot: What metrics.json says of the pilot.
    """
    found = ledger.guarded(LEAST)
    why = "no row was answered in sight of others"
    if sidecar.mode == "isolated":
        why = "rows were asked alone"
    elif ledger.in_company():
        why = _why_none(ledger)
    put(
        "guard",
        _told(found, ledger, sidecar, by_gold=(pilot or {}).get("why") == "better")
        if found.judged + found.short
        else None,
        _HOW,
        missing=why,
    )


def _why_none(ledger: LedgerReader) -> str:
    """Why nobody looked at rows that were answered in sight of others."""
    if ledger.meta("input_format") == "openai" or ledger.meta("asked_models", [None]) not in ([None], []):
        return "the rows bring their own requests or models, and are not watched"
    plans = ledger.plans()
    if plans and 0 < plans[0]["segment_rows"] < LEAST:
        return (
            f"segments are too short to be judged, which takes {LEAST} answers given in sight of other rows"
        )
    return "the job ended before a segment was done"


def _told(found: Guarded, ledger: LedgerReader, sidecar: Sidecar, *, by_gold: bool) -> dict[str, Any]:
    harmed = _placed([v for v in found.verdicts if v["harm"]], ledger)
    told: dict[str, Any] = {
        "looked_at": found.judged,
        "too_short": found.short,
        "suspicions": len(found.verdicts),
        "checked": found.checked,
        "harmed": len(harmed),
        "not_settled": sum(not v["rows"] for v in found.verdicts),
        "verdicts": harmed[:_MOST],
        "replaced": found.replaced,
        "answered_again": found.answered_again,
        "in_sight": ledger.in_company(),
        "on_collapse": sidecar.on_collapse,
    }
    alone = {**ledger.sample_answers(), **ledger.trial_answers(ALONE), **ledger.trial_answers("guard")}
    return {
        **told,
        "sentence": _sentence(told, reference=len(alone) >= _REFERENCE),
        "warning": _warning(harmed, told, sidecar, by_gold=by_gold) if harmed else None,
        "warning_in_short": _brief(harmed, told, by_gold=by_gold) if harmed else None,
    }


def _placed(verdicts: Sequence[Mapping[str, Any]], ledger: LedgerReader) -> list[dict[str, Any]]:
    """The verdicts with the rows that they are about."""
    plans, total = ledger.plans(), sum(ledger.counts().values())
    size = (plans[0]["segment_rows"] if plans else 0) or total
    return [
        {
            **verdict,
            "first_row": verdict["segment"] * size + 1,
            "last_row": min(total, (verdict["segment"] + 1) * size),
        }
        for verdict in verdicts
    ]


def _sentence(told: Mapping[str, Any], *, reference: bool) -> str:
    looked, suspicions = told["looked_at"], told["suspicions"]
    if told["harmed"]:
        text = f"Harm in {told['harmed']:,} of {_segments(looked)}: see the top."
    elif suspicions > told["not_settled"]:
        text = (
            f"{_segments(looked)} looked at, {suspicions:,} of them closely: {told['checked']:,} rows"
            " answered again alone show no harm."
        )
    elif suspicions:
        text = f"{_segments(looked)} looked at, {suspicions:,} of them closely."
    elif looked:
        text = f"{_segments(looked)} looked at, no sign of harm."
    else:
        return f"Nothing to judge: no segment has {LEAST} answers given in sight of other rows."
    if told["not_settled"]:
        text += (
            f" Not settled in {_segments(told['not_settled'])}: no row answered again alone could be compared"
            " there."
        )
    if told["too_short"]:
        text += f" {told['too_short']:,} more had too few answers to judge."
    if not reference and not told["harmed"]:
        text += (
            " With hardly any answers given alone to compare, only a segment that nearly always says the"
            " same would be noticed."
        )
    return text


def _segments(number: int) -> str:
    return "1 segment" if number == 1 else f"{number:,} segments"


def _warning(
    harmed: Sequence[Mapping[str, Any]], told: Mapping[str, Any], sidecar: Sidecar, *, by_gold: bool
) -> str:
    named = [_place(verdict) for verdict in harmed[:_NAMED]]
    if len(harmed) > _NAMED:
        named.append(f"{_segments(len(harmed) - _NAMED)} more in metrics.json")
    return (
        f"Warning: {_what(harmed, told, by_gold=by_gold)} ({'; '.join(named)})."
        f" {_worse(harmed, sidecar) if by_gold else _proof(harmed)} {_remedy(told, sidecar)}"
    )


def _what(harmed: Sequence[Mapping[str, Any]], told: Mapping[str, Any], *, by_gold: bool) -> str:
    return (
        f"the conversation {'spoiled' if by_gold else 'changed'} the answers in {len(harmed):,} of"
        f" {_segments(told['looked_at'])}"
    )


def _brief(harmed: Sequence[Mapping[str, Any]], told: Mapping[str, Any], *, by_gold: bool) -> str:
    again = f"; {told['replaced']:,} rows were asked again, alone" if told["replaced"] else ""
    return _what(harmed, told, by_gold=by_gold) + again


def _place(verdict: Mapping[str, Any]) -> str:
    """Which rows, and what was odd about them."""
    rows, odd = f"rows {verdict['first_row']:,} to {verdict['last_row']:,}", verdict["suspicion"]
    return rows if odd == NO_REFERENCE else f"{rows}: {odd}"


def _proof(harmed: Sequence[Mapping[str, Any]]) -> str:
    rows = sum(v["rows"] for v in harmed)
    differ, floor = sum(v["differ"] for v in harmed), sum(v["floor"] for v in harmed)
    noise = f" (alone, asked twice, {percent(floor / rows)})" if floor else ""
    if float(differ).is_integer() and not floor:
        return f"Of {rows:,} such rows asked again {_ALONE}, {differ:.0f} got another answer."
    return (
        f"The answers of {rows:,} such rows asked again {_ALONE}, are {percent(differ / rows)}"
        f" different{noise}."
    )


def _worse(harmed: Sequence[Mapping[str, Any]], sidecar: Sidecar) -> str:
    rows, losses, wins = (sum(v[key] for v in harmed) for key in ("rows", "differ", "floor"))
    return (
        f"Held against {sidecar.gold} beside the same rows asked again alone, {losses:.0f} of {rows:,} came"
        f" out worse and {wins:.0f} better."
    )


def _remedy(told: Mapping[str, Any], sidecar: Sidecar) -> str:
    after = " What came after them was asked alone." if sidecar.trim.strategy == "auto" else ""
    if told["on_collapse"] == "redo":
        some = ""
        if told["answered_again"] < told["replaced"]:
            some = f"; {told['answered_again']:,} of them have an answer so far"
        others = f"; {'the line Audit' if sidecar.audit else '`audit: 200`'} tells about the others"
        return (
            f"{told['replaced']:,} rows were therefore asked again, each alone{some}; the results hold those"
            f" answers, marked `redone`.{after} What to do: nothing for these rows"
            f"{others if told['in_sight'] else ''}."
        )
    if told["on_collapse"] == "fail":
        return (
            "The job ended there, as `on_collapse: fail` asks. What to do: drop it again with"
            " `mode: isolated`, or with `on_collapse: redo`."
        )
    return (
        f"Their answers stand in the results as they came.{after} What to do: do not rely on them; drop the"
        " job again with `mode: isolated`, or with `on_collapse: redo`, which asks such rows again alone."
    )
