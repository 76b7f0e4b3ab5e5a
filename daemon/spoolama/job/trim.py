"""How a conversation is kept short: the sidecar's `trim`, and which keys go with which strategy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ANCHORS", "BUILT_IN_SCORES", "CANDIDATES", "EVERY", "STRATEGY_KEYS", "Trim"]

CANDIDATES = 24
"""Rows answered alone before the first segment, of which the anchors are chosen."""

ANCHORS = 6
"""Rows that stand in front unless the sidecar says otherwise."""

EVERY = 30
"""Rows between two trims of `window`, `important` and `hybrid` unless the sidecar says otherwise.

A smaller number has the kept rows evaluated more often, a larger one makes conversations longer. On three
simulated servers (the costs of two are assumptions) 30 took at most a tenth more time than the best number
for most lengths of rows. A number learned from a job's own times was no better: on SmolLM2-135M and Gemma 3
270M it took 7 % and 11 % more time than the best of 4, 10, 20 and 40.
"""

BUILT_IN_SCORES = ("spread", "uncertain")

STRATEGY_KEYS: dict[str, frozenset[str]] = {
    "auto": frozenset({"pilot"}),
    "reset": frozenset({"every"}),
    "window": frozenset({"every", "keep", "low"}),
    "anchors": frozenset({"every", "anchors", "choose", "score"}),
    "important": frozenset({"every", "keep", "score", "low"}),
    "hybrid": frozenset({"every", "keep", "anchors", "choose", "important", "score", "low"}),
    "budget": frozenset({"tokens", "low"}),
}
"""Keys besides `strategy`, `high` and `margin` that mean something with each strategy."""

_ORDINARY: dict[str, dict[str, int]] = {
    "auto": {"every": 1},
    "reset": {"every": 20},
    "window": {"every": EVERY, "keep": 20},
    "anchors": {"every": 1, "anchors": ANCHORS},
    "important": {"every": EVERY, "keep": 10},
    "hybrid": {"every": EVERY, "keep": 10, "anchors": ANCHORS},
    "budget": {},
}


_CHOOSERS = {
    "anchors": "choose: important as well",
    "hybrid": "choose: important or important: N as well",
}
"""What gives a score something to choose."""


class Trim(BaseModel):
    """How a conversation is kept short."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    strategy: Literal["auto", "reset", "window", "anchors", "important", "hybrid", "budget"] = Field(
        "auto",
        description=(
            "Which earlier rows are in the prompt after a trim. auto: none; with `gold`, a pilot "
            "can choose a form that agrees better. reset: none. window: the latest rows. anchors: "
            "a fixed set of rows, the same for the whole job. important: the rows with the highest "
            "score. hybrid: anchors or important rows, and the latest. budget: the latest rows "
            "within a number of tokens."
        ),
    )
    every: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description=(
            "Number of rows between two trims. With keep 20 and every 30, a prompt has 20 to 49 "
            "earlier rows. Default: 20 for reset, 1 for anchors, otherwise 30."
        ),
    )
    pilot: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto"] = Field(
        "auto",
        description=(
            "auto, with `gold`: maximum number of answers for the pilot. auto: 2 % of the rows in "
            "jobs of 5,000 rows or more. 0: no pilot."
        ),
    )
    margin: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description=("Share of answers that the conversation may change before the audit reports harm."),
    )
    keep: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description=("Number of rows that a trim keeps. Default: 20 for window, otherwise 10."),
    )
    anchors: int | None = Field(
        None,
        ge=1,
        le=CANDIDATES,
        description="Number of anchors. Default: 6.",
    )
    choose: Literal["spread", "important"] | tuple[str | int, ...] | None = Field(
        None,
        description=(
            "Which rows become anchors. spread: rows with different answers. important: rows with "
            "the highest score. Or a list of row ids, in their order."
        ),
    )
    important: int | None = Field(
        None, ge=1, le=100_000, description="hybrid: number of important rows to keep instead of anchors."
    )
    score: str | None = Field(
        None,
        description=(
            "Score of a row. spread: rows with different answers score higher. uncertain: answers "
            "with a lower log probability score higher. Or a Jinja2 expression with the columns of "
            "the row and `answer`."
        ),
    )
    tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description=(
            "budget: maximum tokens of earlier rows. A trim keeps low / high of them. Default: as "
            "many as `high` allows."
        ),
    )
    high: float = Field(
        0.75,
        gt=0,
        le=1,
        description=(
            "Share of the room for prompts (num_ctx minus num_predict) above which the "
            "conversation is trimmed."
        ),
    )
    low: float = Field(0.375, ge=0, lt=1, description="Share of that room that a trim keeps at most.")

    @model_validator(mode="after")
    def _fitting_keys(self) -> Trim:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        for key in sorted(self.model_fields_set - {"strategy", "high", "margin"}):
            if key not in STRATEGY_KEYS[self.strategy]:
                fitting = ", ".join(name for name, keys in STRATEGY_KEYS.items() if key in keys)
                raise ValueError(f"{key} means nothing with strategy {self.strategy}; it goes with {fitting}")
        if isinstance(self.choose, tuple):
            names = [str(name) for name in self.choose]
            if not names or len(set(names)) < len(names):
                raise ValueError("choose names no row, or one of them twice")
            if self.anchors is not None:
                raise ValueError("choose names the rows, so anchors says nothing: leave one of them out")
        if self.choose == "important" and self.score in (None, "spread"):
            raise ValueError("choose important needs a score: uncertain, or an expression")
        if self.important is not None and (self.anchors is not None or self.choose is not None):
            raise ValueError("important stands in place of anchors: leave one of them out")
        chooses = self.strategy == "important" or self.choose == "important" or self.important is not None
        if self.score is not None and not chooses:
            raise ValueError(
                f"score means nothing here; with strategy {self.strategy} set {_CHOOSERS[self.strategy]}"
            )
        return self

    @property
    def every_rows(self) -> int:
        """Rows between two trims; 0: only tokens decide."""
        return self.every if self.every is not None else _ORDINARY[self.strategy].get("every", 0)

    @property
    def keep_rows(self) -> int:
        """Rows that a trim keeps; 0 where the strategy has no such number."""
        return self.keep if self.keep is not None else _ORDINARY[self.strategy].get("keep", 0)

    @property
    def anchor_rows(self) -> int:
        """Rows that stand fixed behind the prefix."""
        if isinstance(self.choose, tuple):
            return len(self.choose)
        if self.strategy not in ("anchors", "hybrid") or self.important is not None:
            return 0
        return self.anchors if self.anchors is not None else _ORDINARY[self.strategy]["anchors"]

    @property
    def rows_before(self) -> int | None:
        """Rows before a row at most, those in front not counted; None: any number that fits the tokens."""
        if self.strategy == "budget":
            return None
        return self.keep_rows + (self.important or 0) + self.every_rows - 1
