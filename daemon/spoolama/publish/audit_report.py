"""Reports the audit: whether the conversation harms the answers, how certain that is, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import mean
from typing import Any

from spoolama.compare.audit import AuditedRow, smallest_harm, weigh
from spoolama.compare.evidence import wilson
from spoolama.compare.pilot import ISOLATED
from spoolama.compare.similarity import TEXTS, Similarity, similarity_of
from spoolama.job.answer import enum_of, label_of_answer
from spoolama.job.sidecar import Sidecar
from spoolama.publish.statistics import falls_along
from spoolama.publish.words import counted, percent, percent_range
from spoolama.spool.ledger_reader import Compared, LedgerReader

_MOST_SEGMENTS = 100
"""Harmed segments that are listed in metrics.json."""
_NAMED = 3
"""Harmed segments that the warning names."""
_EQUAL = Similarity("labels").words
_LEAST_ROWS = 20
"""Least number of rows for a statement about falling agreement."""


@dataclass(frozen=True, slots=True)
class AuditedPart:
    """Some of the audited rows."""

    where: str = ""
    rows: int = 0
    agreement: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class HarmedSegment:
    """A segment whose own audited rows show harm."""

    segment: int = 0
    """Its number from 0."""
    first_row: int = 0
    """Number of its first row, from 1."""
    last_row: int = 0
    suspicion: str | None = None
    """What looked odd."""
    rows: int = 0
    """Audited rows."""
    differ: float = 0.0
    """Audited rows whose answer changed."""

    def words(self) -> str:
        """Its rows, what looked odd, and what the audit found."""
        odd = f", where {self.suspicion}" if self.suspicion else ""
        found = f"{self.differ:g} of {self.rows} audited answers changed"
        return f"rows {self.first_row:,} to {self.last_row:,}{odd} ({found})"


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The result of the audit."""

    asked: int | str | None = None
    """`audit` in the sidecar."""
    random: int | None = None
    """Rows of the random sample."""
    odd_at_most: int | None = None
    """More rows, of segments that look odd, at most."""
    begun_before: bool = False
    """Whether an earlier version began the job."""
    margin: float = 0.0
    on_harm: str = "report"
    rows: int = 0
    """Audited rows of the random sample."""
    agreement: float | None = None
    """Mean similarity of the conversation's answers to the isolated ones."""
    interval: tuple[float, float] | None = None
    """The 95 % interval of `agreement`."""
    repeatability: float | None = None
    """Mean similarity of two isolated answers, above temperature 0."""
    not_repeated: int = 0
    """Rows whose two isolated answers differ."""
    changed: float | None = None
    """Estimated share of answers that the conversation changed."""
    smallest_harm: float | None = None
    falls_along: str | None = None
    """`depth` (rows in the prompt) or `job`."""
    compared: str = ""
    """What is compared."""
    by_depth: tuple[AuditedPart, ...] = ()
    along_job: tuple[AuditedPart, ...] = ()
    harm: str | None = None
    """The harm that was found, in words; None: none was found."""
    known_after: int | None = None
    """Answered rows when the harm was known."""
    segments: int = 0
    """Audited segments."""
    odd_segments: int = 0
    harmed_segments: int = 0
    harmed: tuple[HarmedSegment, ...] = ()
    """The first 100 harmed segments."""
    withdrawn: int = 0
    """Rows whose answer in a conversation was withdrawn."""
    answered_again: int = 0
    """Those of them that have an isolated answer now."""
    isolated_from: int | None = None
    """Number of the first row that was isolated because of harm, from 1."""
    chosen_by_gold: bool = False
    """Whether the pilot chose the form because it agrees better with gold."""

    def sentence(self, gold: str) -> str:
        """The result in words.

        Args:
            gold: The column of known answers.
        """
        parts = []
        if self.begun_before:
            checks = (
                "the audit runs as segments end" if self.random else "only segments that look odd are checked"
            )
            parts.append(f"An earlier version began this job: {checks}.")
        if self.rows:
            parts += [f"{self._same_answers()}.", self._verdict(gold)]
            if self.falls_along == "depth":
                parts.append("The agreement falls with the number of earlier rows in the prompt.")
            elif self.falls_along == "job":
                parts.append("The agreement falls along the job.")
        elif self.harm is not None:
            parts.append("Harm was found: see the warning.")
        else:
            parts.append(
                f"No harm was found in {counted(self.segments, 'segment')}. No row was sampled at random."
            )
        return " ".join(parts)

    def _same_answers(self) -> str:
        assert self.agreement is not None
        assert self.interval is not None
        interval, rows = f"95 % interval {percent_range(*self.interval)}", counted(self.rows, "row")
        if self.compared == _EQUAL:
            text = f"{percent(self.agreement)} of {rows} got the same answer in isolation ({interval})"
        else:
            text = (
                f"{rows} got answers in isolation that are {percent(self.agreement)} alike ({self.compared}; "
                f"{interval})"
            )
        if self.repeatability is not None:
            text += f"; two isolated answers are {percent(self.repeatability)} alike"
        elif self.not_repeated:
            text += f"; in {counted(self.not_repeated, 'row')} the isolated answer did not repeat"
        return text

    def _verdict(self, gold: str) -> str:
        if self.harm is not None:
            return f"Harm was found{self._after()}: see the warning."
        if self.chosen_by_gold:
            return f"Different answers are intended: the pilot chose the form that agrees better with {gold}."
        if self.compared == TEXTS:
            return "Different words can have the same meaning, so this does not show harm."
        if (self.changed or 0.0) > self.margin:
            return (
                f"The estimate is {percent(self.changed or 0.0)} changed answers, above the "
                f"{self.margin * 100:g} % of `margin`, but the sample is too small to be sure."
            )
        if self.smallest_harm is None:
            return "The sample is too small to show harm."
        return (
            f"No harm was found. Such a sample detects a change of {percent(self.smallest_harm)} of the "
            "answers with 95 % probability."
        )

    def _after(self) -> str:
        return "" if self.known_after is None else f" after {self.known_after:,} rows"

    def warning(self) -> str | None:
        """The harm that was found, what was done about it, and what to do; None without harm."""
        if self.harm is None:
            return None
        text = f"Warning: {self.harm}" + (f" (first known{self._after()})." if self._after() else ".")
        if self.harmed:
            named = [each.words() for each in self.harmed[:_NAMED]]
            if self.harmed_segments > _NAMED:
                named.append(f"{counted(self.harmed_segments - _NAMED, 'more segment')} in metrics.json")
            text += f" Segments that show harm by themselves: {'; '.join(named)}."
        return f"{text} {self._remedy()}"

    def short_warning(self) -> str | None:
        """The same in a few words, for status and log."""
        if self.harm is None:
            return None
        again = f"; {counted(self.withdrawn, 'row')} asked again in isolation" if self.withdrawn else ""
        return f"Warning: {self.harm}{again}; see summary.txt"

    def _remedy(self) -> str:
        done = []
        if self.isolated_from is not None:
            done.append(f"From row {self.isolated_from:,} on, rows were isolated.")
        if self.withdrawn:
            some = ""
            if self.answered_again < self.withdrawn:
                some = f" ({self.answered_again:,} of them are answered so far)"
            done.append(
                f"{counted(self.withdrawn, 'row')} were asked again in isolation{some}; the results have "
                "these answers, marked `asked_again`."
            )
        if self.on_harm == "fail":
            done.append("The job ended there because of `on_harm: fail`.")
            remedy = "upload the job again with `mode: isolated` or `on_harm: isolate`."
        else:
            done.append(
                "The results keep the other answers unchanged."
                if done
                else "The results keep these answers unchanged."
            )
            remedy = (
                "upload the job again with `mode: isolated`, unless the rows are meant to depend on earlier "
                "ones."
            )
        return f"{' '.join(done)} What to do: {remedy}"


