"""Defines the sidecar: what a user asks of a job. `evaluation/evaluator.py` reads and checks the file."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CANDIDATES = 24
"""Rows answered in isolation before the first segment; the anchors are chosen from them."""

ANCHORS = 6
"""Default number of anchors."""

EVERY = 30
"""Default number of rows between two trims of `window`, `important` and `hybrid`.

With a smaller number the kept rows are evaluated more often, with a larger one conversations are longer. On
three simulated servers (the costs of two are assumptions) 30 took at most 10 % more time than the best number
for most row lengths. A number learned from a job's own times was not better: on SmolLM2-135M and Gemma 3 270M
it took 7 % and 11 % more time than the best of 4, 10, 20 and 40.
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
"""Keys of each strategy; `strategy`, `high` and `margin` are keys of all strategies."""

_DEFAULTS: dict[str, dict[str, int]] = {
    "auto": {"every": 1},
    "reset": {"every": 20},
    "window": {"every": EVERY, "keep": 20},
    "anchors": {"every": 1, "anchors": ANCHORS},
    "important": {"every": EVERY, "keep": 10},
    "hybrid": {"every": EVERY, "keep": 10, "anchors": ANCHORS},
    "budget": {},
}


_CHOOSERS = {
    "anchors": "choose: important",
    "hybrid": "choose: important or important: N",
}
"""What selects rows by the score."""


class Trim(BaseModel):
    """Which earlier rows are in the prompt, and what a trim keeps when the prompt grows too long."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    strategy: Literal["auto", "reset", "window", "anchors", "important", "hybrid", "budget"] = Field(
        "auto",
        description="Which earlier rows are in the prompt, and which of them a trim keeps. auto: none; with "
        "`gold`, a pilot on some rows selects a form of the prompt if it agrees better with gold. "
        "reset: no row. window: the latest rows. anchors: fixed rows, the same for the whole job. "
        "important: the rows with the highest score. hybrid: anchors or important rows, and the latest rows. "
        "budget: the latest rows within a number of tokens.",
    )
    every: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Number of rows between two trims. With keep 20 and every 30, a prompt contains 20 to 49 "
        "earlier rows. Default: 20 for reset, 1 for anchors (no earlier row except the anchors), else 30.",
    )
    pilot: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto"] = Field(
        "auto",
        description="auto, with `gold`: maximum number of answers for the pilot. auto: 2 % of the rows, in "
        "jobs of 5,000 rows or more. 0: no pilot; each row is asked in isolation.",
    )
    margin: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="Share of rows whose answer may differ from their isolated answer before the audit "
        "reports harm.",
    )
    keep: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Number of rows that a trim keeps. Default: 20 for window, else 10.",
    )
    anchors: int | None = Field(
        None,
        ge=1,
        le=CANDIDATES,
        description="Number of anchors, which are in every prompt behind the prefix. Default: 6.",
    )
    choose: Literal["spread", "important"] | tuple[str | int, ...] | None = Field(
        None,
        description="Which rows become anchors. spread (default): rows with different answers. important: "
        "the rows with the highest score. Or a list of row ids, in the order of the prompt.",
    )
    important: int | None = Field(
        None, ge=1, le=100_000, description="hybrid: number of important rows to keep instead of anchors."
    )
    score: str | None = Field(
        None,
        description="The score of a row. spread: rows with different answers, each label in turn, numbers at "
        "even distances. uncertain: the answers with the lowest log probabilities. Or a Jinja2 expression "
        "over the row's fields and `answer`; a higher number is more important.",
    )
    tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="budget: maximum tokens of earlier rows. A trim keeps low / high of them, by default "
        "half. Default: as many as `high` allows.",
    )
    high: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Always trim before the prompt exceeds this share of num_ctx - num_predict.",
    )
    low: float = Field(
        0.375, ge=0, lt=1, description="After a trim, the prompt fits this share of num_ctx - num_predict."
    )

    @model_validator(mode="after")
    def _fitting_keys(self) -> Trim:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        for key in sorted(self.model_fields_set - {"strategy", "high", "margin"}):
            if key not in STRATEGY_KEYS[self.strategy]:
                fitting = ", ".join(name for name, keys in STRATEGY_KEYS.items() if key in keys)
                raise ValueError(f"{key} is not a key of strategy {self.strategy}; it belongs to {fitting}")
        if isinstance(self.choose, tuple):
            names = [str(name) for name in self.choose]
            if not names or len(set(names)) < len(names):
                raise ValueError("choose is an empty list, or names a row twice")
            if self.anchors is not None:
                raise ValueError("choose already lists the anchors: remove choose or anchors")
        if self.choose == "important" and self.score in (None, "spread"):
            raise ValueError("choose important needs score: uncertain, or score with an expression")
        if self.important is not None and (self.anchors is not None or self.choose is not None):
            raise ValueError("important replaces anchors: remove one of them")
        chooses = self.strategy == "important" or self.choose == "important" or self.important is not None
        if self.score is not None and not chooses:
            raise ValueError(
                f"score has no effect; with strategy {self.strategy}, add {_CHOOSERS[self.strategy]}"
            )
        return self

    @property
    def every_rows(self) -> int:
        """Number of rows between two trims; 0: only the number of tokens causes a trim."""
        return self.every if self.every is not None else _DEFAULTS[self.strategy].get("every", 0)

    @property
    def keep_rows(self) -> int:
        """Number of rows that a trim keeps; 0 if the strategy has no such number."""
        return self.keep if self.keep is not None else _DEFAULTS[self.strategy].get("keep", 0)

    @property
    def anchor_rows(self) -> int:
        """Number of anchors."""
        if isinstance(self.choose, tuple):
            return len(self.choose)
        if self.strategy not in ("anchors", "hybrid") or self.important is not None:
            return 0
        return self.anchors if self.anchors is not None else _DEFAULTS[self.strategy]["anchors"]

    @property
    def rows_before(self) -> int | None:
        """Maximum number of earlier rows in a prompt, without anchors; None: as many as the tokens allow."""
        if self.strategy == "budget":
            return None
        return self.keep_rows + (self.important or 0) + self.every_rows - 1


LOAD_TIME_OPTIONS = ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
"""Options that apply when a model is loaded, like `num_ctx`: a change of one of them reloads the model."""


MOST_LANES = 256
"""Maximum number of lanes, in the settings too."""
MOST_OF_MODEL = 500
"""Maximum characters of a model's name, which is in the summary, the metrics and the status."""
_MOST_OF_COLUMN = 1_000
"""Maximum characters of the name of a column or of an answer's key."""

