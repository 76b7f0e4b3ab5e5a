"""metrics.json: what a job did and cost, and beside every number how it was measured.

A number that nobody measured is null, and its `how` says why. The one estimate has it in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from spoolama import __version__
from spoolama.job.sidecar import Sidecar
from spoolama.publish.agreement import LEAST_ALONG, Agreement, Spread
from spoolama.publish.audit import audit_metrics
from spoolama.publish.conversation_metrics import conduct_metrics
from spoolama.publish.extra_requests import besides_metrics
from spoolama.publish.memory import memory_metrics
from spoolama.publish.pilot import pilot_metrics
from spoolama.publish.result_counts import ResultCounts
from spoolama.spool.ledger_reader import LedgerReader, Totals

__all__ = ["Metrics", "job_metrics"]

_ROUND = 6


@dataclass
class Metrics:
    """Values by name, and by the same names how each was measured."""

    values: dict[str, Any] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: Any, how: str, *, missing: str = "") -> None:
        """Add a value; `missing` is said in place of `how` where it is null."""
        if isinstance(value, float):
            value = round(value, _ROUND)
        self.values[name] = value
        self.how[name] = how if value is not None or not missing else f"null: {missing}"

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {**self.values, "how": self.how}


def job_metrics(
    ledger: LedgerReader,
    tally: ResultCounts,
    agreement: Agreement | None,
    *,
    sidecar: Sidecar,
    ended_early: Mapping[str, Any] | None,
) -> Metrics:
    """The metrics of a job that has ended.

    Args:
        ledger: The job's ledger.
        tally: What was counted of the same rows.
        agreement: How the answers agree with gold, where the sidecar names it.
        sidecar: What was asked.
        ended_early: Why the job ended before its last row; None: it did not.
    """
    metrics = Metrics()
    totals = ledger.totals()
    _identity(metrics, ledger, sidecar, ended_early)
    _rows(metrics, tally, totals)
    _tokens(metrics, tally, totals)
    _context(metrics, ledger, tally, totals, sidecar.options.num_ctx)
    conduct_metrics(metrics.put, ledger, sidecar)
    _speed(metrics, ledger, tally, totals)
    besides_metrics(metrics.put, ledger, sidecar)
    _model(metrics, ledger)
    _answers(metrics, tally.answers.spread(), agreement)
    _effect(metrics, ledger, tally, agreement, sidecar)
    return metrics


def _identity(
    metrics: Metrics, ledger: LedgerReader, sidecar: Sidecar, ended_early: Mapping[str, Any] | None
) -> None:
    put = metrics.put
    put("job", ledger.meta("job"), "the job's name, given when its files were claimed")
    put("spoolama", __version__, "the version that wrote these files")
    for name, what in (("data", "data file"), ("sidecar", "sidecar")):
        absent = f"the job has no {what} of its own"
        put(
            f"{name}_name",
            ledger.meta(f"{name}_name"),
            f"the {what}'s name as it was dropped",
            missing=absent,
        )
        put(
            f"{name}_sha256",
            ledger.meta(f"{name}_sha256"),
            f"sha256 of the {what} as uploaded",
            missing=absent,
        )
    asked = sidecar.model_dump(mode="json", exclude_unset=True)
    put("sidecar", asked, "the sidecar as it was used; keys that are absent had their defaults")
    put("input_format", ledger.meta("input_format"), "by the data file's name and its first readable line")
    put(
        "max_cell_bytes",
        ledger.meta("max_cell_bytes"),
        "the service's setting by which the data was read",
        missing="not noted in the job's ledger",
    )
    put(
        "ended_early",
        dict(ended_early) if ended_early else None,
        "why the job ended before its last row",
        missing="the job did not end early",
    )
    unknown = "not noted in the job's ledger"
    put("started_at", ledger.meta("started_at"), "seconds since 1970 (UTC), first answering", missing=unknown)
    put("ended_at", ledger.meta("ended_at"), "seconds since 1970 (UTC), end of answering", missing=unknown)
    put("runs", ledger.meta("runs"), "how many times a service took the job up", missing=unknown)


def _rows(metrics: Metrics, tally: ResultCounts, totals: Totals) -> None:
    put, by = metrics.put, tally.by_status
    put("total", tally.rows, "records of the data file, counted as they were written to the results")
    put("completed", by["ok"], "rows with an answer that passed every check, counted as written")
    put("failed", by["failed"], "rows that ended with an error, counted as written")
    put("skipped", by["skipped"], "rows never tried (cancelled, or the job ended early), counted as written")
    put("errors", tally.failures, "failed rows by class, counted as written")
    put(
        "attempts",
        totals.attempts,
        "requests sent for what stands in the results, from the ledger; see `besides`",
    )
    put("retries", totals.retries, "requests beyond each row's first, of those in `attempts`")
    put("segments", tally.segments, "different segments that have an answered row")


def _tokens(metrics: Metrics, tally: ResultCounts, totals: Totals) -> None:
    put, answered = metrics.put, tally.by_status["ok"]

    def counted(rows: int) -> str:
        return (
            f"sum of the server's counts over {rows} of {answered} answered rows; failed tries are not"
            " included, nor are the answers of `besides`"
        )

    no_count = "the server gave no such count" if answered else "no row was answered"
    put("prompt_tokens", totals.prompt_tokens, counted(totals.prompt_rows), missing=no_count)
    put("cached_tokens", totals.cached_tokens, counted(totals.cached_rows), missing=no_count)
    put("completion_tokens", totals.completion_tokens, counted(totals.completion_rows), missing=no_count)
    both = f"over the {tally.both_rows} rows of which the server counted both prompt and cached tokens"
    evaluated = tally.both_prompt - tally.both_cached if tally.both_rows else None
    put("evaluated_tokens", evaluated, f"prompt tokens less cached ones, {both}", missing=no_count)
    rate = tally.both_cached / tally.both_prompt if tally.both_prompt else None
    put("cache_hit_rate", rate, f"cached tokens / prompt tokens, {both}", missing=no_count)


def _context(metrics: Metrics, ledger: LedgerReader, tally: ResultCounts, totals: Totals, limit: int) -> None:
    put = metrics.put
    no_count = "the server counted no row's tokens" if tally.by_status["ok"] else "no row was answered"
    tokens = "the server's counts of prompt and answer tokens together"
    put("context_current", tally.last_context, f"{tokens}, of the row answered last", missing=no_count)
    put("context_peak", tally.peak_context, f"{tokens}, the most of any answered row", missing=no_count)
    loaded = (ledger.meta("model") or {}).get("num_ctx")
    if loaded is not None:
        put("context_limit", loaded, "window of one slot in tokens, as the server reported the loaded model")
    else:
        put("context_limit", limit, "the sidecar's num_ctx; the server does not report its window")
    put("sight_peak", tally.sight_peak, "rows in sight of which a row was answered, the most of any")
    put(
        "trim_count",
        totals.trims,
        "answered rows before which earlier rows were dropped from the conversation, from the ledger",
    )
    put("plan_versions", len(plans := ledger.plans()), "numbered versions of the plan in the ledger")
    put("plans", plans, "the plan's versions as they were in force")


def _speed(metrics: Metrics, ledger: LedgerReader, tally: ResultCounts, totals: Totals) -> None:
    put = metrics.put
    active = ledger.meta("active_s")
    unknown = "the time of answering is not in the ledger"
    put(
        "active_s",
        active,
        "seconds of answering by the machine's monotonic clock, over all times the job was taken up, for"
        " answers of `besides` too",
        missing=unknown,
    )
    waited = ledger.meta("waited_s")
    put(
        "waited_s",
        waited,
        "seconds in which the job stood still because the server did not answer; not in active_s",
        missing="not noted",
    )
    put(
        "held_s",
        ledger.meta("held_s"),
        "seconds in which rows were paused since memory was short; not in active_s. A wait before the first"
        " load is not in it",
        missing="not noted",
    )
    put("intake_s", ledger.meta("intake_s"), "seconds of reading the data file", missing="not noted")
    speed = tally.asked / active if active else None
    put(
        "rows_per_second",
        speed,
        "rows that were asked and ended (completed or failed) / active_s; unreadable rows do not count, nor"
        " do the answers of `besides`",
        missing=unknown,
    )
    tokens = totals.completion_tokens
    put(
        "tokens_per_second",
        tokens / active if active and tokens is not None else None,
        "completion_tokens / active_s; those of `besides` do not count",
        missing=unknown if not active else "the server gave no count of answer tokens",
    )
    put(
        "prompt_eval_s",
        totals.prompt_s or None,
        "sum of the server's own times, of answers in the results",
        missing="the server gave none",
    )
    put(
        "answer_eval_s",
        totals.eval_s or None,
        "sum of the server's own times, of answers in the results",
        missing="the server gave none",
    )
    for q in (0.5, 0.9, 0.99):
        put(
            f"latency_p{q * 100:.0f}_s",
            ledger.percentile("latency_s", q),
            "seconds from sending a row's last request to its answer, by our clock; nearest rank",
            missing="no row was answered",
        )
    put("latency_max_s", tally.max_latency_s, "the longest of them", missing="no row was answered")
    put("eta_s", None, "seconds to the end", missing="the job has ended")
    put("reloads", totals.reloads, "replies that waited over 0.1 s for the model, but for the first of all")
    put("lanes", ledger.meta("lanes"), "requests that were sent at once at most", missing="not noted")


def _model(metrics: Metrics, ledger: LedgerReader) -> None:
    put = metrics.put
    model: Mapping[str, Any] = ledger.meta("model") or {}
    server: Mapping[str, Any] = model.get("server") or {}
    silent = "the model was never loaded" if not model else "the server does not say"
    put("backend", ledger.meta("backend"), "the service's setting", missing="not noted")
    put("model", model.get("name"), "as the server names the loaded model", missing=silent)
    put("model_digest", model.get("digest"), "what identifies the weights, by the server", missing=silent)
    put("server", server.get("kind"), "which kind of server answered", missing=silent)
    put("server_version", server.get("version"), "as the server reports it", missing=silent)
    put("model_load_s", model.get("load_s"), "seconds the model took to load, as reported", missing=silent)
    put(
        "model_bytes",
        model.get("size_bytes"),
        "memory of the loaded model, as the server reports it",
        missing=silent,
    )
    put("model_vram_bytes", model.get("vram_bytes"), "the part of it on the GPU, as reported", missing=silent)
    memory_metrics(put, ledger)


def _answers(metrics: Metrics, spread: Spread, agreement: Agreement | None) -> None:
    metrics.put(
        "answers",
        spread.to_json(),
        "answers (with `format`: the compared key) of completed rows, counted; `never`: labels of the schema"
        " that no row was answered",
    )
    metrics.put(
        "agreement",
        None if agreement is None else agreement.to_json(),
        "completed rows against the sidecar's gold column; each measure has its own `how`",
        missing="the sidecar names no gold column",
    )


def _effect(
    metrics: Metrics, ledger: LedgerReader, tally: ResultCounts, agreement: Agreement | None, sidecar: Sidecar
) -> None:
    """What the conversation did to the answers."""
    thirds = tally.answers.along_job()
    if agreement is None:
        why = "the sidecar names no gold column"
    elif agreement.kind == "none":
        why = "the answers cannot be compared with gold"
    else:
        why = f"under {LEAST_ALONG} rows can be compared"
    metrics.put(
        "agreement_along_job",
        [asdict(third) for third in thirds] or None,
        "`agreement` in thirds of the rows that can be compared, in the order of the file: accuracy, or rank"
        " correlation, with its 95 % interval as there, or why it is undefined; `first` and `last` are row"
        " numbers from 1",
        missing=why,
    )
    pilot_metrics(metrics.put, ledger, sidecar)
    audit_metrics(metrics.put, ledger, sidecar, metrics.values["pilot"])
