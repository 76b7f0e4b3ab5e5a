"""What Ollama says of a model: whether rows may go to it, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spoolama.backends.base import LoadedModel, LoadSpec, ServerInfo
from spoolama.errors import RequestRefused

__all__ = ["ModelFacts", "listed", "loaded_model", "read_show", "refuse_cloud_name", "too_small"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `/api/show` says of a model."""

    can_think: bool
    trained_ctx: int | None
    sliding_window: int | None


def read_show(name: str, payload: Mapping[str, Any]) -> ModelFacts:
    """The body of `/api/show`.

    Raises:
        RequestRefused: the model runs elsewhere, or cannot chat.
    """
    if host := payload.get("remote_host"):
        raise RequestRefused(
            f"model {name!r} does not run on this server but on {host}",
            mend="Choose a model that runs on the server: rows are never sent to a remote one.",
        )
    capabilities = payload.get("capabilities")
    known = capabilities if isinstance(capabilities, list) else []
    if known and "completion" not in known:
        raise RequestRefused(
            f"model {name!r} gives no answers; it can do: {', '.join(map(str, known))}",
            mend="Choose a model that can chat.",
        )
    info = payload.get("model_info")
    info = info if isinstance(info, dict) else {}
    kind = info.get("general.architecture")
    # The keys of the GGUF header; 0 stands there for: none.
    return ModelFacts(
        can_think="thinking" in known,
        trained_ctx=_int(info.get(f"{kind}.context_length")) or None,
        sliding_window=_int(info.get(f"{kind}.attention.sliding_window")) or None,
    )


def listed(name: str, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model's entry in the list of loaded ones, the body of `/api/ps`; None: it is not in memory."""
    full = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    models = payload.get("models")
    for entry in models if isinstance(models, list) else []:
        if isinstance(entry, dict) and full.lower() in {
            str(entry.get("name")).lower(),
            str(entry.get("model")).lower(),
        }:
            return entry
    return None


def loaded_model(
    name: str, entry: Mapping[str, Any], facts: ModelFacts, server: ServerInfo, *, load_s: float | None = None
) -> LoadedModel:
    """An entry of `/api/ps` and what is known of the model beside it."""
    return LoadedModel(
        name=name,
        digest=_str(entry.get("digest")),
        num_ctx=_int(entry.get("context_length")),
        slots=None,  # OLLAMA_NUM_PARALLEL is told by no route
        server=server,
        size_bytes=_int(entry.get("size")),
        vram_bytes=_int(entry.get("size_vram")),
        can_think=facts.can_think,
        load_s=load_s,
        sliding_window=facts.sliding_window,
        trained_ctx=facts.trained_ctx,
    )


def refuse_cloud_name(name: str) -> None:
    """Ollama hands such names on to a remote service (`modelref.go`)."""
    tag = name.rpartition("/")[2].partition(":")[2].lower()
    if tag == "cloud" or tag.endswith("-cloud"):
        raise RequestRefused(
            f"model {name!r} runs in a cloud",
            mend="Choose a model that runs on the server: rows are never sent to a remote one.",
        )


def too_small(spec: LoadSpec, window: int, trained: int | None) -> RequestRefused:
    """The server loaded the model with less than what was asked for."""
    own = f"; the model's own maximum is {trained}" if trained is not None else ""
    mend = f"Set options.num_ctx to {window} or less"
    if trained is None or window < trained:
        mend += ", or give the server more memory"
    return RequestRefused(
        f"the server loaded {spec.model!r} with a window of {window} tokens instead of {spec.num_ctx}{own}",
        mend=f"{mend}.",
    )


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
