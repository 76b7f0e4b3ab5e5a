"""Builds the metrics of a job from its ledger and from the counts of its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from spoolama import __version__
from spoolama.job.plan import Plan
from spoolama.job.sidecar import EVERY, Sidecar
from spoolama.publish.agreement import LEAST_ALONG
from spoolama.publish.audit_report import audit_result, why_no_audit
from spoolama.publish.metrics import GB, EndedEarly, ExternalChanges, MemoryUse, Metrics, SecondPass, TrimPlan
from spoolama.publish.pilot_report import PILOT_KINDS, pilot_result, why_no_pilot
from spoolama.publish.result_counts import ResultCounts
from spoolama.spool.ledger_reader import LedgerReader, Requests, Totals


def job_metrics(
    ledger: LedgerReader, counts: ResultCounts, sidecar: Sidecar, *, ended_early: Mapping[str, Any] | None
) -> Metrics:
    """The metrics of a job that has ended.

    Args:
        ledger: The job's ledger.
        counts: The counts of its results.
        sidecar: Its sidecar.
        ended_early: Why it ended before its last row (`code`, `message`, `fix`); None: it did not.
    """
    totals, plans, seconds = ledger.totals(), ledger.plans(), ledger.meta("active_s")
    used = ledger.last_plan()  # the newest plan may have come too late for any row
    plan = next((p for p in plans if p["version"] == used), plans[0] if plans else None)
    model: Mapping[str, Any] = ledger.meta("model") or {}
    server: Mapping[str, Any] = model.get("server") or {}
    memory = _memory(ledger)
    watch: Sequence[Mapping[str, Any]] = ledger.meta("watch") or ()
    pilot = pilot_result(ledger, sidecar)
    trimmed = Plan.from_json(plan) if plan is not None and sidecar.mode == "conversation" else None
    metrics = replace(
        counts.metrics(),
        job=str(ledger.meta("job", "")),
        spoolama=__version__,
        data_name=ledger.meta("data_name"),
        data_sha256=ledger.meta("data_sha256"),
        sidecar_name=ledger.meta("sidecar_name"),
        sidecar_sha256=ledger.meta("sidecar_sha256"),
        sidecar=sidecar.model_dump(mode="json", exclude_unset=True),
        input_format=ledger.meta("input_format"),
        max_cell_bytes=ledger.meta("max_cell_bytes"),
        ended_early=EndedEarly(**ended_early) if ended_early else None,
        started_at=ledger.meta("started_at"),
        ended_at=ledger.meta("ended_at"),
        runs=ledger.meta("runs"),
        segments=counts.segments,
        attempts=totals.attempts,
        retries=totals.retries,
        prompt_tokens=totals.prompt_tokens,
        cached_tokens=totals.cached_tokens,
        completion_tokens=totals.completion_tokens,
        evaluated_tokens=counts.both_prompt - counts.both_cached if counts.both_rows else None,
        cache_hit_rate=counts.both_cached / counts.both_prompt if counts.both_prompt else None,
        cached_tokens_estimated=ledger.estimated_cached(),
        token_bound=ledger.token_bound(),
        context_current=counts.last_context,
        context_peak=counts.peak_context,
        context_limit=model.get("num_ctx") or sidecar.options.num_ctx,
        visible_rows_peak=counts.visible_rows_peak,
        isolated=trimmed is None or all(p["every"] == 1 and not p["anchors"] for p in plans),
        trim=None if trimmed is None else _trim(trimmed, sidecar),
        trim_count=totals.trims,
        anchors=(tuple(n + 1 for n in trimmed.anchors) or None) if trimmed else None,
        logprobs=ledger.logprobs() if trimmed is not None and trimmed.score == "uncertain" else None,
        plan_versions=len(plans),
        plans=tuple(plans),
        retired_settings=_retired(ledger.meta("retired") or (), plans) or None,
        second_pass=SecondPass(**long) if (long := ledger.second_pass(sidecar.options.num_ctx)) else None,
        primer=tuple({"num_ctx": load["num_ctx"], **load["primer"]} for load in watch) or None,
        external_changes=_external_changes(watch),
        active_s=seconds,
        server_wait_s=ledger.meta("waited_s"),
        memory_pause_s=ledger.meta("held_s"),
        intake_s=ledger.meta("intake_s"),
        rows_per_second=counts.asked / seconds if seconds else None,
        tokens_per_second=(totals.completion_tokens / seconds)
        if seconds and totals.completion_tokens is not None
        else None,
        prompt_eval_s=totals.prompt_s or None,
        answer_eval_s=totals.eval_s or None,
        latency_p50_s=ledger.percentile("latency_s", 0.5),
        latency_p90_s=ledger.percentile("latency_s", 0.9),
        latency_p99_s=ledger.percentile("latency_s", 0.99),
        latency_max_s=counts.max_latency_s,
        reloads=totals.reloads,
        lanes=ledger.meta("lanes"),
        extra_requests=_extra_requests(ledger, sidecar) or None,
        backend=ledger.meta("backend"),
        model=model.get("name"),
        model_digest=model.get("digest"),
        server=server.get("kind"),
        server_version=server.get("version"),
        model_load_s=model.get("load_s"),
        model_bytes=model.get("size_bytes"),
        model_vram_bytes=model.get("vram_bytes"),
        peak_vram_gb=None if memory is None or memory.peak_bytes is None else memory.peak_bytes / GB,
        mean_vram_gb=None if memory is None or memory.mean_bytes is None else memory.mean_bytes / GB,
        memory=memory,
        loads=tuple(loads) if (loads := ledger.meta("loads")) is not None else None,
        pilot=pilot,
        audit=audit_result(ledger, sidecar, chosen_by_gold=pilot is not None and pilot.why == "better"),
    )
    return replace(metrics, notes=_notes(metrics, ledger, counts, totals, sidecar))


def _notes(
    metrics: Metrics, ledger: LedgerReader, counts: ResultCounts, totals: Totals, sidecar: Sidecar
) -> dict[str, str]:
    """What the definitions cannot say: why values are null in this job, and how some were measured."""
    answered = counts.by_status["ok"]
    isolated = "rows were isolated (`mode: isolated`)"
    null: dict[str, str] = {
        "pilot": why_no_pilot(ledger, sidecar),
        "audit": why_no_audit(ledger, sidecar),
        "agreement_along_job": _why_no_thirds(metrics),
        "cached_tokens_estimated": "the server counts them"
        if totals.cached_rows
        else "no request ran alone right after a load, so the speed without a cache is unknown",
    }
    if not answered:
        tokens = ("prompt_tokens", "cached_tokens", "completion_tokens", "evaluated_tokens", "cache_hit_rate")
        null |= dict.fromkeys((*tokens, "context_current", "context_peak"), "no row was answered")
    if sidecar.mode == "isolated":
        null |= dict.fromkeys(("trim", "anchors", "logprobs"), isolated)
    elif ledger.meta("anchored") == []:
        null["anchors"] = "no candidate was answered and fits into half of the room for prompts"
    if sidecar.long_rows != "second_pass":
        null |= {"second_pass": "the sidecar does not ask for a second pass"}
    if metrics.memory is not None and metrics.memory.unreadable:
        null |= dict.fromkeys(("peak_vram_gb", "mean_vram_gb"), metrics.memory.unreadable)
    measured = {
        name: f"tokens: sum of the server's counts over {rows:,} of {answered:,} answered rows"
        for name, rows in (
            ("prompt_tokens", totals.prompt_rows),
            ("cached_tokens", totals.cached_rows),
            ("completion_tokens", totals.completion_rows),
        )
    }
    both = f"over the {counts.both_rows:,} rows for which the server counted both"
    measured["evaluated_tokens"] = f"tokens: prompt tokens minus cached tokens, {both}"
    measured["cache_hit_rate"] = f"share: cached tokens / prompt tokens, {both}"
    if not (ledger.meta("model") or {}).get("num_ctx"):
        measured["context_limit"] = (
            "tokens: num_ctx of the sidecar, because the server does not report its window"
        )
    return {
        **{name: why for name, why in null.items() if getattr(metrics, name) is None},
        **{name: how for name, how in measured.items() if getattr(metrics, name) is not None},
    }


def _why_no_thirds(metrics: Metrics) -> str:
    if metrics.agreement is None:
        return "the sidecar has no `gold`"
    if metrics.agreement.kind == "none":
        return "the answers cannot be compared with gold"
    return f"fewer than {LEAST_ALONG} rows were compared"


def _trim(plan: Plan, sidecar: Sidecar) -> TrimPlan:
    own = {one.name: getattr(plan, one.name) for one in fields(TrimPlan) if one.name != "asked"}
    return TrimPlan(asked=sidecar.trim.strategy, **own)


def _memory(ledger: LedgerReader) -> MemoryUse | None:
    recorded: Mapping[str, Any] = ledger.meta("memory") or {}
    names = {one.name for one in fields(MemoryUse)}
    known = {key: value for key, value in recorded.items() if key in names}
    return MemoryUse(**{**known, "events": tuple(known.get("events", ()))}) if recorded else None


def _external_changes(watch: Sequence[Mapping[str, Any]]) -> ExternalChanges | None:
    if not watch:
        return None
    counts: Counter[str] = Counter()
    for load in watch:
        counts.update(load["external_changes"]["counts"])
    return ExternalChanges(
        dict(counts), tuple(each for load in watch for each in load["external_changes"]["first"])
    )


def _extra_requests(ledger: LedgerReader, sidecar: Sidecar) -> dict[str, Requests]:
    """Answers that are not in the results, by purpose."""
    pilot = sidecar.trim.strategy == "auto"  # then the candidates for anchors are part of its cost
    parts = {
        "pilot": ledger.requests(PILOT_KINDS, samples="unused" if pilot else "none"),
        "anchor_candidates": ledger.requests((), samples="none" if pilot else "unused"),
        "audit": ledger.requests(("audit", "audit-again", "odd", "odd-again")),
        "withdrawn": ledger.withdrawn(),
    }
    return {
        name: replace(part, seconds=round(part.seconds, 3)) for name, part in parts.items() if part.answers
    }


def _retired(keys: Sequence[str], plans: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A sentence for each setting that no longer exists."""
    found = []
    if "trim.every" in keys:
        learned = [p["every"] for p in plans if p["strategy"] == plans[0]["strategy"] and p["every"] != EVERY]
        rows, why = (learned[-1], "as an earlier version learned") if learned else (EVERY, "the default")
        found.append(
            f"The setting `every: auto` no longer exists: this job trimmed every {rows} rows, {why}."
        )
    if "on_collapse" in keys:
        found.append("The setting `on_collapse` is now `on_harm`, and its value `redo` is now `isolate`.")
    if "trim.pilot" in keys:
        found.append("A pilot now needs `gold`: unless it had ended, rows are asked in isolation.")
    return tuple(found)
