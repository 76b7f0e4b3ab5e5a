"""Defines the sidecar: what a user asks of a job. `evaluation/evaluator.py` reads and checks the file."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "ANCHORS",
    "BUILT_IN_SCORES",
    "CANDIDATES",
    "EVERY",
    "LOAD_TIME_OPTIONS",
    "MOST_OF_MODEL",
    "RETIRED",
    "STRATEGY_KEYS",
    "Example",
    "Expect",
    "Options",
    "Repair",
    "Sidecar",
    "Trim",
    "updated_sidecar",
]

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
        description="What stands before a row, and what a trim keeps. auto: each row is asked in "
        "isolation; with `gold`, a pilot on some of the rows takes a form that is proved to agree better. "
        "reset: the shared prefix alone. window: the latest rows. anchors: a fixed set of rows, the same for "
        "the whole job. "
        "important: the rows with the highest score. hybrid: anchors or important rows, and the latest. "
        "budget: the latest rows within a number of tokens.",
    )
    every: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Rows that come between two trims: with keep 20 and every 30 a row sees 20 to 49 earlier "
        "ones. Default: 20 for reset, 1 for anchors (each row alone behind them), else 30.",
    )
    pilot: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto"] = Field(
        "auto",
        description="auto, with `gold`: answers that the pilot takes at most. auto: 2 % of the rows, in jobs "
        "of 5,000 rows or more. 0: no pilot, each row in isolation.",
    )
    margin: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="Share of rows whose answer may differ from the one given in isolation before the audit "
        "reports harm.",
    )
    keep: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Rows that a trim keeps: the latest, or the best. Default: 20 for window, else 10.",
    )
    anchors: int | None = Field(
        None,
        ge=1,
        le=CANDIDATES,
        description="Rows that stand behind the prefix for the whole job. Default: 6.",
    )
    choose: Literal["spread", "important"] | tuple[str | int, ...] | None = Field(
        None,
        description="Which rows become anchors. spread: such that their answers are spread. important: those "
        "with the highest score. Or a list of row ids, in their order.",
    )
    important: int | None = Field(
        None, ge=1, le=100_000, description="hybrid: keep so many important rows instead of anchors."
    )
    score: str | None = Field(
        None,
        description="What makes a row important. spread: rows whose answers are spread, labels in turn and "
        "numbers at even distances. uncertain: the least certain answers, by their log probabilities. Or a "
        "Jinja2 expression over the row's fields and `answer`.",
    )
    tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="budget: tokens of earlier rows at most; a trim keeps low / high of them, half unless "
        "you set those. Default: what `high` leaves.",
    )
    high: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Trim in any case when the prompt would pass this share of the room for prompts (num_ctx "
        "less num_predict).",
    )
    low: float = Field(
        0.375, ge=0, lt=1, description="A trim keeps no more than fits this share of the room."
    )

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


LOAD_TIME_OPTIONS = ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
"""Options besides `num_ctx` that fix a loaded model: a change of one of them is a reload."""


MOST_OF_MODEL = 500
"""Characters of a model's name: it stands in the summary, the metrics and the status."""
_MOST_OF_COLUMN = 1_000
"""Characters of a column's name, as in the header of a CSV file, or of an answer's key."""

ModelName = Annotated[str, Field(max_length=MOST_OF_MODEL)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Example(_Model):
    """A few-shot turn, part of the shared prefix."""

    user: str = Field(description="What a user would say.")
    assistant: str = Field(description="The answer wanted.")


class Expect(_Model):
    """What the upload must turn out to be; a truncated upload is then always caught."""

    rows: int | None = Field(None, ge=0, le=10**12, description="Number of records.")
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="sha256 of the data file as uploaded."
    )


class Options(_Model):
    """Options of the model. Load-time ones are frozen for the job."""

    num_ctx: int = Field(4096, ge=128, le=10_000_000, description="Context window of a slot, in tokens.")
    num_predict: int = Field(256, ge=1, le=10_000_000, description="Upper bound of an answer, in tokens.")
    temperature: float = Field(0.0, ge=0, le=100, description="0: the likeliest token each time.")
    seed: int = Field(7, ge=-(2**53), le=2**53, description="Seed of the sampler.")
    top_k: int | None = Field(None, ge=0, lt=2**31, description="Sample from the k likeliest tokens.")
    top_p: float | None = Field(None, ge=0, le=1, description="Sample from the likeliest mass p.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens below this share of the likeliest."
    )
    repeat_penalty: float | None = Field(None, ge=0, le=100, description="Above 1: repetition costs.")
    repeat_last_n: int | None = Field(None, ge=-1, lt=2**31, description="How far back repetition is seen.")
    presence_penalty: float | None = Field(None, ge=-100, le=100, description="As OpenAI's.")
    frequency_penalty: float | None = Field(None, ge=-100, le=100, description="As OpenAI's.")
    stop: list[str] | None = Field(None, max_length=64, description="Strings that end an answer.")
    num_batch: int | None = Field(None, ge=1, lt=2**31, description="Load-time: tokens evaluated at once.")
    num_gpu: int | None = Field(None, ge=-1, lt=2**31, description="Load-time: layers on the GPU.")
    main_gpu: int | None = Field(None, ge=0, lt=2**31, description="Load-time: which GPU.")
    use_mmap: bool | None = Field(None, description="Load-time: map the weights from disk.")
    num_thread: int | None = Field(None, ge=1, lt=2**31, description="Load-time: CPU threads.")

    @model_validator(mode="after")
    def _room_for_the_prompt(self) -> Options:
        if self.num_predict >= self.num_ctx:
            raise ValueError(
                f"num_predict {self.num_predict} leaves no room for a prompt in num_ctx {self.num_ctx}"
            )
        return self


