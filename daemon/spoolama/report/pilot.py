"""What is told of the pilot: what was tried and chosen, why, and what it cost; or why there was none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spoolama.effect.forms import AGAIN, ALONE, FASTER, FORMS, form_named
from spoolama.job.plan import PILOT_ROWS, pilot_asks
from spoolama.job.sidecar import Sidecar
from spoolama.report.agreed import percent
from spoolama.spool.ledger_read import LedgerReader

__all__ = ["USUAL", "pilot_metrics", "span", "used_rows"]

Put = Callable[..., None]

USUAL = "Rows alone is what `auto` usually finds without known answers (`gold`)."
_FORMS = tuple(form.name for form in FORMS)
_HOW = (
    "the pilot's own record: a seeded sample of the rows was answered alone, alone again, and in each"
    " form in `tried`. `agreement`: likeness with the answers given alone, 0 to 1 (`compared` says of"
    " what), with a 95 % interval by Clopper and Pearson; a row that left its conversation or was repaired"
    " in it counts 0; `conversations`: the runs of rows that `rows` come from, which lean on one another:"
    " where they do, interval and test promise too much; `floor`: likeness of alone and alone again;"
    " `speed`: times as fast as alone, reckoned from the server's counts and times; `wins`, `losses`:"
    " against alone on gold, on rows that had no part in the selection; `proof`, `better`: shown by a"
    " test that may be looked at after each row, at 5 % for all forms together; `seconds`: its answered"
    " requests added up, and their share of all"
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
        None if noted is None else _told(noted, ledger, sidecar, total),
        _HOW,
        missing=_why_none(ledger, sidecar, total),
    )


def used_rows(ledger: LedgerReader) -> set[int]:
    """Ordinals of the rows by whose known answers could be chosen what stands before the others."""
    return ledger.chosen_with((ALONE, *_FORMS))


def span(low: float, high: float) -> str:
    """`88 to 96 %`."""
    return f"{low * 100:.0f} to {high * 100:.0f} %"


def _why_none(ledger: LedgerReader, sidecar: Sidecar, total: int) -> str:
    trim = sidecar.trim
    if sidecar.mode == "isolated":
        return "the sidecar says `mode: isolated`, so each row was asked alone"
    if trim.strategy != "auto":
        return (
            f"the sidecar names `{trim.strategy}` itself; with `trim: {{strategy: auto}}` a sample of the"
            " rows decides"
        )
    if ledger.meta("input_format") == "openai" or ledger.meta("asked_models", [None]) not in ([None], []):
        return "rows that bring their own model or requests have none; each row was asked alone"
    if trim.pilot == 0:
        return f"the sidecar says `pilot: 0`, so each row was asked alone. {USUAL.rstrip('.')}"
    if not pilot_asks(sidecar, total):
        return (
            f"below {PILOT_ROWS:,} rows a sample of 2 % proves nothing, so each row was asked alone."
            f" {USUAL} `trim: {{pilot: 300}}` has 300 answers spent on a pilot all the same"
        )
    return "the job ended before its pilot did"


def _told(noted: Mapping[str, Any], ledger: LedgerReader, sidecar: Sidecar, total: int) -> dict[str, Any]:
    anchored = any(form.anchored for one in noted["tried"] if (form := form_named(one["form"])))
    spent = ledger.requests((ALONE, AGAIN, *_FORMS), samples="all" if anchored else "none").seconds
    everything = ledger.all_requests().seconds
    told = {
        "form": noted["form"],
        "why": noted["why"],
        "asked": noted["asked"],
        "asked_share": round(noted["asked"] / max(1, total), 4),
        "seconds": round(spent, 3),
        "time_share": round(spent / everything, 4) if everything else None,
        **{key: noted[key] for key in ("floor", "floor_rows", "compared", "tried", "notes")},
        "margin": sidecar.trim.margin,
    }
    return {**told, "sentence": _sentence(told, sidecar)}


def _sentence(told: Mapping[str, Any], sidecar: Sidecar) -> str:
    form = form_named(told["form"])
    parts = [f"Chosen: {'each row alone' if form is None else form.words}.", _reason(told, sidecar)]
    floor = told["floor"]
    if floor is not None and floor < 1 and told["tried"]:
        parts.append(f"Alone, asked twice, agrees with itself in {percent(floor)}.")
    if told["asked"]:
        time = "" if told["time_share"] is None else f", {percent(told['time_share'])} of the requests' time"
        parts.append(
            f"It cost {told['asked']:,} further answers ({percent(told['asked_share'])} of the rows{time})."
        )
    if form is None and sidecar.gold is None:
        parts.append(USUAL)
    return " ".join(parts)


def _reason(told: Mapping[str, Any], sidecar: Sidecar) -> str:
    why, tried = told["why"], told["tried"]
    if why == "too_small":
        return "The answers that the pilot may take are too few to prove anything else harmless."
    if why == "none_faster":
        return f"Nothing else was reckoned to be {FASTER:g} times as fast, so nothing else was tried."
    if why == "none_fits":
        return (
            "Nothing else that may be faster can be had: segments are too short for it, or no rows fit in"
            " front of the others."
        )
    if why == "costs_unknown":
        return "Too few rows came with the server's tokens and times to tell whether anything else is faster."
    chosen = next((one for one in tried if one["form"] == told["form"]), None)
    if why == "better" and chosen:
        return f"Proved in the sample to agree better with {sidecar.gold} than rows alone: {_duel(chosen)}."
    if why == "no_harm" and chosen:
        faster = "" if chosen["speed"] is None else f"; reckoned {chosen['speed']:.1f} times as fast"
        return f"Proved harmless in the sample: {_likeness(chosen, told)}{faster}."
    return _no_proof(tried, told, sidecar)


def _no_proof(tried: Sequence[Mapping[str, Any]], told: Mapping[str, Any], sidecar: Sidecar) -> str:
    if not tried:
        return "Nothing else was proved harmless."
    others = f"None of {len(tried)} other ways that were tried was proved"
    if sidecar.gold is None:
        near = max(tried, key=lambda one: one["agreement"])
        floor = 1.0 if told["floor"] is None else told["floor"]
        needed = f"{_likeness(near, told)}; {percent(floor - told['margin'])} had to be proved."
        if len(tried) == 1:
            return f"{_capital(near['words'])} was not proved harmless: {needed}"
        return f"{others} harmless. {_capital(near['words'])}: {needed}"
    near = max(tried, key=lambda one: one["wins"] - one["losses"])
    best = f" Best was {near['words']}: {_duel(near)}." if near["compared"] else ""
    if len(tried) == 1:
        others = "The other way that was tried was not proved"
    like = ", ".join(f"{one['form']} {percent(one['agreement'])}" for one in tried)
    return f"{others} better on {sidecar.gold}, or harmless and faster.{best} As alone answers: {like}."


def _likeness(one: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    interval = f"95 % interval {span(one['low'], one['high'])}"
    number = one.get("conversations")  # notes of earlier versions do not say
    where = "" if number is None else f" in {number:,} conversation{'s' * (number != 1)}"
    if told["compared"] == "equal answers":
        same = f"{percent(one['agreement'])} of {one['rows']:,} answers{where} are those given alone"
        return f"{same} ({interval})"
    return (
        f"{one['rows']:,} answers{where} are {percent(one['agreement'])} like those given alone"
        f" ({told['compared']}; {interval})"
    )


def _duel(one: Mapping[str, Any]) -> str:
    return (
        f"{one['wins']:,} better, {one['losses']:,} worse, the rest as good"
        f" ({one['compared']:,} compared: {one['how']})"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