ModelName = Annotated[str, Field(max_length=MOST_OF_MODEL)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Example(_Model):
    """A few-shot turn in the prefix."""

    user: str = Field(description="The message of the user.")
    assistant: str = Field(description="The expected answer.")


class Expect(_Model):
    """Expected row count or checksum, which detect a truncated upload."""

    rows: int | None = Field(None, ge=0, le=10**12, description="Number of rows.")
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="SHA-256 of the uploaded data file."
    )


class Options(_Model):
    """Options of the model. The load options are the same for all rows of the job."""

    num_ctx: int = Field(4096, ge=128, le=10_000_000, description="Context window of a slot, in tokens.")
    num_predict: int = Field(256, ge=1, le=10_000_000, description="Maximum tokens of an answer.")
    temperature: float = Field(0.0, ge=0, le=100, description="0: always the most likely token.")
    seed: int = Field(7, ge=-(2**53), le=2**53, description="Seed of the sampler.")
    top_k: int | None = Field(None, ge=0, lt=2**31, description="Sample from the k most likely tokens.")
    top_p: float | None = Field(
        None, ge=0, le=1, description="Sample from the most likely tokens whose probabilities sum to p."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Exclude tokens below this share of the highest probability."
    )
    repeat_penalty: float | None = Field(
        None, ge=0, le=100, description="A value above 1 penalizes repetition."
    )
    repeat_last_n: int | None = Field(
        None, ge=-1, lt=2**31, description="Number of tokens in which repetition is penalized."
    )
    presence_penalty: float | None = Field(None, ge=-100, le=100, description="As in OpenAI's API.")
    frequency_penalty: float | None = Field(None, ge=-100, le=100, description="As in OpenAI's API.")
    stop: list[str] | None = Field(None, max_length=64, description="Strings that end an answer.")
    num_batch: int | None = Field(None, ge=1, lt=2**31, description="At load: tokens evaluated at once.")
    num_gpu: int | None = Field(None, ge=-1, lt=2**31, description="At load: number of layers on the GPU.")
    main_gpu: int | None = Field(None, ge=0, lt=2**31, description="At load: index of the main GPU.")
    use_mmap: bool | None = Field(None, description="At load: map the weights from disk.")
    num_thread: int | None = Field(None, ge=1, lt=2**31, description="At load: number of CPU threads.")

    @model_validator(mode="after")
    def _room_for_the_prompt(self) -> Options:
        if self.num_predict >= self.num_ctx:
            raise ValueError(
                f"num_predict {self.num_predict} leaves no space for a prompt in num_ctx {self.num_ctx}"
            )
        return self


class Repair(_Model):
    """How a row is asked again if its answer was cut, empty or invalid."""

    temperature: float = Field(
        0.3,
        ge=0,
        le=100,
        description="Minimum temperature. Each attempt has another seed, which has no effect at 0.",
    )


class Vram(_Model):
    """Limits of GPU memory while this job runs."""

    high: float | None = Field(
        None,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="Above this, no model is loaded and no load grows: a share of the GPU memory, or GB if "
        "above 1.",
    )
    critical: float | None = Field(
        None,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="Above this, no rows are sent and the model is unloaded until memory is free.",
    )
    keep_free_gb: float | None = Field(
        None, ge=0, le=10_000, allow_inf_nan=False, description="GB that must stay free."
    )