def audit_result(ledger: LedgerReader, sidecar: Sidecar, *, chosen_by_gold: bool) -> AuditResult | None:
    """The result of a job's audit; None if there was none.

    Args:
        ledger: The job's ledger.
        sidecar: The job's sidecar.
        chosen_by_gold: Whether the pilot chose the form because it agrees better with gold.
    """
    segments, compared = ledger.audited_segments(), ledger.compared("audit")
    if not compared and not segments.audited:
        return None
    budget, harm, plans = ledger.meta("audit") or {}, ledger.meta("harm"), ledger.plans()
    harmed = _placed([verdict for verdict in segments.verdicts if verdict["harm"]], ledger)
    sample = _sample(ledger, sidecar, compared)
    words = None if harm is None else _harm_words(harm, sample, chosen_by_gold=chosen_by_gold)
    if words is None and harmed:  # found by the guard of an earlier version
        audited = counted(segments.audited, "segment")
        words = f"the conversation changed the answers in {len(harmed):,} of {audited}"
    return replace(
        sample,
        asked=sidecar.audit if budget else None,
        random=budget.get("random"),
        odd_at_most=budget.get("odd"),
        begun_before=bool(budget.get("begun_before")),
        margin=sidecar.trim.margin,
        on_harm=sidecar.on_harm,
        harm=words,
        known_after=None if harm is None else harm["answered"],
        segments=segments.audited,
        odd_segments=sum(bool(verdict["suspicion"]) for verdict in segments.verdicts),
        harmed_segments=len(harmed),
        harmed=tuple(harmed[:_MOST_SEGMENTS]),
        withdrawn=segments.replaced,
        answered_again=segments.answered_again,
        isolated_from=_isolated_from(plans) if harm is not None else None,
        chosen_by_gold=chosen_by_gold,
    )


def _harm_words(harm: Mapping[str, Any], sample: AuditResult, *, chosen_by_gold: bool) -> str:
    """The harm with the figures of the whole sample; those in the ledger are of when it was noted."""
    if harm["segment"] is not None or chosen_by_gold or not sample.changed:
        return str(harm["words"])
    share = f"about {percent(sample.changed)}"
    much = f"{share} of the answers" if sample.compared == _EQUAL else f"the answers by {share}"
    asked = "rows that were asked again in isolation"
    return f"the conversation changes {much}, by {sample.rows:,} {asked}"


