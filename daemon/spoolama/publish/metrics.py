"""Defines the metrics of a job: name, unit and source of each; writes and reads metrics.json.

A number that was not measured is null, and its `how` says why. An estimate has `estimated` in its name.
"""

# ruff: noqa: RUF009 - `_metric` returns a field; its calls are definitions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spoolama.publish.agreement import Agreement, AnswerDistribution, Third
from spoolama.publish.audit_report import AuditResult
from spoolama.publish.pilot_report import PilotResult
from spoolama.spool.ledger_reader import Requests

GB = 2**30
_DIGITS = 6
_NOT_RECORDED = "not recorded in the ledger of the job"
_NO_COUNT = "the server gave no such count"
_NO_ANSWER = "no row was answered"
_NOT_REPORTED = "the server does not report it, or no model was loaded"
_NOT_MERGED = "the job is not the result of a merge"


@dataclass(frozen=True, slots=True)
class EndedEarly:
    """Why a job ended before its last row."""

    code: str = ""
    message: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class TrimPlan:
    """The rules by which a conversation was trimmed; the keys are those of `trim` in the sidecar."""

    asked: str = ""
    """The strategy in the sidecar."""
    strategy: str = ""
    """The strategy that was used."""
    every: int = 0
    keep: int = 0
    important: int = 0
    tokens: int | None = None
    high: float = 0.0
    low: float = 0.0
    gold: bool = False
    """Whether the anchors have their known answers."""
    score: str | None = None


@dataclass(frozen=True, slots=True)
class ExternalChanges:
    """What other clients did to the loaded model."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Events by kind."""
    first: tuple[Mapping[str, Any], ...] = ()
    """The first events: `kind`, `message`, and `ordinal`, the row (from 0) at which it was detected."""


@dataclass(frozen=True, slots=True)
class SecondPass:
    """Long rows that were answered with a larger context window."""

    rows: int = 0
    num_ctx: int = 0
    """The largest of these windows, in tokens."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory while the job ran. Sizes are in bytes; values that were never read are None."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds at each level of memory pressure."""
    seconds_without_reading: float = 0.0
    seconds_read: float = 0.0
    unreadable: str | None = None
    """Why GPU memory could not be read."""
    peak_bytes: int | None = None
    mean_bytes: int | None = None
    total_bytes: int | None = None
    runner_rss_peak_bytes: int | None = None
    host_peak_bytes: int | None = None
    max_temperature_c: int | None = None
    throttled_seconds: Mapping[str, float] = field(default_factory=dict)
    changes: int = 0
    """Changes of the level."""
    actions: Mapping[str, int] = field(default_factory=dict)
    """Actions by name."""
    events: tuple[Mapping[str, Any], ...] = ()
    """The first 200 changes and actions."""


