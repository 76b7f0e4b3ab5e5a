"""What a job cost besides its results: answers given for comparison, and answers that were taken back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from spoolama.compare.pilot import FORMS, ISOLATED
from spoolama.job.sidecar import Sidecar
from spoolama.spool.ledger_read import LedgerReader

__all__ = ["besides_metrics", "besides_tokens", "besides_words"]

Put = Callable[..., None]

_WORDS = {"anchors": "candidates for anchors", "taken_back": "taken back because of harm"}
_HOW = (
    "answers that do not stand in the results, from the ledger: given for comparison by pilot and audit, by"
    " candidates for `anchors`, or `taken_back` because of harm. `attempts`: requests sent for them."
    " Requests for comparison that gave no answer, or were repeated after a restart, leave no trace: how"
    " many they were is unknown. `seconds`: from sending to the answer, added up; those of several lanes"
    " overlap. Tokens: sums of the server's counts, null where it did not count each answer. Their time is"
    " in active_s; no other number of speed, tokens and attempts has them"
)


def besides_metrics(put: Put, ledger: LedgerReader, sidecar: Sidecar) -> None:
    """Add `besides`.

    Args:
        put: Takes name, value, how it was measured and, as `missing`, why there is none.
        ledger: The job's ledger.
        sidecar: What was asked.
    """
    # Where the pilot has candidates for anchors answered, they are part of what it took.
    pilot = sidecar.trim.strategy == "auto"
    parts = {
        "pilot": ledger.requests(
            (ISOLATED, "again", *(f.name for f in FORMS)), samples="unused" if pilot else "none"
        ),
        "anchors": ledger.requests((), samples="none" if pilot else "unused"),
        "audit": ledger.requests(("audit", "audit-again", "odd", "odd-again")),
        "taken_back": ledger.taken_back(),
    }
    found = {name: asdict(part) for name, part in parts.items() if part.answers}
    for part in found.values():
        part["seconds"] = round(part["seconds"], 3)
    put("besides", found or None, _HOW, missing="every answer that was given stands in the results")


def besides_words(m: Mapping[str, Any]) -> str | None:
    """`147 answers that are not in the results (pilot 118, audit 29)`; None: there are none.

    Args:
        m: metrics.json.
    """
    parts = m.get("besides")
    if not parts:
        return None
    each = ", ".join(f"{_WORDS.get(name, name)} {part['answers']:,}" for name, part in parts.items())
    answers = sum(part["answers"] for part in parts.values())
    return f"{answers:,} answer{'s' * (answers != 1)} not in the results ({each})"


def besides_tokens(m: Mapping[str, Any]) -> str | None:
    """`12,300 in prompts, 10,000 of them from the cache, 590 in answers`; None: nothing was answered besides.

    Args:
        m: metrics.json.
    """
    parts = m.get("besides")
    if not parts:
        return None

    def total(name: str) -> int | None:
        counts = [part[name] for part in parts.values()]
        return None if None in counts else sum(counts)

    prompt, cached, answers = (total(f"{name}_tokens") for name in ("prompt", "cached", "completion"))
    if prompt is None or answers is None:
        return "an unknown number, which the server did not count"
    hits = "" if cached is None else f", {cached:,} of them from the cache"
    return f"{prompt:,} in prompts{hits}; {answers:,} in answers"
