"""What is reported of the pilot: what was tried and chosen, why, and what it cost; or why there was none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spoolama.compare.pilot import BLOCK, FORMS, ISOLATED, blocks_of, form_named
from spoolama.job.plan import PILOT_ROWS, pilot_asks
from spoolama.job.sidecar import Sidecar
from spoolama.publish.agreed import percent
from spoolama.spool.ledger_read import LedgerReader

__all__ = ["pilot_metrics", "used_rows"]

Put = Callable[..., None]

_FORMS = tuple(form.name for form in FORMS)
_KINDS = (ISOLATED, "again", *_FORMS)
"""Kinds of answers that a pilot asks for; `again` in earlier versions."""
_HOW = (
    "the pilot's own record: a seeded sample of the rows was asked in isolation and in each form in "
    "`tried`. `wins`, `losses`: where the form agreed better or worse with gold than isolated answers "
    "did, on rows that had no part in its selection; a row that left its conversation or was repaired "
    "in it is lost; `conversations`: the runs of rows that `rows` come from; `better`: proved by a test "
    "that may be read after each row, at 5 %; `allowed`: answers that it may take, `all_rows_asked`: "
    "whether all rows of the sample were; `seconds`: its answered requests added up, and their share of "
    "all (requests of several lanes overlap: it is no share of the wall time)"
)


def pilot_metrics(put: Put, ledger: LedgerReader, sidecar: Sidecar) -> None:
    """Add `pilot`.

    Args:
        put: Takes name, value, how it was measured and, as `missing`, why there is none.
        ledger: The job's ledger.
        sidecar: What was asked.
    """
    total = sum(ledger.counts().values())
    noted = ledger.meta("pilot")
    put(
        "pilot",
        None if noted is None else _value(noted, ledger, sidecar, total),
        _HOW,
        missing=_why_none(ledger, sidecar, total),
    )


def used_rows(ledger: LedgerReader) -> set[int]:
    """Ordinals of the rows by whose known answers could be chosen what stands before the others."""
    return ledger.chosen_with((ISOLATED, *_FORMS))


def _why_none(ledger: LedgerReader, sidecar: Sidecar, total: int) -> str:
    trim = sidecar.trim
    if sidecar.mode == "isolated":
        return "the sidecar says `mode: isolated`"
    if trim.strategy != "auto":
        return f"the sidecar names the strategy `{trim.strategy}`"
    if ledger.meta("input_format") == "openai" or ledger.meta("asked_models", [None]) not in ([None], []):
        return "rows that bring their own model or requests have none; each row was asked in isolation"
    if sidecar.gold is None:
        if ledger.meta("pilot_done"):
            return (
                "an earlier version began this job and its pilot without `gold`, which this version does not"
                " have; each row was asked in isolation"
            )
        return "without known answers (`gold`) there is nothing to try; each row was asked in isolation"
    if trim.pilot == 0:
        return "the sidecar says `pilot: 0`, so each row was asked in isolation"
    if not pilot_asks(sidecar, total):
        return (
            f"below {PILOT_ROWS:,} rows a sample of 2 % proves little, so each row was asked in isolation."
            " `trim: {pilot: 300}` spends at most 300 answers on a pilot"
        )
    return "the job ended before its pilot did"


def _value(noted: Mapping[str, Any], ledger: LedgerReader, sidecar: Sidecar, total: int) -> dict[str, Any]:
    anchored = any(form.anchored for one in noted["tried"] if (form := form_named(one["form"])))
    spent = ledger.requests(_KINDS, samples="all" if anchored else "none").seconds
    everything = ledger.all_requests().seconds
    allowed = pilot_asks(sidecar, total)
    blocks = blocks_of(total, allowed, sidecar.options.seed) if allowed else ()
    value = {
        "form": noted["form"],
        "why": noted["why"],
        "asked": noted["asked"],
        "asked_share": round(noted["asked"] / max(1, total), 4),
        "allowed": allowed,
        "all_rows_asked": len(ledger.trial_answers(ISOLATED)) >= len(blocks) * min(BLOCK, total),
        "seconds": round(spent, 3),
        "time_share": round(spent / everything, 4) if everything else None,
        "tried": noted["tried"],
    }
    return {**value, "sentence": _sentence(value, sidecar)}


def _sentence(value: Mapping[str, Any], sidecar: Sidecar) -> str:
    form = form_named(value["form"])
    parts = [f"Chosen: {'each row in isolation' if form is None else form.words}.", _reason(value, sidecar)]
    if value["asked"]:
        # No share of the time: requests of several lanes overlap, and nobody measured how long it took.
        spent = f"It cost {value['asked']:,} additional answers ({percent(value['asked_share'])} of the rows)"
        parts.append(f"{spent}{_rest(value)}.")
    return " ".join(parts)


def _rest(value: Mapping[str, Any]) -> str:
    """Why it did not take all the answers that it may; empty where it did, but for less than a block."""
    block = BLOCK * (1 + len(value["tried"]))
    if value["allowed"] - value["asked"] < block:
        return ""
    why = {
        "better": "the proof was complete",
        "no_proof": "no proof was to be expected of more",
    }.get(value["why"])
    if value["why"] == "no_proof" and value["all_rows_asked"]:
        why = "there were no more rows to take"
    return "" if why is None else f" of at most {value['allowed']:,}: {why}"


def _reason(value: Mapping[str, Any], sidecar: Sidecar) -> str:
    why, tried = value["why"], value["tried"]
    if why == "too_small":
        return "The answers that the pilot may take are too few to prove anything."
    if why == "none_fits":
        return (
            "Nothing else can be tried: segments are too short for it, or no rows fit in front of the others."
        )
    chosen = next((one for one in tried if one["form"] == value["form"]), None)
    if why == "better" and chosen:
        return (
            f"Proved in the sample to agree better with {sidecar.gold} than isolated rows: {_duel(chosen)}."
        )
    if why != "no_proof" or sidecar.gold is None:
        return "An earlier version decided this, not by known answers; this version goes on with it."
    return _no_proof(tried, sidecar)


def _no_proof(tried: Sequence[Mapping[str, Any]], sidecar: Sidecar) -> str:
    """What was seen on gold. Nothing is called best that was not ahead of isolated rows."""
    first = f"No form was proved to agree better with {sidecar.gold}"
    compared = [one for one in tried if one["compared"]]
    if not compared:
        return f"{first}."
    near = max(compared, key=lambda one: one["wins"] - one["losses"])
    ahead = "The best of" if near["wins"] > near["losses"] else "None was ahead; the nearest of"
    if len(tried) == 1:
        return f"{first}. Tried: {_named(near)}: {_duel(near)}."
    return f"{first}. {ahead} {len(tried)} was {_named(near)}: {_duel(near)}."


def _named(one: Mapping[str, Any]) -> str:
    """`up to 5 earlier rows (tail-5)`."""
    return f"{one['words'].removesuffix(' before each row')} ({one['form']})"


def _duel(one: Mapping[str, Any]) -> str:
    return (
        f"{one['wins']:,} better, {one['losses']:,} worse, the rest equal"
        f" ({one['compared']:,} compared: {one['how']})"
    )
