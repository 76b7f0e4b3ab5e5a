"""Parses Ollama's model descriptions and refuses models that do not run on the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spoolama.backends.base import HeldModel, LoadedModel, LoadSpec, ServerInfo
from spoolama.backends.gguf_header import MOST_KEPT, Tensor
from spoolama.errors import RequestRefused

__all__ = [
    "ModelFacts",
    "held_models",
    "listed",
    "loaded_model",
    "read_show",
    "refuse_cloud_name",
    "size_of",
    "too_small",
]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts of a model from `/api/show`."""

    can_think: bool
    trained_ctx: int | None
    sliding_window: int | None
    info: Mapping[str, Any] = field(default_factory=dict)
    """`model_info`: the keys of the GGUF header; lists are left out unless the answer is `verbose`."""
    tensors: tuple[Tensor, ...] = ()


def read_show(name: str, payload: Mapping[str, Any]) -> ModelFacts:
    """Parse the body of `/api/show`.

    Raises:
        RequestRefused: the model runs elsewhere or cannot chat.
    """
    if host := payload.get("remote_host"):
        raise RequestRefused(
            f"model {name!r} runs on {host}, not on this server",
            fix="Choose a model that runs on the server: rows are never sent to a remote one.",
        )
    capabilities = payload.get("capabilities")
    known = capabilities if isinstance(capabilities, list) else []
    if known and "completion" not in known:
        raise RequestRefused(
            f"model {name!r} cannot chat; its capabilities are: {', '.join(map(str, known))}",
            fix="Choose a model that can chat.",
        )
    info = payload.get("model_info")
    info = info if isinstance(info, dict) else {}
    kind = info.get("general.architecture")
    # The keys are those of the GGUF header; there 0 means none.
    return ModelFacts(
        can_think="thinking" in known,
        trained_ctx=_int(info.get(f"{kind}.context_length")) or None,
        sliding_window=_int(info.get(f"{kind}.attention.sliding_window")) or None,
        info={key: value for key, value in info.items() if not _is_long(value)},
        tensors=tuple(_tensors(payload.get("tensors"))),
    )


def _is_long(value: Any) -> bool:
    """Whether a value is dropped: a `verbose` reply has vocabularies of about 30 MB, which are not used."""
    return isinstance(value, list | str) and len(value) > MOST_KEPT


def _tensors(listed: Any) -> Iterator[Tensor]:
    """Yield the valid tensors of a list; types have llama.cpp's names."""
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict):
            continue
        name, kind, shape = _str(entry.get("name")), _str(entry.get("type")), entry.get("shape")
        if name is None or not isinstance(shape, list):
            continue
        sizes = [size for item in shape if (size := _int(item)) is not None and size > 0]
        if len(sizes) == len(shape):
            yield Tensor(name, kind, tuple(sizes))


def size_of(name: str, payload: Mapping[str, Any]) -> int | None:
    """Return the size of the model's files from the body of `/api/tags`; None: it is not listed."""
    entry = listed(name, payload)
    return (_int(entry.get("size")) or None) if entry is not None else None


def listed(name: str, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the model's entry in the body of `/api/ps` or `/api/tags`; None: it is not listed."""
    full = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    models = payload.get("models")
    for entry in models if isinstance(models, list) else []:
        if isinstance(entry, dict) and full.lower() in {
            str(entry.get("name")).lower(),
            str(entry.get("model")).lower(),
        }:
            return entry
    return None


def held_models(payload: Mapping[str, Any]) -> tuple[HeldModel, ...]:
    """Return every model in the body of `/api/ps`."""
    models = payload.get("models")
    return tuple(
        HeldModel(
            str(entry.get("name")),
            _int(entry.get("size")),
            _int(entry.get("size_vram")),
            _int(entry.get("context_length")),
        )
        for entry in (models if isinstance(models, list) else [])
        if isinstance(entry, dict)
    )


def loaded_model(
    name: str, entry: Mapping[str, Any], facts: ModelFacts, server: ServerInfo, *, load_s: float | None = None
) -> LoadedModel:
    """Combine an entry of `/api/ps` with the facts of the model."""
    return LoadedModel(
        name=name,
        digest=_str(entry.get("digest")),
        num_ctx=_int(entry.get("context_length")),
        slots=None,  # no route reports OLLAMA_NUM_PARALLEL
        server=server,
        size_bytes=_int(entry.get("size")),
        vram_bytes=_int(entry.get("size_vram")),
        can_think=facts.can_think,
        load_s=load_s,
        sliding_window=facts.sliding_window,
        trained_ctx=facts.trained_ctx,
    )


def refuse_cloud_name(name: str) -> None:
    """Refuse names that Ollama forwards to a remote service (`modelref.go`)."""
    tag = name.rpartition("/")[2].partition(":")[2].lower()
    if tag == "cloud" or tag.endswith("-cloud"):
        raise RequestRefused(
            f"model {name!r} is a cloud model",
            fix="Choose a model that runs on the server: rows are never sent to a remote one.",
        )


def too_small(spec: LoadSpec, window: int, trained: int | None) -> RequestRefused:
    """Return the error for a model that the server loaded with a smaller window than requested."""
    own = f"; the maximum of the model is {trained}" if trained is not None else ""
    fix = f"Set options.num_ctx to {window} or less"
    if trained is None or window < trained:
        fix += ", or give the server more memory"
    return RequestRefused(
        f"the server loaded {spec.model!r} with a window of {window} tokens instead of {spec.num_ctx}{own}",
        fix=f"{fix}.",
    )


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
