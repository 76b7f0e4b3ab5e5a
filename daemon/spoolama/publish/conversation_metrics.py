"""What metrics.json says of how conversations were kept: trims, anchors, primer, surprises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spoolama.job.sidecar import EVERY, Sidecar
from spoolama.spool.ledger_reader import LedgerReader

__all__ = ["conduct_metrics", "server_sentences", "trim_sentence"]

Put = Callable[..., None]


def conduct_metrics(put: Put, ledger: LedgerReader, sidecar: Sidecar) -> None:
    """Add these metrics.

    Args:
        put: Takes name, value, how it was measured and, as `missing`, why there is none.
        ledger: The job's ledger.
        sidecar: What was asked.
    """
    plans = ledger.plans()
    # Not the newest there is: that one may have come too late for any row.
    used = ledger.last_plan()
    newest: Mapping[str, Any] = next((p for p in plans if p["version"] == used), plans[0] if plans else {})
    conversation = sidecar.mode == "conversation"
    alone = "" if conversation else "rows were asked alone"
    keys = ("strategy", "every", "keep", "important", "tokens", "high", "low", "gold", "score")
    put(
        "trim",
        {**{key: newest[key] for key in keys}, "asked": sidecar.trim.strategy}
        if newest and conversation
        else None,
        "the newest plan that a row was asked under; `asked`: the sidecar's strategy",
        missing=alone or "no plan was made",
    )
    put(
        "logprobs",
        ledger.logprobs() if newest.get("score") == "uncertain" and conversation else None,
        "answers whose log probability the server told",
        missing=alone or "the strategy needs none",
    )
    anchors = list(newest.get("anchors", ()))
    put(
        "anchors",
        [ordinal + 1 for ordinal in anchors] or None,
        "row numbers from 1 that stand behind the prefix of every prompt, in their order there; they were "
        "answered alone, and stand in the results with those answers",
        missing=alone
        or (
            "none of the rows that were to be anchors could be answered, or fits half of the room for prompts"
            if ledger.meta("anchored") == []
            else "the strategy has none"
        ),
    )
    put(
        "retired_settings",
        _retired(ledger.meta("retired") or [], plans),
        "settings of the sidecar that spoolama had when the job began and no longer has, and what the job "
        "had in their place",
        missing="the sidecar has none",
    )
    watch = ledger.meta("watch") or []
    put(
        "primer",
        [{"num_ctx": load["num_ctx"], **load["primer"]} for load in watch] or None,
        "one entry for each load: requests of the bare shared prefix, the server's counts of them, and "
        "medians over 4 branching prompts without and 4 with it",
        missing="no model was loaded",
    )
    counts: dict[str, int] = {}
    for load in watch:
        for kind, times in load["surprises"]["counts"].items():
            counts[kind] = counts.get(kind, 0) + times
    first = [entry for load in watch for entry in load["surprises"]["first"]]
    put(
        "surprises",
        {"counts": counts, "first": first} if watch else None,
        "what happened to the loaded model without our asking, by the server's load times and its list of "
        "loaded models; `ordinal` is the row from 0 at which it was noticed",
        missing="no model was loaded",
    )
    put(
        "second_pass",
        ledger.second_pass(sidecar.options.num_ctx),
        "rows answered in a window larger than num_ctx, and the largest of these windows",
        missing="no row needed it" if sidecar.long_rows == "second_pass" else "the sidecar asks for none",
    )
    put(
        "token_bound",
        ledger.token_bound(),
        "upper bound of tokens a byte before a text is counted, against the server's counts of rows whose "
        "own tokens two counts told: `over` is bound / count on average, `exceeded` rows that had more",
        missing="no row's own tokens are known",
    )
    estimate = ledger.estimated_cached()
    put(
        "cached_tokens_estimated",
        estimate,
        "an estimate: prompt tokens less seconds of evaluation times the rate of requests that came first "
        "after a load; only of rows that ran while no other did",
        missing="the server counts them itself"
        if ledger.totals().cached_rows
        else "no request ran alone right after a load, so there is no rate to go by",
    )


def _retired(keys: Sequence[str], plans: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """A sentence for each of these settings."""
    found = []
    if "trim.every" in keys:
        rows = plans[-1]["every"] if plans else EVERY
        why = "the default" if not plans or rows == plans[0]["every"] else "as an earlier version learned"
        found.append(
            f"The setting `every: auto` no longer exists: this job trimmed every {rows} rows, {why}."
        )
    if "on_collapse" in keys:
        found.append("The setting `on_collapse` is called `on_harm` now, and `redo` is called `isolate`.")
    if "trim.pilot" in keys:
        found.append("A pilot needs `gold` now: unless it had decided, rows are asked in isolation.")
    return found or None


def trim_sentence(m: Mapping[str, Any]) -> str | None:
    """What stood before a row, in words; None: rows were asked alone."""
    trim = m.get("trim")
    if not trim:
        return None
    every, anchors = trim["every"], m.get("anchors")
    parts = [f"strategy {'auto' if trim.get('asked') == 'auto' else trim['strategy']}"]
    if anchors:
        gold = ", with their known answers" if trim["gold"] else ""
        parts.append(f"the same {len(anchors)} rows before all others{gold}")
    if trim["keep"]:
        parts.append(f"{trim['keep']} rows kept at a trim")
    if trim["important"]:
        parts.append(f"{trim['important']} of them by their score")
    if trim["tokens"]:
        parts.append(f"at most {trim['tokens']:,} tokens of earlier rows")
    if every == 1:
        parts.append("each row alone behind them" if anchors else "each row alone")
    elif every:
        parts.append(f"a trim every {every} rows")
    if (peak := m.get("sight_peak")) and (anchors or every != 1):  # else harm ended the conversations
        parts.append(
            f"each row saw up to {peak:,} {'other' if anchors else 'earlier one'}{'s' * (peak != 1)}"
        )
    if trim.get("score") == "uncertain" and not m.get("logprobs"):
        parts.append("the server told no log probabilities, so `uncertain` chose the latest rows")
    return "; ".join(parts)


def server_sentences(m: Mapping[str, Any]) -> list[str]:
    """What others did to the server, and what was done about long rows."""
    found: list[str] = []
    for kind, times in ((m.get("surprises") or {}).get("counts") or {}).items():
        said = [e["message"] for e in m["surprises"]["first"] if e["kind"] == kind]
        found.append(f"{times} × {kind}" + (f": {said[0]}" if said else ""))
    if second := m.get("second_pass"):
        found.append(f"{second['rows']} long rows answered in a window of {second['num_ctx']:,} tokens")
    return found
