"""Defines the service's settings and reads them from a YAML file and from the environment.

The variable `SPOOLAMA_A__B` overrides the key `a: {b: …}`. `config/spoolama.yaml` lists every key with its
default.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from spoolama.errors import ConfigError, Problem
from spoolama.job.rows import MAX_CELL_BYTES
from spoolama.job.yaml_tree import Tree, read_yaml
from spoolama.memory.level import RelativeLimits
from spoolama.regular import NotRegular, open_regular
from spoolama.service.settings_words import meant, problems_of

__all__ = [
    "PREFIX",
    "BackendSection",
    "KeepSection",
    "LogSection",
    "Settings",
    "VramSection",
    "load_settings",
    "variables",
]

PREFIX = "SPOOLAMA_"
OLLAMA_URL = "http://127.0.0.1:11434"
_OTHER_VARIABLES = {"SPOOLAMA_CONFIG"}
_FOR_TESTS = "SPOOLAMA_TEST_"


def _as_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_as_path)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mark = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BackendSection(_Section):
    """The model server."""

    kind: Literal["ollama", "embedded", "openai"] = Field("ollama", description="The kind of model server.")
    url: str | None = Field(
        None,
        pattern="^https?://[^/\\s]+",
        description="The server's address. Default for ollama: http://127.0.0.1:11434. openai needs one.",
    )
    api_key_file: FilePath | None = Field(
        None,
        description="A file whose first line is the bearer token. LoadCredential= can provide it.",
    )
    shared: bool = Field(
        False, description="Other programs use this server's models too, so never release them."
    )
    threads: int | None = Field(None, ge=1, description="embedded: CPU threads. Default: all cores.")
    cache_dir: FilePath | None = Field(
        None, description="embedded: where model packages are unpacked. Default: the user's cache directory."
    )

    @property
    def address(self) -> str | None:
        """The server's address; None for embedded, which has no address."""
        if self.kind == "embedded":
            return None
        return self.url or (OLLAMA_URL if self.kind == "ollama" else None)


class VramSection(_Section):
    """Limits of memory pressure. A number up to 1 is a share of the total, above that GB (2^30 bytes)."""

    high: Mark = Field(
        0.875, description="From here on no model is loaded or enlarged, and idle models are released."
    )
    critical: Mark = Field(
        0.9375, description="From here on no rows are sent, and the model is released until memory is free."
    )
    keep_free_gb: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="GB that all processes together must leave free; critical begins below that.",
    )
    host_high: Share = Field(0.9, description="`high` for this machine's memory, as a share in use.")
    host_critical: Share = Field(0.95, description="`critical` for this machine's memory, as a share in use.")
    cards: list[int] = Field(
        default_factory=list, description="NVML indexes of the GPUs to watch. Default: all."
    )

    @model_validator(mode="after")
    def _in_order(self) -> VramSection:
        if (self.high <= 1) == (self.critical <= 1) and self.high > self.critical:
            raise ValueError("vram.high is above vram.critical")
        if self.host_high > self.host_critical:
            raise ValueError("vram.host_high is above vram.host_critical")
        return self

    @property
    def marks(self) -> RelativeLimits:
        """The limits of cards."""
        return RelativeLimits(self.high, self.critical, self.keep_free_gb)

    @property
    def host_marks(self) -> RelativeLimits:
        """The limits of this machine's memory."""
        return RelativeLimits(self.host_high, self.host_critical, 0.0)


class LogSection(_Section):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged. Row content is logged only at level debug."
    )


class KeepSection(_Section):
    """How long results are kept. By default forever."""

    done_days: Days | None = Field(None, description="Days until a published job is removed from done/.")
    failed_days: Days | None = Field(None, description="The same for failed/.")


class Settings(_Section):
    """All settings. The defaults apply if there is no file."""

    spool: FilePath = Field(
        Path("/var/spool/spoolama"), description="The spool directory; must be on one file system."
    )
    backend: BackendSection = Field(default_factory=BackendSection, description="The model server.")
    lanes: int = Field(
        1, ge=1, le=256, description="Parallel requests; must match the server's OLLAMA_NUM_PARALLEL."
    )
    quiet_s: Seconds = Field(
        2.0, description="Seconds that a file must be unchanged (by ctime) before it is claimed."
    )
    rescan_s: float = Field(
        10.0, gt=0, le=3600, description="Seconds between two scans of incoming/ when no event starts one."
    )
    openai_wait_s: Seconds = Field(
        10.0, description="Seconds that an OpenAI batch file waits for an optional sidecar."
    )
    lonely_after_s: Seconds = Field(
        600.0, description="Seconds until data without a sidecar, or the reverse, causes a warning."
    )
    max_bytes: int = Field(
        10_000_000_000, ge=1, description="Largest data file, in bytes as uploaded; larger ones are held."
    )
    min_free_bytes: int = Field(
        500_000_000,
        ge=0,
        description="Minimum free bytes on the disk of the spool; with less, no job is claimed.",
    )
    default_sidecar: FilePath | None = Field(
        None, description="Sidecar for data files without one. Default: such files wait for a sidecar."
    )
    max_cell_bytes: int = Field(
        MAX_CELL_BYTES,
        ge=100,
        le=1_000_000,
        description="Largest value of a row, in bytes; a row with a larger one fails. "
        "A prompt that does not fit the context window fails in any case.",
    )
    final_newline: Literal["require", "accept"] = Field(
        "require",
        description="Whether data must end with a newline; without one it may be truncated.",
    )
    release_after_s: Seconds = Field(
        300.0, description="Seconds with an empty queue until the models loaded by the service are released."
    )
    drain_s: Seconds = Field(
        60.0, description="Seconds for rows in flight to finish at stop; must be below TimeoutStopSec."
    )
    vram: VramSection = Field(
        default_factory=VramSection, description="Limits of memory pressure, and the GPUs to watch."
    )
    log: LogSection = Field(default_factory=LogSection, description="Logging.")
    keep: KeepSection = Field(default_factory=KeepSection, description="How long results are kept.")

    @model_validator(mode="after")
    def _address_known(self) -> Settings:
        if self.backend.kind == "openai" and self.backend.url is None:
            raise ValueError("backend.kind openai needs backend.url, such as http://127.0.0.1:8000/v1")
        return self


