"""What stood before the rows and what it did to the answers, in sentences, for summary and analyze."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spoolama.report.audit import NOTHING_TO_AUDIT
from spoolama.report.conduct import trim_sentence

__all__ = ["effect_sentences", "stood_alone"]


def effect_sentences(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and sentence of trims, pilot, guard and audit: what they found, or why there was none of them.

    Args:
        m: metrics.json; of a merged job or an earlier version it may lack some of them.
    """
    found: list[tuple[str, str]] = []
    if (sentence := trim_sentence(m)) and not _alone_by_choice(m):
        found.append(("Trims", sentence))
    for name in ("pilot", "guard", "audit"):
        value = m.get(name)
        if value is not None:
            found.append((name.capitalize(), value["sentence"]))
            continue
        why = (m.get("how") or {}).get(name, "").removeprefix("null: ")
        # Where no row saw another there is nothing to say, unless somebody asked for it.
        if why and (name == "pilot" or m.get("guard") is not None or why.endswith(NOTHING_TO_AUDIT)):
            found.append((name.capitalize(), f"None: {why}." if name == "pilot" else f"{_capital(why)}."))
    return found


def stood_alone(m: Mapping[str, Any]) -> bool:
    """Whether every row was asked alone, from the first one to the last, whoever decided that."""
    if not m.get("trim"):
        return True
    return all(plan["every"] == 1 and not plan["anchors"] for plan in m["plans"])


def _alone_by_choice(m: Mapping[str, Any]) -> bool:
    """Whether rows stood alone since nothing else was chosen: the line of the pilot says that."""
    trim = m["trim"]
    return bool(trim and trim["asked"] == "auto" and trim["every"] == 1 and not m["anchors"])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
