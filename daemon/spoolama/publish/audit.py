"""What is reported of the audit: whether the conversation harms the answers, how sure that is, what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from spoolama.compare.audit import AuditedRow, smallest_harm, weigh
from spoolama.compare.evidence import wilson
from spoolama.compare.likeness import TEXTS, Likeness, likeness_of
from spoolama.compare.pilot import ISOLATED
from spoolama.job.labels import enum_of
from spoolama.job.sidecar import Sidecar
from spoolama.publish.agreed import percent, span
from spoolama.publish.labels import label_of_answer
from spoolama.publish.statistics import falls_along
from spoolama.spool.ledger_read import LedgerReader
from spoolama.spool.ledger_read_effect import AuditedSegments, Compared

__all__ = ["NOTHING_TO_AUDIT", "Part", "audit_metrics", "falling", "parts_of"]

Put = Callable[..., None]

NOTHING_TO_AUDIT = ", so there was nothing to audit"
_MOST = 100
"""Segments that are reported one by one."""
_NAMED = 3
"""Segments that the warning names."""
_LEAST = 20
"""With fewer rows nothing is said of falling agreement."""
_HOW = (
    "a random sample of the rows that were answered in sight of others, spread evenly over the job, was "
    "asked again in isolation as segments ended (at temperature 0 a second time where the answers "
    "differed, above it always). `agreement`: mean likeness of the conversation's answer and the "
    "isolated ones, 0 to 1 (`compared` says of what), with 95 % intervals by Wilson; `by_depth`: in "
    "thirds by the number of rows that the conversation had before; `along_job`: by place in the file; "
    "`floor`: likeness of two isolated answers above temperature 0; `changed`: best estimate of the "
    "share that the conversation changed; `harm`: that is above `margin`, and a test that may be read "
    "after every segment, or an exact one at the end, refutes that it is at most half of it; "
    "`known_after`: rows answered by then; `smallest_harm`: the share that such a sample finds with 95 "
    f"% probability; `drift`: Spearman's correlation of likeness with depth or place, from {_LEAST} rows "
    "on. `odd`: segments in which one answer has 95 % of the rows while isolated answers differ; up to "
    "8 of their rows decided about them alone. `harmed`: segments whose own rows show harm, counted "
    "from 0, rows from 1. It does not say which of two answers is right"
)


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the rows that were audited."""

    where: str
    rows: int
    agreement: float
    low: float
    high: float


def audit_metrics(put: Put, ledger: LedgerReader, sidecar: Sidecar, pilot: Mapping[str, Any] | None) -> None:
    """Add `audit`.

    Args:
        put: Takes name, value, how it was measured and, as `missing`, why there is none.
        ledger: The job's ledger.
        sidecar: What was asked.
        pilot: What metrics.json says of the pilot.
    """
    segments, compared = ledger.audited_segments(), ledger.compared("audit")
    value = None
    if compared or segments.looked_at:
        value = _value(ledger, sidecar, pilot or {}, segments, compared)
    put("audit", value, _HOW, missing=_why_none(ledger, sidecar))


def _why_none(ledger: LedgerReader, sidecar: Sidecar) -> str:
    if sidecar.mode == "isolated":
        return "rows were asked in isolation"
    if not ledger.in_company():
        asked = sidecar.audit_rows
        return "no row was answered in sight of others" + (NOTHING_TO_AUDIT if asked else "")
    if ledger.meta("input_format") == "openai" or ledger.meta("asked_models", [None]) not in ([None], []):
        return "the rows bring their own requests or models, and are not audited"
    if sidecar.audit_rows == 0:
        return "the sidecar says `audit: off`"
    return "the job ended before a segment was done"


def _value(
    ledger: LedgerReader,
    sidecar: Sidecar,
    pilot: Mapping[str, Any],
    segments: AuditedSegments,
    compared: Sequence[Compared],
) -> dict[str, Any]:
    noisy, margin = sidecar.options.temperature > 0, sidecar.trim.margin
    rows, like = _rows(ledger, sidecar, compared)
    budget, harm = ledger.meta("audit") or {}, ledger.meta("harm")
    harmed = _placed([verdict for verdict in segments.verdicts if verdict["harm"]], ledger)
    plans = ledger.plans()
    value: dict[str, Any] = {
        "asked": sidecar.audit if budget else None,
        "random": budget.get("random"),
        "odd_at_most": budget.get("odd"),
        "begun_before": bool(budget.get("begun_before")),
        "margin": margin,
        "on_harm": sidecar.on_harm,
        **_sample(rows, like, compared, sidecar, noisy=noisy),
        "harm": harm is not None,
        "known_after": None if harm is None else harm["answered"],
        "segments": segments.looked_at,
        "odd": sum(bool(verdict["suspicion"]) for verdict in segments.verdicts),
        "harmed": harmed[:_MOST],
        "replaced": segments.replaced,
        "answered_again": segments.answered_again,
        "isolated_from": _isolated_from(plans) if harm is not None else None,
        "by_gold": pilot.get("why") == "better",
    }
    words = None if harm is None else str(harm["words"])
    if words is None and harmed:  # by the guard of an earlier version
        words = f"the conversation changed the answers in {len(harmed):,} of {_segments(segments.looked_at)}"
    return {
        **value,
        "sentence": _sentence(value, sidecar, harm=words is not None),
        "warning": None if words is None else _warning(words, value, len(harmed)),
        "warning_in_short": None if words is None else _brief(words, value),
    }


