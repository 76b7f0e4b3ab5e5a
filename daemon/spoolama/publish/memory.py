"""What memory was like while a job ran: numbers for metrics.json, a line or two for the summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spoolama.spool.ledger_reader import LedgerReader

__all__ = ["memory_lines", "memory_metrics"]

Put = Callable[..., None]

GB = 2**30
_HOW = "NVML: memory not free on the GPUs that count, by all programs; once a second"
_SECONDS_WORTH_TELLING = 1.0
_ACTIONS = {
    "paused": "rows were paused",
    "idle_released": "idle models were released",
    "smaller_load": "the model was loaded smaller",
    "larger_load": "the model was loaded larger again",
    "out_of_memory": "the server ran out of memory",
    "loaded_in_spite": "the model was loaded though there seemed to be no room",
    "left_as_it_is": "memory stayed critical, and to release the model would not have helped",
}


def memory_metrics(put: Put, ledger: LedgerReader) -> None:
    """Add peak, mean, time in each state, actions, and each load beside its estimate."""
    memory: Mapping[str, Any] = ledger.meta("memory") or {}
    why = memory.get("blind") or "GPU memory was not read"
    peak, mean = memory.get("peak_bytes"), memory.get("mean_bytes")
    put("peak_vram_gb", None if peak is None else peak / GB, f"bytes / 2^30; {_HOW}", missing=why)
    put("mean_vram_gb", None if mean is None else mean / GB, f"bytes / 2^30, over time; {_HOW}", missing=why)
    put(
        "memory",
        memory or None,
        "seconds in each state (ok, high, critical) and without readings of GPUs, peaks in bytes of GPUs, of"
        " this machine and of the processes that hold models, seconds that clocks were lowered, actions"
        " counted, and the first 200 changes and actions one by one; a killed run loses its last half minute",
        missing="memory was not watched",
    )
    put(
        "loads",
        ledger.meta("loads"),
        "each load of a model, the last 16: bytes estimated before it (from the model's shape, window and"
        " slots), listed by the server (`listed_*`), and seen: memory of its processes on the GPUs where the"
        " driver tells, else the difference of all that was in use (`taken_on_cards_bytes`)",
        missing="no load was seen by the watchdog",
    )


def memory_lines(m: Mapping[str, Any]) -> list[str]:
    """For the summary; empty where there is nothing to tell."""
    memory: Mapping[str, Any] = m.get("memory") or {}
    lines = []
    if m["peak_vram_gb"] is not None:
        total = memory.get("total_bytes")
        of = f" of {total / GB:.1f}" if total else ""
        lines.append(f"{m['peak_vram_gb']:.1f}{of} GB at most, {m['mean_vram_gb']:.1f} on average")
    seconds: Mapping[str, float] = memory.get("seconds") or {}
    tense = [
        f"{level} for {seconds[level]:.0f} s"
        for level in ("high", "critical")
        if seconds.get(level, 0) >= _SECONDS_WORTH_TELLING
    ]
    if tense:
        lines.append(f"memory was {' and '.join(tense)}")
    for action, count in (memory.get("actions") or {}).items():
        if action in _ACTIONS:
            lines.append(f"{_ACTIONS[action]}{'' if count == 1 else f' ({count} times)'}")
    return lines