def _metric(unit: str, how: str, missing: str = "", *, default: Any = None) -> Any:
    """Define a metric.

    Args:
        unit: Its unit; empty for a text, a list or an object.
        how: What it means and how it is measured.
        missing: Why it is null, unless `Metrics.notes` has another reason.
        default: The value in a metrics.json that lacks it; `dict`: an empty object.
    """
    metadata = {"unit": unit, "how": how, "missing": missing}
    return field(default_factory=dict if default is dict else lambda: default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """All metrics of a published job."""

    notes: Mapping[str, str] = field(default_factory=dict)
    """By metric, in place of its definition: how it was measured in this job, or why it is null."""

    # Identity
    job: str = _metric("", "name that the job got when its files were claimed", default="")
    spoolama: str | None = _metric("", "version of spoolama that wrote these files")
    data_name: str | None = _metric("", "name of the uploaded data file", _NOT_RECORDED)
    data_sha256: str | None = _metric("", "SHA-256 of the uploaded data file", _NOT_RECORDED)
    sidecar_name: str | None = _metric(
        "", "name of the uploaded sidecar", "the job has no sidecar of its own"
    )
    sidecar_sha256: str | None = _metric(
        "", "SHA-256 of the uploaded sidecar", "the job has no sidecar of its own"
    )
    sidecar: Mapping[str, Any] = _metric(
        "", "the sidecar; keys that are absent had their defaults", default=dict
    )
    input_format: str | None = _metric("", "from the name of the data file and its first readable line")
    max_cell_bytes: int | None = _metric("bytes", "the setting when the data was read", _NOT_RECORDED)
    ended_early: EndedEarly | None = _metric(
        "", "why the job ended before its last row", "the job did not end early"
    )
    started_at: float | None = _metric("seconds since 1970, UTC", "start of answering", _NOT_RECORDED)
    ended_at: float | None = _metric("seconds since 1970, UTC", "end of answering", _NOT_RECORDED)
    runs: int | None = _metric("runs", "how often a service started or resumed the job", _NOT_RECORDED)

    # Rows
    total: int = _metric("rows", "records of the data file, counted as the results were written", default=0)
    completed: int = _metric("rows", "rows whose answer passed every check, counted as written", default=0)
    failed: int = _metric("rows", "rows that ended with an error, counted as written", default=0)
    skipped: int = _metric(
        "rows", "rows that were never asked because the job ended early, counted as written", default=0
    )
    errors: Mapping[str, int] = _metric("rows", "failed rows by error code, counted as written", default=dict)
    attempts: int | None = _metric(
        "requests", "requests for the answers and errors in the results, from the ledger"
    )
    retries: int | None = _metric(
        "requests", "those of `attempts` beyond the first of each row, from the ledger"
    )
    segments: int | None = _metric("segments", "segments with an answered row, counted as written")

    # Tokens
    prompt_tokens: int | None = _metric("tokens", "sum of the server's counts", _NO_COUNT)
    cached_tokens: int | None = _metric("tokens", "sum of the server's counts", _NO_COUNT)
    completion_tokens: int | None = _metric("tokens", "sum of the server's counts", _NO_COUNT)
    evaluated_tokens: int | None = _metric("tokens", "prompt tokens minus cached tokens", _NO_COUNT)
    cache_hit_rate: float | None = _metric("share", "cached tokens / prompt tokens", _NO_COUNT)
    cached_tokens_estimated: int | None = _metric(
        "tokens",
        "an estimate: prompt tokens minus evaluation seconds times the speed of the first requests after a "
        "load, over rows that ran while no other row did",
    )
    token_bound: Mapping[str, Any] | None = _metric(
        "",
        "upper bound for the tokens of a text, compared with the server's counts: `over` is the mean of "
        "bound / count, `exceeded` counts the rows with more tokens than the bound",
        "the server counted the tokens of no row separately",
    )

    # Context
    context_current: int | None = _metric(
        "tokens", "prompt and answer of the row that was answered last, counted by the server", _NO_COUNT
    )
    context_peak: int | None = _metric(
        "tokens", "most tokens of prompt and answer of one row, counted by the server", _NO_COUNT
    )
    context_limit: int | None = _metric(
        "tokens", "context window of one slot, as the server reports it for the loaded model"
    )
    visible_rows_peak: int | None = _metric("rows", "most other rows in the prompt of one answered row")
    isolated: bool = _metric("", "whether the plans isolate every row of the job", default=False)
    trim: TrimPlan | None = _metric(
        "",
        "the newest plan with which a row was asked; `asked` is the strategy in the sidecar",
        "no plan was made",
    )
    trim_count: int | None = _metric(
        "rows", "answered rows before which the conversation was trimmed, from the ledger"
    )
    anchors: tuple[int, ...] | None = _metric(
        "",
        "row numbers from 1 of the anchors, in the order in which they are in every prompt; their answers in "
        "isolation are in the results",
        "the strategy has no anchors",
    )
    logprobs: int | None = _metric(
        "answers",
        "answers for which the server returned a log probability",
        "the strategy does not need them",
    )
    plan_versions: int | None = _metric("plans", "numbered versions of the plan in the ledger")
    plans: tuple[Mapping[str, Any], ...] | None = _metric("", "the versions of the plan, from the ledger")
    retired_settings: tuple[str, ...] | None = _metric(
        "",
        "settings of the sidecar that no longer exist, and what the job did instead",
        "the sidecar has none",
    )
    second_pass: SecondPass | None = _metric(
        "", "rows that were answered with a larger context window, and the largest window", "no row needed it"
    )
    primer: tuple[Mapping[str, Any], ...] | None = _metric(
        "",
        "for each load: requests with only the prefix, the server's token counts, and the medians over four "
        "prompts without and four prompts with such a request",
        "no model was loaded",
    )
    external_changes: ExternalChanges | None = _metric(
        "",
        "reloads, evictions and other changes of the loaded model by other clients, detected from the "
        "server's load times and its list of loaded models",
        "no model was loaded",
    )

    # Speed
    active_s: float | None = _metric(
        "seconds",
        "time of answering, pilot and audit included, by the monotonic clock, over all runs",
        _NOT_RECORDED,
    )
    server_wait_s: float | None = _metric(
        "seconds", "time in which the server did not answer; not in `active_s`", _NOT_RECORDED
    )
    memory_pause_s: float | None = _metric(
        "seconds",
        "time in which rows were paused because memory was short, without waits for the first load; not in "
        "`active_s`",
        _NOT_RECORDED,
    )
    intake_s: float | None = _metric("seconds", "time of reading the data file", _NOT_RECORDED)
    rows_per_second: float | None = _metric(
        "rows per second", "rows that were asked and are completed or failed / `active_s`", _NOT_RECORDED
    )
    tokens_per_second: float | None = _metric(
        "tokens per second", "`completion_tokens` / `active_s`", _NO_COUNT
    )
    prompt_eval_s: float | None = _metric(
        "seconds", "sum of the server's times for the prompts of the results", "the server gave none"
    )
    answer_eval_s: float | None = _metric(
        "seconds", "sum of the server's times for the answers in the results", "the server gave none"
    )
    latency_p50_s: float | None = _metric(
        "seconds", "median time from sending the last request of a row to its answer", _NO_ANSWER
    )
    latency_p90_s: float | None = _metric("seconds", "90th percentile of the same (nearest rank)", _NO_ANSWER)
    latency_p99_s: float | None = _metric("seconds", "99th percentile of the same (nearest rank)", _NO_ANSWER)
    latency_max_s: float | None = _metric("seconds", "maximum of the same", _NO_ANSWER)
    eta_s: float | None = _metric("seconds", "time to the end of the job", "the job has ended")
    reloads: int | None = _metric(
        "replies", "replies that waited more than 0.1 s for the model to load, without the first"
    )
    lanes: int | None = _metric("requests", "most requests in parallel", _NOT_RECORDED)
    extra_requests: Mapping[str, Requests] | None = _metric(
        "",
        "answers that are not in the results, from the ledger: of the pilot, of rows that could have become "
        "anchors, of the audit, and `withdrawn` because of harm. `seconds` adds up the requests, which "
        "overlap with several lanes; a sum of tokens is null if the server did not count each answer. "
        "Requests without an answer are not counted. Of the other metrics, only `active_s` includes these "
        "requests",
        "every answer is in the results",
    )

    # Model and memory
    backend: str | None = _metric("", "`backend.kind` of the settings", _NOT_RECORDED)
    model: str | None = _metric("", "name of the loaded model, as the server reports it", _NOT_REPORTED)
    model_digest: str | None = _metric("", "digest of the weights, as the server reports it", _NOT_REPORTED)
    server: str | None = _metric("", "kind of the server that answered", _NOT_REPORTED)
    server_version: str | None = _metric("", "as the server reports it", _NOT_REPORTED)
    model_load_s: float | None = _metric("seconds", "load time, as the server reports it", _NOT_REPORTED)
    model_bytes: int | None = _metric(
        "bytes", "size of the loaded model, as the server reports it", _NOT_REPORTED
    )
    model_vram_bytes: int | None = _metric(
        "bytes", "its part on the GPU, as the server reports it", _NOT_REPORTED
    )
    peak_vram_gb: float | None = _metric(
        "2^30 bytes",
        "maximum of the used memory of the watched GPUs by all processes, read with NVML every second",
        "GPU memory was not read",
    )
    mean_vram_gb: float | None = _metric(
        "2^30 bytes", "mean of the same over time", "GPU memory was not read"
    )
    memory: MemoryUse | None = _metric(
        "",
        "seconds at each level of memory pressure, peaks in bytes, throttled clocks and actions; a run that "
        "was killed loses its last half minute",
        "memory was not watched",
    )
    loads: tuple[Mapping[str, Any], ...] | None = _metric(
        "",
        "the last 16 loads, in bytes: estimated from model shape, window and slots, listed by the server "
        "(`listed_*`), and measured: memory of its processes on the GPUs, or the growth of all used memory "
        "(`taken_on_cards_bytes`) if the driver does not report processes",
        "no load was measured",
    )

    # Answers
    answers: AnswerDistribution | None = _metric(
        "rows", "completed rows by answer; with `format`, by the value of the compared key"
    )
    agreement: Agreement | None = _metric(
        "",
        "answers compared with the `gold` column; `how` inside says how each measure is computed",
        "the sidecar has no `gold`",
    )
    agreement_along_job: tuple[Third, ...] | None = _metric(
        "",
        "accuracy or rank correlation of each third of the compared rows, in the order of the file, with "
        "95 % intervals; `first` and `last` are row numbers from 1",
    )
    pilot: PilotResult | None = _metric(
        "",
        "a seeded sample of rows, asked in isolation and in each form in `tried`. `wins` and `losses` count "
        "the rows where the form agreed better or worse with `gold` than isolation, on rows that were not "
        "used to select the form; a row that left its conversation or needed a retry is a loss. `better`: "
        "shown by a test at 5 % that may be read after each row. `seconds` adds up the requests of the pilot",
    )
    audit: AuditResult | None = _metric(
        "",
        "a random sample of rows with other rows in the prompt, asked again in isolation as segments ended: "
        "twice above temperature 0, else twice if the answers differed. `agreement`: mean similarity of both "
        "answers, 0 to 1, with 95 % intervals by Wilson. `repeatability`: similarity of two isolated answers "
        "above temperature 0. `changed`: estimated share of answers that the conversation changed. `harm`: "
        "`changed` is above `margin`, and a sequential test during the job or an exact test at its end "
        "rejects that it is half of `margin` or less. `smallest_harm`: share that such a sample detects with "
        "95 % probability. `falls_along`: similarity falls with the number of visible rows or along the job "
        "(Spearman, from 20 rows on). `odd_segments`: one answer has 95 % of the rows while isolated answers "
        "differ. The audit does not say which of two answers is right",
    )

    # Merge
    merged_answers: int | None = _metric(
        "rows", "answers taken from the retry, counted as written", _NOT_MERGED
    )
    merged_already_answered: int | None = _metric(
        "rows", "rows of the retry whose row in the first job already had an answer", _NOT_MERGED
    )
    merged_from: tuple[Mapping[str, Any], ...] | None = _metric("", "metrics of both jobs", _NOT_MERGED)

    @property
    def openai(self) -> bool:
        """Whether the input was OpenAI batch requests."""
        return self.input_format == "openai"

    @property
    def gold(self) -> str:
        """The column of known answers; `gold` without one."""
        return str(self.sidecar.get("gold") or "gold")

    def how(self) -> dict[str, str]:
        """For each metric: how it was measured, with its unit, or why it is null."""
        found = {}
        for one in definitions():
            note = self.notes.get(one.name)
            if getattr(self, one.name) is None:
                found[one.name] = f"null: {note or one.missing}"
            else:
                found[one.name] = note or (f"{one.unit}: {one.how}" if one.unit else one.how)
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of metrics.json: the value of each metric by name, and `how` for each."""
        values = asdict(self)
        del values["notes"]
        rounded = {k: round(v, _DIGITS) if isinstance(v, float) else v for k, v in values.items()}
        return {**rounded, "how": self.how()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Metrics:
        """The metrics in a metrics.json.

        A metric that another version wrote in another form becomes null; unknown metrics are ignored.
        """
        known = {one.name for one in definitions()}
        values = {key: value for key, value in content.items() if key in known}
        how = content.get("how")
        notes = how if isinstance(how, dict) else {}
        notes = {str(key): str(text).removeprefix("null: ") for key, text in notes.items() if key in values}
        adapter = _adapter()
        try:
            return adapter.validate_python({**values, "notes": notes})
        except ValidationError as error:
            other = {str(each["loc"][0]) for each in error.errors()}
        values = {key: value for key, value in values.items() if key not in other}
        notes |= dict.fromkeys(other, "written by another version of spoolama in another form")
        return adapter.validate_python({**values, "notes": notes})


@cache
def _adapter() -> TypeAdapter[Metrics]:
    return TypeAdapter(Metrics)


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """The definition of one metric."""

    name: str
    unit: str
    how: str
    """What it means and how it is measured."""
    missing: str
    """Why it is null, where nothing more is known."""


@cache
def definitions() -> tuple[MetricDefinition, ...]:
    """The definitions of all metrics, in the order of metrics.json."""
    return tuple(
        MetricDefinition(one.name, one.metadata["unit"], one.metadata["how"], one.metadata["missing"])
        for one in fields(Metrics)
        if one.name != "notes"
    )