def variables() -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield each environment variable: its name, the key it overrides, and the field."""
    yield from _variables(Settings, ())


def _variables(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for name, info in model.model_fields.items():
        path = (*above, name)
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _variables(annotation, path)
        else:
            yield PREFIX + "__".join(path).upper(), path, info


def load_settings(path: Path | None, env: Mapping[str, str]) -> Settings:
    """Read the configuration: defaults, then the file, then the environment.

    Args:
        path: The YAML file; None: only defaults. Relative paths in it are relative to its directory.
        env: The environment. Unknown names with the prefix SPOOLAMA_ are errors, like unknown keys.

    Raises:
        ConfigError: with all problems, each on its own line with file, line and key.
    """
    name = str(path) if path else "settings"
    tree = _read(path, name)
    values = copy.deepcopy(tree.data)
    problems = list(tree.problems) + _overlay(values, env)
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += problems_of(error, file=name, tree=tree, model=Settings)
    if problems or settings is None:
        raise ConfigError("\n".join(str(p) for p in problems))
    return _anchored(settings, path, env)


def _read(path: Path | None, name: str) -> Tree:
    if path is None:
        return Tree({}, {}, [])
    try:
        with open_regular(path) as file:
            text = file.read()
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except NotRegular as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    if not any(line.strip() and not line.lstrip().startswith(b"#") for line in text.splitlines()):
        return Tree({}, {}, [])  # only comments: all defaults
    return read_yaml(text, name)


def _overlay(values: dict[str, Any], env: Mapping[str, str]) -> list[Problem]:
    """Override the file's settings from the environment; returns the problems."""
    known = {variable: (path, info) for variable, path, info in variables()}
    problems = []
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable in _OTHER_VARIABLES or variable.startswith(_FOR_TESTS):
            continue
        if variable not in known:
            hint = meant(variable, known)
            problems.append(Problem("environment", None, None, variable, "unknown setting", hint))
            continue
        path, info = known[variable]
        text: str | None = env[variable]
        if text == "" and _may_be_absent(info.annotation):
            text = None
        try:
            value = TypeAdapter(info.rebuild_annotation()).validate_python(
                _items(text) if get_origin(info.annotation) is list else text, strict=False
            )
        except ValidationError as error:
            message = str(error.errors()[0]["msg"]).lower().replace("input should be", "must be")
            problems.append(Problem("environment", None, None, variable, f"{message}, not {text!r}"))
            continue
        here = values
        for part in path[:-1]:
            if not isinstance(here.get(part), dict):
                here[part] = {}
            here = here[part]
        here[path[-1]] = value
    return problems


def _items(text: str | None) -> list[str]:
    """Split a list that is written as `0,2` or as `[0, 2]`."""
    return [item.strip() for item in (text or "").strip().strip("[]").split(",") if item.strip()]


def _may_be_absent(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType) and type(None) in get_args(annotation)


def _anchored(settings: Settings, path: Path | None, env: Mapping[str, str]) -> Settings:
    """Make paths absolute: relative to the file's directory, or to the working directory for variables."""
    file_base = path.absolute().parent if path else Path.cwd()

    def anchor(value: Path | None, variable: str) -> Path | None:
        return value and (Path.cwd() if variable in env else file_base) / value

    backend = settings.backend.model_copy(
        update={
            "api_key_file": anchor(settings.backend.api_key_file, "SPOOLAMA_BACKEND__API_KEY_FILE"),
            "cache_dir": anchor(settings.backend.cache_dir, "SPOOLAMA_BACKEND__CACHE_DIR"),
        }
    )
    return settings.model_copy(
        update={
            "spool": anchor(settings.spool, "SPOOLAMA_SPOOL"),
            "default_sidecar": anchor(settings.default_sidecar, "SPOOLAMA_DEFAULT_SIDECAR"),
            "backend": backend,
        }
    )
