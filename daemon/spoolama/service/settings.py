"""Defines the service's settings and reads them from a YAML file and from the environment.

`config/spoolama.yaml` explains every key and has its default. The variable `SPOOLAMA_A__B` overrides the key
`a: {b: …}`.
"""

from __future__ import annotations

import copy
import difflib
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
    ValidationInfo,
    model_validator,
)

from spoolama.backends.factory import BackendKind
from spoolama.errors import ConfigError, Problem
from spoolama.job.rows.reader import MAX_CELL_BYTES
from spoolama.job.sidecar import MOST_LANES
from spoolama.job.yaml_problems import problems_of
from spoolama.job.yaml_tree import Tree, read_yaml
from spoolama.memory.level import RelativeLimits
from spoolama.regular import NotRegular, open_regular

PREFIX = "SPOOLAMA_"
OLLAMA_URL = "http://127.0.0.1:11434"
_OTHER_VARIABLES = {"SPOOLAMA_CONFIG"}


def _as_path(value: object, info: ValidationInfo) -> object:
    """A path, relative to the directory in the context of the validation."""
    return (info.context or Path.cwd()) / value if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_as_path)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mark = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
"""Up to 1 a share of the total memory, above that GB (2^30 bytes)."""
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BackendSection(_Section):
    """The model server."""

    kind: BackendKind = "ollama"
    url: str | None = Field(None, pattern="^https?://[^/\\s]+")
    api_key_file: FilePath | None = None
    shared: bool = False
    threads: int | None = Field(None, ge=1)
    cache_dir: FilePath | None = None

    @property
    def address(self) -> str | None:
        """The server's address; None for embedded, which has no address."""
        if self.kind == "embedded":
            return None
        return self.url or (OLLAMA_URL if self.kind == "ollama" else None)

    def api_key(self) -> str | None:
        """Read the API key from its file; None: no file is set.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        if self.api_key_file is None:
            return None
        try:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"backend.api_key_file: {self.api_key_file} cannot be read: {error}") from None
        if not lines or not lines[0].strip():
            raise ConfigError(f"backend.api_key_file: the first line of {self.api_key_file} is empty")
        return lines[0].strip()


class VramSection(_Section):
    """Limits of memory pressure, and the GPUs to watch."""

    high: Mark = 0.875
    critical: Mark = 0.9375
    keep_free_gb: float = Field(0.5, ge=0, allow_inf_nan=False)
    host_high: Share = 0.9
    host_critical: Share = 0.95
    cards: list[int] = Field(default_factory=list)
    """NVML indexes; empty: all GPUs."""

    @model_validator(mode="after")
    def _in_order(self) -> VramSection:
        if (self.high <= 1) == (self.critical <= 1) and self.high > self.critical:
            raise ValueError("vram.high is above vram.critical")
        if self.host_high > self.host_critical:
            raise ValueError("vram.host_high is above vram.host_critical")
        return self

    @property
    def limits(self) -> RelativeLimits:
        """The limits of cards."""
        return RelativeLimits(self.high, self.critical, self.keep_free_gb)

    @property
    def host_limits(self) -> RelativeLimits:
        """The limits of this machine's memory."""
        return RelativeLimits(self.host_high, self.host_critical, 0.0)


class LogSection(_Section):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class KeepSection(_Section):
    """How long published jobs are kept; None: forever."""

    done_days: Days | None = None
    failed_days: Days | None = None


class Settings(_Section):
    """All settings. The defaults apply if there is no file."""

    spool: FilePath = Path("/var/spool/spoolama")
    backend: BackendSection = Field(default_factory=BackendSection)
    lanes: int = Field(1, ge=1, le=MOST_LANES)
    quiet_s: Seconds = 2.0
    rescan_s: float = Field(10.0, gt=0, le=3600)
    openai_wait_s: Seconds = 10.0
    unpaired_after_s: Seconds = 600.0
    max_bytes: int = Field(10_000_000_000, ge=1)
    min_free_bytes: int = Field(500_000_000, ge=0)
    default_sidecar: FilePath | None = None
    max_cell_bytes: int = Field(MAX_CELL_BYTES, ge=100, le=1_000_000)
    final_newline: Literal["require", "accept"] = "require"
    release_after_s: Seconds = 300.0
    drain_s: Seconds = 60.0
    vram: VramSection = Field(default_factory=VramSection)
    log: LogSection = Field(default_factory=LogSection)
    keep: KeepSection = Field(default_factory=KeepSection)

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
        settings = Settings.model_validate(values, context=path.absolute().parent if path else None)
    except ValidationError as error:
        problems += problems_of(error, name=name, tree=tree, model=Settings)
    if problems or settings is None:
        raise ConfigError("\n".join(str(p) for p in problems))
    return settings


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
        if not variable.startswith(PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f"did you mean {close[0]}?" if close else None
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
