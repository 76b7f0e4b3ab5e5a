"""The measured runs as tables: one for each model and number of slots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bench.engine.ceiling import RAW_PARAMS
from bench.engine.measured import Measured, agreement, labels
from bench.engine.settings import CONFIGURATIONS, NUM_PREDICT, WINDOW, Review

LOOP = "loop"
CEILING = "ceiling"
CEILING_AS_LOADED = "ceiling-as-loaded"
RAW = (CEILING, CEILING_AS_LOADED)
_ORDERS = tuple(c.name for c in CONFIGURATIONS)
NAMES = (*_ORDERS[:2], *RAW, *_ORDERS[2:], LOOP)
"""In the order of a round: the ceiling runs right after the isolated rows, with which it is compared."""
DEFAULT_NAMES = tuple(name for name in NAMES if name not in ("alone-schema", CEILING_AS_LOADED))
"""Three rounds of these take about 90 minutes on 2 cores."""

_TITLES = {
    LOOP: "first try's loop (emulated)",
    CEILING: "**raw ceiling**",
    CEILING_AS_LOADED: "raw, llama.cpp loaded as the engine loads it",
}
_COLUMNS = (
    "configuration", "runs", "rows/s", "from-to", "of ceiling", "× loop", "prompt tokens", "evaluated",
    "cached", "cached of shareable", "again at trims", "beside the rows", "others' CPU", "neg/neu/pos",
    "agree",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """The runs of one configuration."""

    model: str
    slots: int
    name: str
    runs: tuple[Measured, ...]
    """Those that ended."""
    wrong: tuple[str, ...]
    """Why the others failed."""

    @property
    def rates(self) -> list[float]:
        """Rows per second of each run, lowest first."""
        return sorted(run.rate for run in self.runs if run.rate is not None)

    @property
    def rate(self) -> float | None:
        """Their median."""
        return statistics.median(self.rates) if self.rates else None

    @property
    def rate_with_prefix(self) -> float | None:
        """Raw runs: the median if the prefix, evaluated once, counted, which is the minimum of work."""
        rates = [r.asked / (r.seconds + (r.primed_s or 0) / r.slots) for r in self.runs if r.seconds]
        return statistics.median(rates) if rates else None

    def median(self, value: Callable[[Measured], float | None]) -> float | None:
        """Return the median of a value over the runs that have it."""
        found = [number for run in self.runs if (number := value(run)) is not None]
        return statistics.median(found) if found else None


def summaries(measured: Iterable[Measured]) -> list[Summary]:
    """Return the runs by model, slots and configuration, in the order of their first run."""
    groups: dict[tuple[str, int, str], list[Measured]] = {}
    for run in measured:
        groups.setdefault((run.model, run.slots, run.name), []).append(run)
    return [
        Summary(
            model,
            slots,
            name,
            runs=tuple(run for run in runs if run.wrong is None),
            wrong=tuple(dict.fromkeys(run.wrong for run in runs if run.wrong is not None)),
        )
        for (model, slots, name), runs in groups.items()
    ]


def with_loops(found: Sequence[Summary]) -> list[Summary]:
    """Add the first loop to every number of slots of its model; it was run with one of them."""
    loops = {summary.model: summary for summary in found if summary.name == LOOP}
    places = dict.fromkeys((summary.model, summary.slots) for summary in found)
    more = [
        replace(loops[model], slots=slots)
        for model, slots in places
        if model in loops and loops[model].slots != slots
    ]
    return [*found, *more]


def table(found: Sequence[Summary], reviews: Sequence[Review]) -> list[str]:
    """Markdown lines of one model and number of slots."""
    by_name = {summary.name: summary for summary in found}
    ceiling = by_name[CEILING].rate if CEILING in by_name else None
    loop = by_name[LOOP].rate if LOOP in by_name else None
    lines = [
        f"### {found[0].model}, {found[0].slots} slot{'s' if found[0].slots > 1 else ''}",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|---|{'---:|' * (len(_COLUMNS) - 1)}",
        *(f"| {' | '.join(_cells(summary, ceiling, loop, reviews))} |" for summary in found),
        "",
    ]
    lines += [f"- {s.name}: {wrong}" for s in found for wrong in s.wrong]
    lines += [
        f"- {s.name}: {rows} of {run.asked} rows failed in round {run.round + 1} ({code}: {message})"
        for s in found
        for run in s.runs
        for code, rows, message in run.failed
    ]
    primed = by_name[CEILING].rate_with_prefix if CEILING in by_name else None
    if primed is not None:
        priming = by_name[CEILING].median(lambda run: (run.primed_s or 0) / run.slots)
        lines.append(
            f"- The ceiling would be {primed:.2f} rows/s if evaluating the prefix once ({priming:.1f} s)"
            " counted, which the engine's own runs do count."
        )
    for name in RAW:
        if name in by_name and by_name[name].runs:
            rows = by_name[name].runs[0].rows
            own = sum(row.own for row in rows)
            evaluated = sum(row.prompt - row.cached for row in rows)
            lines.append(
                f"- {name}: {evaluated} tokens evaluated for the rows' {own} own ones,"
                f" {sum(row.completion for row in rows)} generated."
            )
    return [*lines, ""]


def _cells(
    summary: Summary, ceiling: float | None, loop: float | None, reviews: Sequence[Review]
) -> list[str]:
    title = _TITLES.get(summary.name, summary.name)
    if not summary.runs:
        return [title, "0", *["–"] * (len(_COLUMNS) - 2)]
    last, rate = summary.runs[-1], summary.rate
    raw = summary.name in RAW
    given = labels(last.rows)
    words = f"{given['negative']}/{given['neutral']}/{given['positive']}"
    other = f" +{given['other']} cut" if given["other"] else ""
    return [
        title,
        str(len(summary.runs)),
        _number(rate),
        f"{summary.rates[0]:.2f}-{summary.rates[-1]:.2f}" if summary.rates else "–",
        _share(_ratio(rate, ceiling)),
        _number(_ratio(rate, loop)),
        _count(summary.median(lambda run: sum(row.prompt for row in run.rows))),
        _count(summary.median(lambda run: sum(row.prompt - row.cached for row in run.rows))),
        _count(summary.median(lambda run: sum(row.cached for row in run.rows))),
        "–" if raw else _share(summary.median(lambda run: run.steady_share)),
        "–" if raw else _share(summary.median(lambda run: run.again_at_trims)),
        "–" if raw else _count(summary.median(_beside)),
        _share(summary.median(lambda run: run.others)),
        "–" if raw else words + other,
        "–" if raw else _share(agreement(last.rows, reviews)),
    ]


def _beside(run: Measured) -> float:
    """Return the tokens evaluated for other requests than those that answered the rows."""
    return run.counts.evaluated - sum(row.prompt - row.cached for row in run.rows)


def how(rows: int, segment: int, threads: int) -> list[str]:
    """Return how each number was measured, for readers of the tables."""
    orders = "; ".join(f"{c.name} = `{c.sidecar}`".replace("\n", ", ") for c in CONFIGURATIONS)
    params = ", ".join(f"{name}={value}" for name, value in RAW_PARAMS.items())
    return [
        f"{rows} reviews, window {WINDOW}, {threads} threads, temperature 0, conversations of {segment} rows."
        " Each run starts on a model that was just loaded; the load is not counted. rows/s is the median of"
        " the runs that ended; tokens are medians, answers those of the last run. Rows that failed are named"
        " below the tables; they count in rows/s and in nothing else.",
        "",
        f"- Sidecars: {orders}.",
        "- rows/s: from the engine's first request to its last answer, what it primes and samples included.",
        "- raw ceiling: llama.cpp in a child of its own is given, as token numbers, the rows' rendered"
        " prompts alone behind the shared prefix, and generates as many tokens as each row's answer had when"
        f" the row was asked alone in the same round ({NUM_PREDICT} where it failed). All rows with equally"
        " long answers go in one request to `/completion`; llama.cpp batches them over its slots. No engine,"
        " chat template, grammar or request for each row; greedy sampling. The prefix is in every slot before"
        f" the clock starts. {params}, so that only the rows' own tokens are evaluated (each reply's"
        " `timings` are summed below the table). `ceiling-as-loaded` is the same without these parameters.",
        "- first try's loop: emulated on the embedded engine, one request at a time: one conversation, cut to"
        " the system message and the last 40 messages after every 50 rows; where the prompt would fill the"
        " window the oldest messages are left out one at a time, as Ollama does. It was run with the first"
        " number of slots, and stands beside the others. The time that its counting takes is not counted.",
        "- prompt tokens, evaluated, cached: sums over the answered rows of the server's own counts;"
        " beside the rows: tokens evaluated for other requests (priming, samples, repeats).",
        "- cached of shareable: shareable is a row's prompt less the tokens of its own messages: the"
        " ledger's own_tokens, where a row continues the last prompt; else the tokenizer's count behind the"
        " shared prefix. Rows after the first two of each segment; of rows alone, after two for each slot.",
        "- again at trims: of the shareable tokens of rows before which earlier rows were dropped (or, behind"
        " anchors, the last row), the share that was evaluated again. The first two rows of each segment and"
        " rows asked alone beforehand are left out.",
        "- others' CPU: share of all cores that other processes took meanwhile; a run that was much disturbed"
        " says little.",
        "- agree: share of the rows whose answer has the sign of the human rating.",
        "",
    ]


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
