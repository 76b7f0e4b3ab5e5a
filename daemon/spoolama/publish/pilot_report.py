"""Reports the pilot: which forms it tried, which it chose and why, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from spoolama.compare.pilot import BLOCK, FORMS, ISOLATED, TriedForm, blocks_of, form_named
from spoolama.job.plan import PILOT_ROWS, pilot_asks
from spoolama.job.sidecar import Sidecar
from spoolama.publish.words import counted
from spoolama.spool.ledger_reader import LedgerReader

_FORM_NAMES = tuple(form.name for form in FORMS)
PILOT_KINDS = (ISOLATED, "again", *_FORM_NAMES)
"""Kinds of answers that a pilot asks for; `again` by earlier versions."""


@dataclass(frozen=True, slots=True)
class PilotResult:
    """The result of the pilot."""

    form: str = ISOLATED
    """The chosen form, or `isolated`."""
    why: str = ""
    """`better`, `no_proof`, `none_fits`, `too_small`, or another word of an earlier version."""
    asked: int = 0
    """Answers that the pilot asked for."""
    asked_share: float = 0.0
    """The same as a share of the rows."""
    allowed: int = 0
    """Answers that it was allowed to ask for."""
    all_rows_asked: bool = False
    """Whether every row of the sample was asked."""
    seconds: float = 0.0
    time_share: float | None = None
    """The seconds as a share of the seconds of all requests; not of the elapsed time."""
    tried: tuple[TriedForm, ...] = ()

    def sentence(self, gold: str) -> str:
        """The chosen form, the reason and the cost in words.

        Args:
            gold: The column of known answers.
        """
        form = form_named(self.form)
        parts = [f"Chosen: {'each row in isolation' if form is None else form.words}.", self._reason(gold)]
        if self.asked:
            parts.append(self._cost())
        return " ".join(parts)

    def _cost(self) -> str:
        # Not the time: requests of several lanes overlap, and nobody measured the elapsed time.
        of = f" of {self.allowed:,} allowed answers" if self.allowed else " answers"
        return f"The pilot used {self.asked:,}{of}.{self._early_end()}"

    def _early_end(self) -> str:
        """Why it asked for fewer answers than allowed; empty if less than a block was left."""
        if self.allowed - self.asked < BLOCK * (1 + len(self.tried)):
            return ""
        why = {"better": "the result was clear", "no_proof": "more would not have changed the result"}
        reason = why.get(self.why, "")
        if self.why == "no_proof" and self.all_rows_asked:
            reason = "no rows were left"
        return f" It stopped because {reason}." if reason else ""

    def _reason(self, gold: str) -> str:
        if self.why == "too_small":
            return "The allowed number of answers is too small to show a difference."
        if self.why == "none_fits":
            return "No other form was possible: segments are too short, or no rows fit as anchors."
        chosen = next((one for one in self.tried if one.form == self.form), None)
        if self.why == "better" and chosen:
            return f"In the sample it agrees better with {gold} than isolated rows. {_comparison(chosen)}"
        if self.why != "no_proof":
            return "An earlier version made this choice without known answers, and this version keeps it."
        first = f"No form was shown to agree better with {gold}."
        compared = [one for one in self.tried if one.compared]
        if not compared:
            return first
        best = max(compared, key=lambda one: one.wins - one.losses)
        name = best.words.removesuffix(" before each row")
        number = len(self.tried)
        which = "The only other form" if number == 1 else f"The best of {number} other forms"
        return f"{first} {which} showed {name}. {_comparison(best)}"


def _comparison(one: TriedForm) -> str:
    compared = counted(one.compared, "comparison")
    return f"In {compared} it was better in {one.wins:,} and worse in {one.losses:,}."


def pilot_result(ledger: LedgerReader, sidecar: Sidecar) -> PilotResult | None:
    """The result of a job's pilot; None if there was none."""
    recorded = ledger.meta("pilot")
    if recorded is None:
        return None
    tried = tuple(_tried(one) for one in recorded["tried"])
    total = sum(ledger.counts().values())
    anchored = any(form.anchored for one in tried if (form := form_named(one.form)))
    seconds = ledger.requests(PILOT_KINDS, samples="all" if anchored else "none").seconds
    everything = ledger.all_requests().seconds
    allowed = pilot_asks(sidecar, total)
    blocks = blocks_of(total, allowed, sidecar.options.seed) if allowed else ()
    return PilotResult(
        form=recorded["form"],
        why=recorded["why"],
        asked=recorded["asked"],
        asked_share=round(recorded["asked"] / max(1, total), 4),
        allowed=allowed,
        all_rows_asked=len(ledger.trial_answers(ISOLATED)) >= len(blocks) * min(BLOCK, total),
        seconds=round(seconds, 3),
        time_share=round(seconds / everything, 4) if everything else None,
        tried=tried,
    )


def _tried(recorded: Mapping[str, Any]) -> TriedForm:
    """A tried form in the ledger; an earlier version recorded fewer values."""
    return TriedForm(**{one.name: recorded.get(one.name, 0) for one in fields(TriedForm)})


def used_rows(ledger: LedgerReader) -> set[int]:
    """Ordinals of the rows whose known answers helped to choose the form of the prompt."""
    return ledger.chosen_with((ISOLATED, *_FORM_NAMES))


def why_no_pilot(ledger: LedgerReader, sidecar: Sidecar) -> str:
    """Why a job had no pilot."""
    isolated = "each row was asked in isolation"
    if sidecar.mode == "isolated":
        return "the sidecar says `mode: isolated`"
    if sidecar.trim.strategy != "auto":
        return f"the sidecar says `strategy: {sidecar.trim.strategy}`"
    if ledger.meta("own_requests", False):
        return f"the rows bring their own model or request; {isolated}"
    if sidecar.gold is None:
        if ledger.meta("pilot_done"):
            return f"an earlier version began a pilot without `gold`, which no longer exists; {isolated}"
        return f"a pilot needs known answers (`gold`); {isolated}"
    if sidecar.trim.pilot == 0:
        return f"the sidecar says `pilot: 0`; {isolated}"
    if not pilot_asks(sidecar, sum(ledger.counts().values())):
        return (
            f"the job has fewer than {PILOT_ROWS:,} rows, so each row was isolated. `trim: {{pilot: N}}` "
            "forces a pilot"
        )
    return "the job ended before the pilot did"
