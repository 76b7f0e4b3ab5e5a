"""The aims and whether they were met, with numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.engine.settings import CONFIGURATIONS
from bench.engine.table import CEILING, LOOP, Summary

CEILING_SHARE = 0.90
CEILING_SLOTS = 4
MOST_SHARE = 1.02
LOOP_FACTOR = 3.0
LOOP_MODEL = "smollm2:135m"
AGAIN_SHARE = 0.01
CACHED_SHARE = 0.95
_ENGINE = {configuration.name for configuration in CONFIGURATIONS}

Groups = Sequence[Sequence[Summary]]
"""The summaries of each model and number of slots."""


def best_lines(groups: Groups) -> list[str]:
    """Return the fastest strategy of each model and number of slots."""
    lines = []
    for group in groups:
        best = _best(group)
        where = _where(group)
        if best is None or best.rate is None:
            lines.append(f"- {where}: no configuration ran to its end.")
            continue
        text = f"- {where}: best is {best.name} with {best.rate:.2f} rows/s"
        by_name = {summary.name: summary for summary in group}
        if CEILING in by_name and (share := _paired(best, by_name[CEILING])) is not None:
            text += f", round by round {share:.0%} of the ceiling"
        if LOOP in by_name and (factor := _paired(best, by_name[LOOP])) is not None:
            text += f", {factor:.2f} times the first try's loop"
        lines.append(text + ".")
    return lines


def verdicts(groups: Groups, models: Sequence[str]) -> list[str]:
    """Return each aim, met or not."""
    return [
        *(_ceiling(groups, model) for model in models),
        *_loop(groups),
        *_anchors(groups),
        *_cached(groups),
    ]


def _ceiling(groups: Groups, model: str) -> str:
    aim = f"at least {CEILING_SHARE:.0%} of the ceiling with {CEILING_SLOTS} slots on {model}"
    for group in groups:
        if (group[0].model, group[0].slots) != (model, CEILING_SLOTS):
            continue
        best, ceiling = _best(group), _rate(group, CEILING)
        if best is None or best.rate is None or ceiling is None:
            break
        raw = next(s for s in group if s.name == CEILING)
        once = raw.rate_with_prefix or ceiling
        share = _paired(best, raw) or best.rate / ceiling
        if share > MOST_SHARE:
            # A rate above its ceiling only shows that the runs met different conditions.
            others = [f"{(s.median(lambda run: run.others) or 0.0):.0%}" for s in (best, raw)]
            why = f"{best.name} {best.rate:.2f} of {ceiling:.2f} rows/s, {share:.0%}: above the ceiling, so"
            why += f" the runs were disturbed unlike (others' CPU {others[0]} and {others[1]})"
            return _verdict(f"{aim} ({why})", None, "")
        numbers = (
            f"{best.name} {best.rate:.2f} of {ceiling:.2f} rows/s, {share:.1%} round by round"
            f" ({share * ceiling / once:.1%} if the ceiling evaluated the prefix once, as the engine does)"
        )
        return _verdict(aim, share >= CEILING_SHARE, numbers)
    return _verdict(aim, None, "")


def _loop(groups: Groups) -> list[str]:
    lines = []
    for group in groups:
        best, loop = _best(group), next((s for s in group if s.name == LOOP), None)
        if group[0].model != LOOP_MODEL:
            continue
        aim = f"at least {LOOP_FACTOR:g} times the first try's loop on {_where(group)}"
        factor = None if best is None or loop is None else _paired(best, loop)
        if best is None or best.rate is None or loop is None or loop.rate is None or factor is None:
            lines.append(_verdict(aim, None, ""))
            continue
        numbers = f"{best.name} {best.rate:.2f} to {loop.rate:.2f} rows/s, {factor:.2f} times round by round"
        lines.append(_verdict(aim, factor >= LOOP_FACTOR, numbers))
    return lines or [_verdict(f"{LOOP_FACTOR:g} times the first try's loop on {LOOP_MODEL}", None, "")]


def _anchors(groups: Groups) -> list[str]:
    lines = []
    for group in groups:
        for name in ("anchors", "anchors-tail"):
            aim = f"{name} evaluate less than {AGAIN_SHARE:.0%} again at a trim, {_where(group)}"
            found = next((s for s in group if s.name == name), None)
            if found is None:
                continue
            again = found.median(lambda run: run.again_at_trims)
            met = None if again is None else again < AGAIN_SHARE
            lines.append(_verdict(aim, met, "" if again is None else f"{again:.2%}"))
    return lines or [_verdict(f"anchors evaluate less than {AGAIN_SHARE:.0%} again at a trim", None, "")]


def _cached(groups: Groups) -> list[str]:
    """Describe the best strategy, and name the others."""
    lines = []
    for group in groups:
        aim = f"at least {CACHED_SHARE:.0%} of the shareable tokens from the cache, {_where(group)}"
        best = _best(group)
        share = None if best is None else best.median(lambda run: run.steady_share)
        if best is None or share is None:
            lines.append(_verdict(aim, None, ""))
            continue
        below = [
            f"{s.name} {other:.1%}"
            for s in group
            if s.name in _ENGINE
            and s is not best
            and (other := s.median(lambda run: run.steady_share)) is not None
            and other < CACHED_SHARE
        ]
        rest = f"; below it: {', '.join(below)}" if below else "; no other configuration is below it"
        lines.append(_verdict(aim, share >= CACHED_SHARE, f"{best.name}, the fastest, {share:.1%}{rest}"))
    return lines


def _verdict(aim: str, met: bool | None, numbers: str) -> str:
    if met is None:
        return f"- not measured: {aim}"
    return f"- {'met' if met else '**not met**'}: {aim}: {numbers}"


def _paired(one: Summary, other: Summary) -> float | None:
    """Return the median over the rounds of the ratio of both rates within a round, under the
    same conditions.
    """
    rates = {run.round: run.rate for run in other.runs}
    ratios = [run.rate / rate for run in one.runs if run.rate and (rate := rates.get(run.round))]
    return statistics.median(ratios) if ratios else None


def _best(group: Sequence[Summary]) -> Summary | None:
    ran = [s for s in group if s.name in _ENGINE and s.rate is not None]
    return max(ran, key=lambda s: s.rate or 0.0, default=None)


def _rate(group: Sequence[Summary], name: str) -> float | None:
    return next((s.rate for s in group if s.name == name), None)


def _where(group: Sequence[Summary]) -> str:
    return f"{group[0].model} with {group[0].slots} slot{'s' if group[0].slots > 1 else ''}"