def why_no_audit(ledger: LedgerReader, sidecar: Sidecar) -> str:
    """Why a job had no audit."""
    if sidecar.mode == "isolated":
        return "the sidecar says `mode: isolated`"
    if not ledger.conversation_rows():
        return "every row was asked in isolation"
    if ledger.meta("own_requests", False):
        return "the rows bring their own model or request"
    if sidecar.audit_rows == 0:
        return "the sidecar says `audit: off`"
    return "the job ended before a segment did"


def _sample(ledger: LedgerReader, sidecar: Sidecar, compared: Sequence[Compared]) -> AuditResult:
    """What the random sample shows, without the rest of the result."""
    noisy, margin = sidecar.noisy, sidecar.trim.margin
    rows, like = _rows(ledger, sidecar, compared)
    # After a trim that keeps rows, their effect goes on; otherwise the conversation starts anew.
    keeps = sidecar.trim.keep_rows or sidecar.trim.strategy == "budget"
    depth = {row.ordinal: row.place if keeps else row.depth for row in compared}
    values = {row.ordinal: _similarity(row, like, noisy=noisy) for row in rows}
    twice = [like.of(row.isolated, row.again) for row in rows if row.again is not None]
    repeatability = round(mean(twice), 4) if noisy and twice else None
    whole = part_of("all", list(values.values()))
    floor = 1.0 if repeatability is None else round(repeatability, 2)
    return AuditResult(
        rows=len(rows),
        agreement=whole.agreement if rows else None,
        interval=whole.interval if rows else None,
        repeatability=repeatability,
        not_repeated=sum(value < 1 for value in twice),
        changed=round(weigh(rows, like, margin, noisy=noisy).changed, 4) if rows else None,
        smallest_harm=None
        if like.kind == "texts"
        else smallest_harm(len(rows), margin, noisy=noisy, floor=floor),
        falls_along=falling(values, depth),
        compared=like.words,
        by_depth=_by_depth(values, depth),
        along_job=tuple(
            part_of(f"rows {part[0] + 1} to {part[-1] + 1}", [values[n] for n in part])
            for part in _thirds(sorted(values))
        ),
    )


def _rows(
    ledger: LedgerReader, sidecar: Sidecar, compared: Sequence[Compared]
) -> tuple[list[AuditedRow], Similarity]:
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
    return rows, similarity_of(list(known.values()), listed=enum_of(sidecar) is not None)


def _similarity(row: AuditedRow, like: Similarity, *, noisy: bool) -> float:
    once = like.of(row.given, row.isolated)
    return once if row.again is None or not noisy else (once + like.of(row.given, row.again)) / 2


def _by_depth(values: Mapping[int, float], depth: Mapping[int, int]) -> tuple[AuditedPart, ...]:
    deep = sorted(values, key=lambda n: (depth[n], n))
    if len(set(depth.values())) == 1:  # three thirds would have the same depth
        return (part_of(f"after {depth[deep[0]]} rows", list(values.values())),)
    return tuple(
        part_of(f"after {depth[part[0]]} to {depth[part[-1]]} rows", [values[n] for n in part])
        for part in _thirds(deep)
    )


def _thirds(rows: Sequence[int]) -> list[Sequence[int]]:
    size = -(-len(rows) // 3) or 1
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def part_of(where: str, values: Sequence[float]) -> AuditedPart:
    """The mean of similarities with its 95 % interval."""
    if not values:
        return AuditedPart(where)
    low, high = wilson(sum(values), len(values))
    return AuditedPart(where, len(values), round(mean(values), 4), (round(low, 4), round(high, 4)))


def falling(values: Mapping[int, float], depth: Mapping[int, int]) -> str | None:
    """`depth` or `job` if the similarity falls along it significantly, otherwise None."""
    rows = sorted(values)
    if len(rows) < _LEAST_ROWS:
        return None
    shares = [values[n] for n in rows]
    for name, along in (("depth", [float(depth[n]) for n in rows]), ("job", [float(n) for n in rows])):
        if falls_along(along, shares):
            return name
    return None


def _placed(verdicts: Sequence[Mapping[str, Any]], ledger: LedgerReader) -> list[HarmedSegment]:
    """The verdicts with the numbers of their rows."""
    plans, total = ledger.plans(), sum(ledger.counts().values())
    size = (plans[0]["segment_rows"] if plans else 0) or total
    names = {one.name for one in fields(HarmedSegment)}
    return [
        HarmedSegment(
            **{key: value for key, value in verdict.items() if key in names},
            first_row=verdict["segment"] * size + 1,
            last_row=min(total, (verdict["segment"] + 1) * size),
        )
        for verdict in verdicts
    ]


def _isolated_from(plans: Sequence[Mapping[str, Any]]) -> int | None:
    """Number of the first row that was isolated because of harm, from 1."""
    first = None
    for plan in plans[1:]:
        isolated = plan["strategy"] == "reset" and plan["every"] == 1
        first = (first or plan) if isolated else None
    return None if first is None else int(first["from_segment"] * first["segment_rows"]) + 1