class Repair(_Model):
    """How a row is asked again whose answer was cut, empty or against the schema."""

    temperature: float = Field(
        0.3,
        ge=0,
        le=100,
        description="At least this temperature, with another seed each time: at 0 a seed changes nothing.",
    )


class Vram(_Model):
    """When memory of the GPU counts as tense while this job runs."""

    high: float | None = Field(
        None,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="From here on nothing is loaded or enlarged: a share of the card, or above 1 GB.",
    )
    critical: float | None = Field(
        None,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="From here on no rows are sent, and the model is released until there is room.",
    )
    keep_free_gb: float | None = Field(
        None, ge=0, le=10_000, allow_inf_nan=False, description="GB that stay free in any case."
    )


class Sidecar(_Model):
    """What a user asks of a job."""

    model: str = Field(
        "",
        max_length=MOST_OF_MODEL,
        description="The model's name, as the server knows it. Only OpenAI batch lines can go without.",
    )
    models: dict[ModelName, ModelName] = Field(
        default_factory=dict,
        description="OpenAI lines: the model to take for a name in them (`gpt-4o-mini: gemma3:12b`).",
    )
    system: str = Field("", description="The system message: the instruction all rows share.")
    prompt: str | None = Field(
        None,
        description="Jinja2 template over the row's fields. OpenAI batch lines bring their own messages.",
    )
    examples: tuple[Example, ...] = Field((), description="Few-shot turns, part of the shared prefix.")
    mode: Literal["conversation", "isolated"] = Field(
        "conversation", description="conversation: rows see earlier rows. isolated: each row alone."
    )
    id: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description="The column that names a row; default: its number from 1.",
    )
    options: Options = Field(default_factory=Options, description="Options of the model.")
    format: dict[str, Any] | Literal["json"] | None = Field(
        None, description="JSON Schema that constrains the answer and is checked again, or `json`."
    )
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(
        None, description="Thinking models: default off."
    )
    trim: Trim = Field(
        default_factory=Trim,
        description="What stands before a row in a conversation, and what is dropped when it grows too long.",
    )
    prime: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Have the shared prefix evaluated alone in each slot first. auto: where that is measured "
        "to pay, as on models with sliding-window attention, and where the embedded engine copies it from "
        "slot to slot. With think it is never done.",
    )
    long_rows: Literal["fail", "second_pass"] = Field(
        "fail",
        description="Rows too long for num_ctx. fail: their error, with the sizes. second_pass: "
        "they are answered at the end, each alone, with the model loaded once more with a window that fits.",
    )
    vram: Vram | None = Field(
        None,
        description="Limits of GPU memory for this job. It may be more careful than the service, not less.",
    )
    repair: Repair = Field(
        default_factory=Repair, description="How a row is asked again whose answer cannot be used."
    )
    segment: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["all"] = Field(
        200, description="Rows of one conversation before a new one starts from the shared prefix, or `all`."
    )
    lanes: int | None = Field(
        None, ge=1, le=256, description="Requests at once; default: the service's setting."
    )
    gold: str | None = Field(
        None, max_length=_MOST_OF_COLUMN, description="A column of known answers: agreement is reported."
    )
    audit: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto", "off", False] = Field(
        "auto",
        description="Number of rows to ask again in isolation, as segments of a conversation end, to see "
        "whether the conversation changes the answers. auto: 2 % of the rows (above temperature 0: 4 %), at "
        "least 20, at most 400. off or 0: no audit.",
    )
    on_harm: Literal["report", "isolate", "fail"] = Field(
        "report",
        description="What to do when the audit shows that the conversation changes the answers. report: say "
        "so in log, status, summary and metrics. isolate: ask the remaining rows in isolation, and those of "
        "harmed segments again. fail: end the job.",
    )
    answer_key: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description="With `format`: the answer's key that is compared with `gold`; default: the only key.",
    )
    retries: int = Field(3, ge=0, le=20, description="Tries of a row after the first.")
    timeout: float | None = Field(
        None, ge=0.1, le=86_400, description="Seconds for one answer, 0.1 to 86,400; default: learned."
    )
    max_failed: Annotated[int, Field(ge=0, le=10**12)] | Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="End the job early past this number (2, 50) or share (0.01) of failed rows."
    )
    expect: Expect | None = Field(None, description="What the upload must turn out to be.")
    output: tuple[Literal["jsonl", "csv"], ...] = Field(
        ("jsonl", "csv"), min_length=1, description="Forms of the results."
    )
    priority: int = Field(0, ge=-100, le=100, description="Higher goes first.")

    @property
    def audit_rows(self) -> int | None:
        """Rows that the audit may ask; None: `auto`."""
        return None if self.audit == "auto" else 0 if self.audit == "off" else int(self.audit)


RETIRED: dict[tuple[str, str], str] = {
    ("trim.every", "auto"): (
        "every is a number of rows, 30 if it is left out (20 with strategy reset, 1 with anchors)"
    )
}
"""Dotted key and value of each removed setting, and what to write instead."""


def updated_sidecar(sidecar: dict[str, Any]) -> dict[str, Any]:
    """The data of a sidecar that an earlier version accepted, with the keys and values of this one."""
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