class Sidecar(_Model):
    """What a user asks about the rows of a data file."""

    model: str = Field(
        "",
        max_length=MOST_OF_MODEL,
        description="Name of the model on the server. Optional only for OpenAI batch files.",
    )
    models: dict[ModelName, ModelName] = Field(
        default_factory=dict,
        description="OpenAI batch files: the local model for a model name in the file "
        "(`gpt-4o-mini: gemma3:12b`).",
    )
    system: str = Field("", description="The system message, the same for all rows.")
    prompt: str | None = Field(
        None,
        description="Jinja2 template over the columns of the row. OpenAI batch files have messages instead.",
    )
    examples: tuple[Example, ...] = Field(
        (), description="Few-shot turns, which follow the system message in every prompt."
    )
    mode: Literal["conversation", "isolated"] = Field(
        "conversation",
        description="conversation: the prompt of a row may contain earlier rows, as `trim` says. isolated: "
        "it never does.",
    )
    id: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description="Column with a unique id of each row. Default: the row's number, from 1.",
    )
    options: Options = Field(default_factory=Options, description="Options of the model.")
    format: dict[str, Any] | Literal["json"] | None = Field(
        None,
        description="JSON Schema for the answer, or `json` for any JSON. The server constrains the answer, "
        "and spoolama validates it again.",
    )
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(
        None, description="Thinking models: whether, or how much, the model thinks. Default: false."
    )
    trim: Trim = Field(
        default_factory=Trim,
        description="Which earlier rows are in the prompt, and which are removed when it grows too long.",
    )
    prime: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Evaluate the prefix once in each slot before the first row. auto: if it is measured to "
        "be faster, as on models with sliding-window attention, or if the embedded engine can copy the "
        "prefix from slot to slot. Never done with think.",
    )
    long_rows: Literal["fail", "second_pass"] = Field(
        "fail",
        description="Rows that do not fit num_ctx. fail: they fail. second_pass: they are asked at the end, "
        "each in isolation, after the model is loaded once more with a larger context window.",
    )
    vram: Vram | None = Field(
        None,
        description="Limits of GPU memory for this job. They can be stricter than the service's, not looser.",
    )
    repair: Repair = Field(
        default_factory=Repair, description="How a row is asked again if its answer cannot be used."
    )
    segment: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["all"] = Field(
        200, description="Number of rows in one conversation, or `all`."
    )
    lanes: int | None = Field(
        None, ge=1, le=MOST_LANES, description="Number of requests at once. Default: the service's setting."
    )
    gold: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description="Column with known answers. The summary reports the agreement.",
    )
    audit: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto", "off", False] = Field(
        "auto",
        description="Number of rows to ask again in isolation, to see whether the conversation changes the "
        "answers. auto: 2 % of the rows, at least 20, at most 400; twice as many above temperature 0. off "
        "or 0: no audit.",
    )
    on_harm: Literal["report", "isolate", "fail"] = Field(
        "report",
        description="What to do when the audit finds that the conversation changes the answers. report: "
        "report it in log, status, summary and metrics. isolate: ask the remaining rows in isolation, and "
        "the rows of harmed segments again. fail: end the job.",
    )
    answer_key: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description="With `format`: the key of the answer that is compared with `gold`. Default: the only "
        "key.",
    )
    retries: int = Field(3, ge=0, le=20, description="Number of attempts of a row after the first.")
    timeout: float | None = Field(
        None, ge=0.1, le=86_400, description="Seconds for one answer, 0.1 to 86,400. Default: learned."
    )
    max_failed: Annotated[int, Field(ge=0, le=10**12)] | Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="End the job when more rows than this have failed: a number (50) or a share (0.01)."
    )
    expect: Expect | None = Field(None, description="Expected row count or checksum of the data file.")
    output: tuple[Literal["jsonl", "csv"], ...] = Field(
        ("jsonl", "csv"), min_length=1, description="Files to write."
    )
    priority: int = Field(0, ge=-100, le=100, description="The job with the highest priority runs first.")

    @property
    def noisy(self) -> bool:
        """Whether two isolated answers to the same row can differ."""
        return self.options.temperature > 0

    @property
    def audit_rows(self) -> int | None:
        """Maximum number of rows that the audit asks; None: `auto`."""
        return None if self.audit == "auto" else 0 if self.audit == "off" else int(self.audit)


RETIRED: dict[tuple[str, str], str] = {
    ("trim.every", "auto"): (
        "every is a number of rows; the default is 30 (20 with strategy reset, 1 with anchors)"
    )
}
"""Removed values: dotted key and value, and what to write instead. A new sidecar may not have them.

In the sidecar of a job that has begun they are ignored: then the job behaves like an earlier version that has
not learned anything yet.
"""


def updated_sidecar(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Convert the data of a sidecar that an earlier version accepted to the keys and values of this one."""
    today = copy.deepcopy(sidecar)
    for key, value in RETIRED:
        *parents, name = key.split(".")
        inner: Any = today
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and inner.get(name) == value:
            del inner[name]
    if "on_collapse" in today:
        value = today.pop("on_collapse")
        today["on_harm"] = "isolate" if value == "redo" else value
    return today
