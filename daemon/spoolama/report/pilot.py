"""What is told of the pilot: what was tried and chosen, why, and what it cost; or why there was none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spoolama.effect.forms import AGAIN, ALONE, FASTER, FORMS, form_named
from spoolama.effect.sample import BLOCK, blocks_of
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
    " test that may be looked at after each row, at 5 % for all forms together; `allowed`: answers that it"
    " may take, `all_rows_asked`: whether all rows of the sample were; `seconds`: its answered requests"
    " added up, and their share of all (requests of several lanes overlap: it is no share of the wall time)"
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
            f" {USUAL} `trim: {{pilot: 300}}` spends at most 300 answers on a pilot all the same"
        )
    return "the job ended before its pilot did"


def _told(noted: Mapping[str, Any], ledger: LedgerReader, sidecar: Sidecar, total: int) -> dict[str, Any]:
    anchored = any(form.anchored for one in noted["tried"] if (form := form_named(one["form"])))
    spent = ledger.requests((ALONE, AGAIN, *_FORMS), samples="all" if anchored else "none").seconds
    everything = ledger.all_requests().seconds
    allowed = pilot_asks(sidecar, total)
    blocks = blocks_of(total, allowed, sidecar.options.seed) if allowed else ()
    told = {
        "form": noted["form"],
        "why": noted["why"],
        "asked": noted["asked"],
        "asked_share": round(noted["asked"] / max(1, total), 4),
        "allowed": allowed,
        "all_rows_asked": len(ledger.trial_answers(ALONE)) >= len(blocks) * min(BLOCK, total),
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
        # No share of the time: requests of several lanes overlap, and nobody measured how long it took.
        spent = f"It cost {told['asked']:,} further answers ({percent(told['asked_share'])} of the rows)"
        parts.append(f"{spent}{_rest(told)}.")
    if form is None and sidecar.gold is None:
        parts.append(USUAL)
    return " ".join(parts)


def _rest(told: Mapping[str, Any]) -> str:
    """Why it did not take all the answers that it may; empty where it did, but for less than a block."""
    block = BLOCK * (2 + len(told["tried"]))  # alone, twice at most, and in each form
    if told["allowed"] - told["asked"] < block:
        return ""
    why = {
        "better": "the proof was there before",
        "no_harm": "the proof was there before",
        "no_proof": "no proof was to be expected of more",
    }.get(told["why"])
    if told["why"] == "no_proof" and told["all_rows_asked"]:
        why = "there were no more rows to take"
    return "" if why is None else f" of the {told['allowed']:,} that it may take: {why}"


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
    if len(tried) == 1:
        others = "The other way that was tried was not proved"
    parts = [f"{others} better on {sidecar.gold}, or harmless and faster.", *_nearest(tried, sidecar)]
    rows = sorted({one["rows"] for one in tried})
    where = f"{rows[0]:,} rows" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,} rows each"
    like = ", ".join(f"{_named(one)} {percent(one['agreement'])}" for one in tried)
    return " ".join([*parts, f"Answers as alone, on {where}: {like}."])


def _nearest(tried: Sequence[Mapping[str, Any]], sidecar: Sidecar) -> list[str]:
    """What was seen on gold. Nothing is called best that was not ahead of rows alone."""
    compared = [one for one in tried if one["compared"]]
    if not compared:
        return []
    near = max(compared, key=lambda one: one["wins"] - one["losses"])
    if near["wins"] > near["losses"]:
        parts = [f"Best on {sidecar.gold} was {_named(near)}: {_duel(near)}."]
    else:
        parts = [f"On {sidecar.gold} {_named(near)} was no better than rows alone: {_duel(near)}."]
    if without := len(tried) - len(compared):
        others = "The other was" if without == 1 else f"The {without} others were"
        parts.append(f"{others} not compared on it.")
    return parts


def _named(one: Mapping[str, Any]) -> str:
    """`up to 5 earlier rows (tail-5)`."""
    return f"{one['words'].removesuffix(' before each row')} ({one['form']})"


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
