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
    """A few-shot example, part of the prefix."""

    user: str = Field(description="Message of the user.")
    assistant: str = Field(description="Answer of the assistant.")


class Expect(_Model):
    """Expected row count and checksum of the upload."""

    rows: int | None = Field(None, ge=0, le=10**12, description="Number of rows.")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="SHA-256 of the data file.")


class Options(_Model):
    """Options of the model. Load-time options cannot change during a job."""

    num_ctx: int = Field(4096, ge=128, le=10_000_000, description="Context window of a slot, in tokens.")
    num_predict: int = Field(256, ge=1, le=10_000_000, description="Maximum length of an answer, in tokens.")
    temperature: float = Field(
        0.0, ge=0, le=100, description="Sampling temperature. 0: always the most likely token."
    )
    seed: int = Field(7, ge=-(2**53), le=2**53, description="Random seed for sampling.")
    top_k: int | None = Field(None, ge=0, lt=2**31, description="Sample from the k most likely tokens.")
    top_p: float | None = Field(
        None, ge=0, le=1, description="Sample from the most likely tokens whose probabilities add up to p."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Ignore tokens below this share of the highest probability."
    )
    repeat_penalty: float | None = Field(
        None, ge=0, le=100, description="Penalty for repeated tokens; 1: none."
    )
    repeat_last_n: int | None = Field(
        None, ge=-1, lt=2**31, description="Number of last tokens that repeat_penalty considers."
    )
    presence_penalty: float | None = Field(None, ge=-100, le=100, description="As in OpenAI's API.")
    frequency_penalty: float | None = Field(None, ge=-100, le=100, description="As in OpenAI's API.")
    stop: list[str] | None = Field(None, max_length=64, description="Strings that end the answer.")
    num_batch: int | None = Field(
        None, ge=1, lt=2**31, description="Load-time: batch size for the evaluation of prompts, in tokens."
    )
    num_gpu: int | None = Field(None, ge=-1, lt=2**31, description="Load-time: number of layers on the GPU.")
    main_gpu: int | None = Field(None, ge=0, lt=2**31, description="Load-time: index of the main GPU.")
    use_mmap: bool | None = Field(None, description="Load-time: map the weights from disk into memory.")
    num_thread: int | None = Field(None, ge=1, lt=2**31, description="Load-time: number of CPU threads.")

    @model_validator(mode="after")
    def _room_for_the_prompt(self) -> Options:
        if self.num_predict >= self.num_ctx:
            raise ValueError(
                f"num_predict {self.num_predict} leaves no room for a prompt in num_ctx {self.num_ctx}"
            )
        return self


class Repair(_Model):
    """How a row is asked again whose answer was truncated, empty or invalid."""

    temperature: float = Field(
        0.3,
        ge=0,
        le=100,
        description=(
            "Minimum temperature of a retry, which also has another seed. At temperature 0 a seed "
            "has no effect."
        ),
    )


class Vram(_Model):
    """Limits of GPU memory while this job runs."""

    high: float | None = Field(
        None,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description=(
            "From this use on, no model is loaded or enlarged. Up to 1: a share of the GPU; above: GB."
        ),
    )
    critical: float | None = Field(
        None,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description=(
            "From this use on, no rows are sent, and the model is unloaded until memory is free. "
            "Up to 1: a share of the GPU; above: GB."
        ),
    )
    keep_free_gb: float | None = Field(
        None, ge=0, le=10_000, allow_inf_nan=False, description="GB of the GPU that always stay free."
    )


