"""The plan: everything besides input, sidecar and ledger that decides what a row is asked.

Plans are numbered.
What is learned while a job runs becomes a new version, written to the ledger before it is used and in force
from its `from_segment` on, so that every prompt can be rebuilt from what is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spoolama.job.sidecar import Sidecar

__all__ = ["PILOT_ROWS", "Plan", "first_plan", "pilot_asks", "sees_others"]

_SAFE_TOKENS_PER_BYTE = 1.0
"""A tokenizer hardly ever makes more tokens than there are bytes; what the server counts lowers it."""

_OVERHEAD_TOKENS = 16
"""Tokens that a chat template puts around one message, generously; `<start_of_turn>model\\n` is 3."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One numbered version of the rules by which conversations are built and trimmed."""

    version: int
    """1 for the first, counted up."""
    from_segment: int
    """0-based segment from which on this version is in force."""
    segment_rows: int
    """Rows of one conversation; 1: each row alone; 0: all rows of the job."""
    strategy: str
    """What a trim keeps: a name in `context/trimming.STRATEGIES`."""
    high: float = 0.75
    """A trim is due in any case when the prompt would pass this share of the room."""
    low: float = 0.375
    """A trim keeps no more rows than fit this share of the room."""
    every: int = 0
    """A trim is due when so many rows were added since the last one; 0: tokens alone decide."""
    keep: int = 0
    """Rows that a trim keeps at most."""
    important: int = 0
    """`hybrid`: how many of the kept rows are chosen by score."""
    score: str | None = None
    """What makes a row important."""
    tokens: int | None = None
    """`budget`: tokens of earlier rows at most."""
    anchors: tuple[int, ...] = ()
    """0-based ordinals of the rows that stand right behind the prefix, in their order there."""
    gold: bool = False
    """Whether the anchors carry their gold answers."""
    prefix_tokens: int | None = None
    """Upper bound of the shared prefix, from prompts of rows that were asked alone."""
    tokens_per_byte: float = _SAFE_TOKENS_PER_BYTE
    """Upper bound used for the length of a text nobody has counted yet."""
    overhead_tokens: int = _OVERHEAD_TOKENS
    """Tokens of the chat template around one message, upper bound."""
    window: int | None = None
    """Window in tokens, where the server turned out to hold a smaller one than was asked for."""

    def next_version(self, *, from_segment: int, **changes: Any) -> Plan:
        """The same plan with changes, one version on, in force from `from_segment`."""
        return replace(self, version=self.version + 1, from_segment=from_segment, **changes)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {**asdict(self), "anchors": list(self.anchors)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` gave.

        Raises:
            ValueError: a key is missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(
                f"not a plan: missing {sorted(names - set(data))}, unknown {sorted(set(data) - names)}"
            )
        return cls(**{**data, "anchors": tuple(data["anchors"])})


PILOT_ROWS = 5000
"""Jobs with fewer rows have no pilot unless the sidecar asks for one: 2 % of them can prove little."""
_PILOT_SHARE = 0.02
"""Of the job's rows: answers that a pilot takes at most."""
_LEAST_SEGMENT = 21
"""Rows of a segment after a pilot, so that every form has its longest conversation."""
_SEGMENTS = 16
"""So many segments a small job is cut into, for lanes to share."""


def pilot_asks(sidecar: Sidecar, total: int) -> int:
    """Answers that the pilot of a job of `total` rows may take; 0: there is none, as without gold."""
    trim = sidecar.trim
    if sidecar.mode == "isolated" or trim.strategy != "auto" or sidecar.gold is None:
        return 0
    if trim.pilot == "auto":
        return int(total * _PILOT_SHARE) if total >= PILOT_ROWS else 0
    return trim.pilot


def sees_others(sidecar: Sidecar, total: int | None = None) -> bool:
    """Whether any row of a job of `total` rows may have others in sight.

    Args:
        sidecar: What is asked.
        total: Rows of the job; None: not known yet, and what depends on it may be.
    """
    trim = sidecar.trim
    if sidecar.mode == "isolated":
        return False
    if trim.strategy == "auto":
        if total is None:
            return trim.pilot != 0 and sidecar.gold is not None
        return pilot_asks(sidecar, total) > 0
    if trim.anchor_rows:
        return True
    return sidecar.segment != 1 and not (trim.strategy == "reset" and trim.every_rows == 1)


def first_plan(sidecar: Sidecar, total: int = 0, *, pilot: bool = False) -> Plan:
    """The plan that a job starts with: the sidecar's wishes, and safe bounds where nothing is measured.

    Args:
        sidecar: What is asked.
        total: Rows of the job.
        pilot: Whether a pilot is to choose what stands before a row. Without one `auto` isolates each row.
    """
    auto = sidecar.trim.strategy == "auto"
    if sidecar.mode == "isolated" or (auto and not pilot):
        rows = 1
    elif sidecar.segment == "all":
        rows = 0
    elif auto and "segment" not in sidecar.model_fields_set:
        rows = min(sidecar.segment, max(_LEAST_SEGMENT, total // _SEGMENTS))
    else:
        rows = sidecar.segment
    trim = sidecar.trim
    return Plan(
        version=1,
        from_segment=0,
        segment_rows=rows,
        strategy="reset" if auto else trim.strategy,
        high=trim.high,
        low=trim.low,
        every=trim.every_rows,
        keep=trim.keep_rows,
        important=trim.important or 0,
        score=trim.score,
        tokens=trim.tokens,
    )
