"""The sidecar: what a user asks of a job, checked.

Loading from YAML, with file, line, column and key in every error, is `evaluation/evaluator.py`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from spoolama.job.trim import Trim

__all__ = ["LOAD_TIME_OPTIONS", "MOST_OF_MODEL", "Example", "Expect", "Options", "Repair", "Sidecar", "Trim"]

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
