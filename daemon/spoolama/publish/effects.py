"""What stood before the rows and what it did to the answers, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spoolama.publish.audit import NOTHING_TO_AUDIT
from spoolama.publish.conversation_metrics import trim_sentence

__all__ = ["effect_sentences", "harm_in_short", "stood_alone", "warnings_of"]

_AUDITS = ("audit", "guard")
"""Sections of metrics.json that may warn of harm; `guard` of jobs that an earlier version published."""


def warnings_of(m: Mapping[str, Any]) -> list[str]:
    """What was found wrong with the answers, and what to do.

    Args:
        m: metrics.json.
    """
    return _found(m, "warning")


def harm_in_short(m: Mapping[str, Any]) -> str | None:
    """The same in a few words, for status and log; None: nothing was found.

    Args:
        m: metrics.json.
    """
    found = _found(m, "warning_in_short")
    return f"Warning: {'; '.join(found)}; see summary.txt" if found else None


def _found(m: Mapping[str, Any], key: str) -> list[str]:
    return [text for name in _AUDITS if (text := (m.get(name) or {}).get(key))]


def effect_sentences(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and sentence of trims, pilot and audit: what they found, or why there was none of them.

    Args:
        m: metrics.json; of a merged job or an earlier version it may lack some of them.
    """
    found: list[tuple[str, str]] = []
    if (sentence := trim_sentence(m)) and not _alone_by_choice(m):
        found.append(("Trims", sentence))
    for name in ("pilot", *_AUDITS):
        value = m.get(name)
        if value is not None:
            found.append((name.capitalize(), value["sentence"]))
            continue
        why = (m.get("how") or {}).get(name, "").removeprefix("null: ")
        # Where no row saw another there is nothing to say, unless somebody asked for it.
        if name == "pilot" and why:
            found.append(("Pilot", f"None: {why}."))
        elif (
            name == "audit"
            and why
            and (why.endswith(NOTHING_TO_AUDIT) or (m.get("trim") and m.get("sight_peak")))
        ):
            found.append(("Audit", f"{why[:1].upper()}{why[1:]}."))
    return found


def stood_alone(m: Mapping[str, Any]) -> bool:
    """Whether every row was asked in isolation, from the first one to the last, whoever decided that."""
    if not m.get("trim"):
        return True
    return all(plan["every"] == 1 and not plan["anchors"] for plan in m["plans"])


def _alone_by_choice(m: Mapping[str, Any]) -> bool:
    """Whether rows were asked in isolation since nothing else was chosen: the line of the pilot says that."""
    trim = m["trim"]
    return bool(trim and trim["asked"] == "auto" and trim["every"] == 1 and not m["anchors"])