class Sidecar(_Model):
    """The sidecar of a job."""

    model: str = Field(
        "",
        max_length=MOST_OF_MODEL,
        description=("Name of the model on the server. Only OpenAI batch lines work without it."),
    )
    models: dict[ModelName, ModelName] = Field(
        default_factory=dict,
        description=("OpenAI lines: the model to use for a name in them (`gpt-4o-mini: gemma3:12b`)."),
    )
    system: str = Field("", description="System message for all rows.")
    prompt: str | None = Field(
        None,
        description=(
            "Jinja2 template of the prompt, with the columns of the row as variables. OpenAI batch "
            "lines have their own messages."
        ),
    )
    examples: tuple[Example, ...] = Field((), description="Few-shot examples, part of the prefix.")
    mode: Literal["conversation", "isolated"] = Field(
        "conversation",
        description=(
            "conversation: earlier rows can be in the prompt. isolated: each row is asked in isolation."
        ),
    )
    id: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description="Column with the id of the row. Default: the row number from 1.",
    )
    options: Options = Field(default_factory=Options, description="Options of the model.")
    format: dict[str, Any] | Literal["json"] | None = Field(
        None,
        description=(
            "JSON Schema of the answer, or `json`. The server is constrained by it, and each "
            "answer is validated."
        ),
    )
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(
        None, description="Thinking of models that support it. Default: off."
    )
    trim: Trim = Field(
        default_factory=Trim,
        description=("Which earlier rows are in the prompt, and how a long conversation is trimmed."),
    )
    prime: Literal["auto", "always", "never"] = Field(
        "auto",
        description=(
            "Evaluate the prefix in each slot before the first row. auto: if measurements show "
            "that it saves time. Never with think."
        ),
    )
    long_rows: Literal["fail", "second_pass"] = Field(
        "fail",
        description=(
            "Rows that are too long for num_ctx. fail: they fail. second_pass: they are asked in "
            "isolation at the end, with a larger context window."
        ),
    )
    vram: Vram | None = Field(
        None,
        description=("Limits of GPU memory for this job. The stricter one of job and service applies."),
    )
    repair: Repair = Field(
        default_factory=Repair, description="How a row is asked again after an unusable answer."
    )
    segment: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["all"] = Field(
        200, description="Number of rows in one conversation, or `all`."
    )
    lanes: int | None = Field(
        None, ge=1, le=256, description="Parallel requests. Default: the setting of the service."
    )
    gold: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description="Column of known answers, with which the answers are compared.",
    )
    audit: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto", "off", False] = Field(
        "auto",
        description="Number of rows to ask again in isolation, as segments of a conversation end, to see "
        "whether the conversation changes the answers. auto: 2 % of the rows (above temperature 0: 4 %), at "
        "least 20, at most 400. off or 0: no audit.",
    )
    on_harm: Literal["report", "isolate", "fail"] = Field(
        "report",
        description=(
            "What to do if the audit shows harm. report: report it in log, status, summary and "
            "metrics. isolate: also ask the remaining rows in isolation, and the rows of harmed "
            "segments again. fail: end the job."
        ),
    )
    answer_key: str | None = Field(
        None,
        max_length=_MOST_OF_COLUMN,
        description=("With `format`: key of the answer that is compared with `gold`. Default: the only key."),
    )
    retries: int = Field(3, ge=0, le=20, description="Attempts after the first one.")
    timeout: float | None = Field(
        None,
        ge=0.1,
        le=86_400,
        description=(
            "Timeout of a request in seconds, 0.1 to 86,400. Default: learned from earlier answers."
        ),
    )
    max_failed: Annotated[int, Field(ge=0, le=10**12)] | Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description=("End the job early above this number (2, 50) or share (0.01) of failed rows.")
    )
    expect: Expect | None = Field(None, description="Expected row count and checksum of the upload.")
    output: tuple[Literal["jsonl", "csv"], ...] = Field(
        ("jsonl", "csv"), min_length=1, description="File formats of the results."
    )
    priority: int = Field(0, ge=-100, le=100, description="Jobs with a higher priority run first.")

    @property
    def audit_rows(self) -> int | None:
        """Rows that the audit may ask; None: `auto`."""
        return None if self.audit == "auto" else 0 if self.audit == "off" else int(self.audit)
