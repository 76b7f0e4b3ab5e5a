"""Defines the plan, which decides the prompts of a job together with input, sidecar and ledger.

Plans are numbered. What is learned while a job runs becomes a new version. It is written to the ledger before
it is used, and applies from its `from_segment` on, so that every prompt can be rebuilt from the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spoolama.job.sidecar import Sidecar

_SAFE_TOKENS_PER_BYTE = 1.0
"""A text rarely has more tokens than bytes; the counts of the server reduce this bound."""

_OVERHEAD_TOKENS = 16
"""Upper bound of the tokens that a chat template adds to a message; `<start_of_turn>model\\n` is 3."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One numbered version of the rules by which conversations are built and trimmed."""

    version: int
    """1 for the first version."""
    from_segment: int
    """0-based number of the first segment with this version."""
    segment_rows: int
    """Rows of one conversation; 1: each row in isolation; 0: all rows of the job."""
    strategy: str
    """Decides what a trim keeps: a name in `context/trimming.STRATEGIES`."""
    high: float = 0.75
    """A trim is always due before the prompt exceeds this share of num_ctx - num_predict."""
    low: float = 0.375
    """After a trim, the prompt fits this share of num_ctx - num_predict."""
    every: int = 0
    """A trim is due when this many rows were added since the last one; 0: only tokens cause a trim."""
    keep: int = 0
    """Maximum number of rows that a trim keeps."""
    important: int = 0
    """`hybrid`: number of kept rows that are chosen by score."""
    score: str | None = None
    """How the score of a row is computed."""
    tokens: int | None = None
    """`budget`: maximum tokens of earlier rows."""
    anchors: tuple[int, ...] = ()
    """0-based ordinals of the anchors, in the order of the prompt."""
    gold: bool = False
    """Whether the anchors have their known answers instead of the model's."""
    prefix_tokens: int | None = None
    """Upper bound of the prefix in tokens, from the prompts of isolated rows."""
    tokens_per_byte: float = _SAFE_TOKENS_PER_BYTE
    """Upper bound for texts whose tokens no server has counted."""
    overhead_tokens: int = _OVERHEAD_TOKENS
    """Upper bound of the tokens that the chat template adds to a message."""
    window: int | None = None
    """Context window in tokens, if the server has loaded a smaller one than requested."""

    def next_version(self, *, from_segment: int, **changes: Any) -> Plan:
        """The next version of the plan, with these changes, from segment `from_segment` on."""
        return replace(self, version=self.version + 1, from_segment=from_segment, **changes)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {**asdict(self), "anchors": list(self.anchors)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan from the values of `to_json`.

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
"""Jobs with fewer rows have a pilot only if the sidecar sets one: 2 % of their rows prove little."""
_PILOT_SHARE = 0.02
"""Maximum number of answers for the pilot, as a share of the rows."""
_LEAST_SEGMENT = 21
"""Minimum rows of a segment after a pilot, so that each form reaches its longest conversation."""
_SEGMENTS = 16
"""Number of segments of a small job, so that several lanes can work."""


def pilot_asks(sidecar: Sidecar, total: int) -> int:
    """Maximum number of answers for the pilot of a job of `total` rows; 0: it has no pilot."""
    trim = sidecar.trim
    if sidecar.mode == "isolated" or trim.strategy != "auto" or sidecar.gold is None:
        return 0
    if trim.pilot == "auto":
        return int(total * _PILOT_SHARE) if total >= PILOT_ROWS else 0
    return trim.pilot


def sees_others(sidecar: Sidecar, total: int | None = None) -> bool:
    """Whether the prompt of any row of a job may contain other rows.

    Args:
        sidecar: The job's sidecar.
        total: Number of rows; None: unknown, so the answer is True if it depends on the number.
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
    """The first plan of a job, with safe bounds for everything that is not measured yet.

    Args:
        sidecar: The job's sidecar.
        total: Number of rows.
        pilot: Whether a pilot will choose the form of the prompt. Without a pilot, `auto` isolates each row.
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