def _rows(
    ledger: LedgerReader, sidecar: Sidecar, compared: Sequence[Compared]
) -> tuple[list[AuditedRow], Likeness]:
    def label(answer: str) -> str:
        return label_of_answer(answer, sidecar)

    again = ledger.trial_answers("audit-again")
    rows = [
        AuditedRow(
            row.ordinal,
            label(row.given),
            label(row.isolated),
            label(again[row.ordinal]) if row.ordinal in again else None,
        )
        for row in compared
    ]
    others = {**ledger.sample_answers(), **ledger.trial_answers(ISOLATED), **ledger.trial_answers("odd")}
    known = {n: label(answer) for n, answer in others.items()} | {row.ordinal: row.isolated for row in rows}
    return rows, likeness_of(list(known.values()), listed=enum_of(sidecar) is not None)


def _sample(
    rows: Sequence[AuditedRow],
    like: Likeness,
    compared: Sequence[Compared],
    sidecar: Sidecar,
    *,
    noisy: bool,
) -> dict[str, Any]:
    """What the random sample says."""
    keeps = sidecar.trim.keep_rows or sidecar.trim.strategy == "budget"
    # A trim that keeps rows hands on what they did; else the conversation begins anew.
    depth = {row.ordinal: row.place if keeps else row.depth for row in compared}
    values = {row.ordinal: _likeness(row, like, noisy=noisy) for row in rows}
    twice = [like.of(row.isolated, row.again) for row in rows if row.again is not None]
    floor = round(mean(twice), 4) if noisy and twice else None
    whole = parts_of("all", list(values.values()))
    found = weigh(rows, like, sidecar.trim.margin, noisy=noisy)
    floor_share = 1.0 if floor is None else round(floor, 2)
    small = smallest_harm(len(rows), sidecar.trim.margin, noisy=noisy, floor=floor_share)
    return {
        "rows": len(rows),
        "agreement": whole.agreement if rows else None,
        "low": whole.low if rows else None,
        "high": whole.high if rows else None,
        "floor": floor,
        "not_repeated": sum(value < 1 for value in twice),
        "changed": round(found.changed, 4) if rows else None,
        "smallest_harm": None if like.kind == "texts" else small,
        "drift": falling(values, depth),
        "compared": like.words,
        "by_depth": [asdict(part) for part in _by_depth(values, depth)],
        "along_job": [
            asdict(parts_of(f"rows {part[0] + 1} to {part[-1] + 1}", [values[n] for n in part]))
            for part in _thirds(sorted(values))
        ],
    }


def _likeness(row: AuditedRow, like: Likeness, *, noisy: bool) -> float:
    once = like.of(row.given, row.isolated)
    return once if row.again is None or not noisy else (once + like.of(row.given, row.again)) / 2


def _by_depth(values: Mapping[int, float], depth: Mapping[int, int]) -> list[Part]:
    deep = sorted(values, key=lambda n: (depth[n], n))
    if len(set(depth.values())) == 1:  # its thirds would be the same depth three times
        return [parts_of(f"after {depth[deep[0]]} rows", list(values.values()))]
    return [
        parts_of(f"after {depth[part[0]]} to {depth[part[-1]]} rows", [values[n] for n in part])
        for part in _thirds(deep)
    ]


def _thirds(rows: Sequence[int]) -> list[Sequence[int]]:
    size = -(-len(rows) // 3) or 1
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def parts_of(where: str, values: Sequence[float]) -> Part:
    """The mean of likenesses with its interval."""
    if not values:
        return Part(where, 0, 0.0, 0.0, 1.0)
    low, high = wilson(sum(values), len(values))
    return Part(where, len(values), round(mean(values), 4), round(low, 4), round(high, 4))


def falling(values: Mapping[int, float], depth: Mapping[int, int]) -> str | None:
    """`depth` or `job`, where likeness surely falls along it; None: not shown."""
    rows = sorted(values)
    if len(rows) < _LEAST:
        return None
    shares = [values[n] for n in rows]
    for name, along in (("depth", [float(depth[n]) for n in rows]), ("job", [float(n) for n in rows])):
        if falls_along(along, shares):
            return name
    return None


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


def _isolated_from(plans: Sequence[Mapping[str, Any]]) -> int | None:
    """The first row that was asked in isolation because of harm, from 1."""
    first = None
    for plan in plans[1:]:
        isolated = plan["strategy"] == "reset" and plan["every"] == 1
        first = (first or plan) if isolated else None
    return None if first is None else int(first["from_segment"] * first["segment_rows"]) + 1


# --- in words ------------------------------------------------------------------------------------------


def _sentence(value: Mapping[str, Any], sidecar: Sidecar, *, harm: bool) -> str:
    parts = []
    if value["begun_before"]:
        parts.append(_begun_before(value))
    if value["rows"]:
        parts += [f"{_same(value)}.", _verdict(value, sidecar, harm=harm)]
        if value["drift"] == "depth":
            parts.append("The more rows stood before a row, the less its answers agree.")
        elif value["drift"] == "job":
            parts.append("The later in the job, the less the answers agree.")
    elif harm:
        parts.append("Harm was found: see the top.")
    else:
        parts.append(f"No harm seen in {_segments(value['segments'])}; no row was asked at random.")
    return " ".join(parts)


def _begun_before(value: Mapping[str, Any]) -> str:
    checks = "only segments that look odd are checked, as its guard did"
    if value["random"]:
        checks = "its audit is made as segments end"
    return f"An earlier version began this job: {checks}."


def _same(value: Mapping[str, Any]) -> str:
    interval = f"95 % interval {span(value['low'], value['high'])}"
    rows = f"{value['rows']:,} row{'s' * (value['rows'] != 1)}"
    if value["compared"] == "equal answers":
        same = f"{percent(value['agreement'])} of {rows} got the same answer"
        text = f"Asked again in isolation, {same} ({interval})"
    else:
        text = (
            f"Asked again in isolation, {rows} were answered {percent(value['agreement'])} alike"
            f" ({value['compared']}; {interval})"
        )
    if value["floor"] is not None:
        text += f"; two isolated answers are {percent(value['floor'])} alike"
    elif value["not_repeated"]:
        text += f"; in {value['not_repeated']:,} of them isolated answers did not repeat"
    return text


def _verdict(value: Mapping[str, Any], sidecar: Sidecar, *, harm: bool) -> str:
    allowed = f"{value['margin'] * 100:g} %"
    if value["by_gold"] and not harm:
        return f"The answers are meant to differ: the pilot chose what agrees better with {sidecar.gold}."
    if harm:
        return f"Harm was found{_when(value)}: see the top."
    if value["compared"] == TEXTS:
        return "Texts are worded otherwise where they mean the same, so no harm is concluded from that."
    if value["changed"] > value["margin"]:
        return (
            f"The best estimate is {percent(value['changed'])} changed, more than the {allowed} that `margin`"
            " allows, but so few rows do not prove it."
        )
    small = value["smallest_harm"]
    if small is None:
        return "So few rows cannot show harm."
    return f"No harm found; a change of {percent(small)} of the answers would be found with 95 % probability."


def _when(value: Mapping[str, Any]) -> str:
    known = value["known_after"]
    return "" if known is None else f" after {known:,} rows"


def _segments(number: int) -> str:
    return "1 segment" if number == 1 else f"{number:,} segments"


def _brief(words: str, value: Mapping[str, Any]) -> str:
    again = f"; {value['replaced']:,} rows were asked again in isolation" if value["replaced"] else ""
    return words + again


def _warning(words: str, value: Mapping[str, Any], harmed: int) -> str:
    known = _when(value).strip()
    text = f"Warning: {words}{f' (known {known})' if known else ''}."
    if harmed:
        named = [_place(verdict) for verdict in value["harmed"][:_NAMED]]
        if harmed > _NAMED:
            named.append(f"{_segments(harmed - _NAMED)} more in metrics.json")
        text += f" Harmed by themselves: {'; '.join(named)}."
    return f"{text} {_remedy(value)}"


def _place(verdict: Mapping[str, Any]) -> str:
    """Which rows, what was odd about them, and what an audit of them found."""
    odd = f", where {verdict['suspicion']}" if verdict["suspicion"] else ""
    found = f"{verdict['differ']:g} of {verdict['rows']} audited answers changed"
    return f"rows {verdict['first_row']:,} to {verdict['last_row']:,}{odd} ({found})"


def _remedy(value: Mapping[str, Any]) -> str:
    done = []
    if value["isolated_from"] is not None:
        done.append(f"From row {value['isolated_from']:,} on, rows were asked in isolation.")
    if value["replaced"]:
        some = ""
        if value["answered_again"] < value["replaced"]:
            some = f" ({value['answered_again']:,} of them have an answer so far)"
        done.append(
            f"{value['replaced']:,} rows were asked again in isolation{some}; the results hold those answers,"
            " marked `redone`."
        )
    if value["on_harm"] == "fail":
        done.append("The job ended there, as `on_harm: fail` asks.")
        wish = "drop it again with `mode: isolated`, or with `on_harm: isolate`"
    else:
        rest = "other answers" if done else "answers"
        done.append(f"The {rest} stand in the results as they came.")
        wish = "nothing, if earlier rows are meant to count; else drop the job again with `mode: isolated`"
    return f"{' '.join(done)} What to do: {wish}."
