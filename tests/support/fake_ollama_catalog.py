"""The fake's answers about its models: `/api/tags`, `/api/show`, `/api/ps`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from support.fake_ollama_engine import Runner
from support.fake_ollama_script import FakeModel, Script

_TEMPLATES = {
    "chatml": "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
    "{{ end }}<|im_start|>assistant\n",
    "gemma": "{{- range .Messages }}<start_of_turn>{{ .Role }}\n{{ .Content }}<end_of_turn>\n"
    "{{ end }}<start_of_turn>model\n",
}


def details(model: FakeModel) -> dict[str, Any]:
    """Return the details of a model."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization_level,
    }


def tags_entry(model: FakeModel) -> dict[str, Any]:
    """Return a line of the list of models."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": "2026-11-23T12:25:01.465229174Z",
        "size": model.size_bytes,
        "digest": model.full_digest,
        "details": {**details(model), "context_length": model.context_length, "embedding_length": 576},
        "capabilities": list(model.capabilities),
    }


def show_body(model: FakeModel) -> dict[str, Any]:
    """Return all about one model."""
    remote = {"remote_model": model.name, "remote_host": model.remote_host} if model.remote_host else {}
    return {
        "modelfile": f"FROM {model.name}\n",
        "parameters": 'stop                           "<|im_end|>"',
        "template": _TEMPLATES[model.template],
        "details": details(model),
        "model_info": {
            "general.architecture": model.family,
            "general.parameter_count": model.parameters,
            f"{model.family}.context_length": model.context_length,
            f"{model.family}.embedding_length": 576,
            f"{model.family}.block_count": 30,
            f"{model.family}.feed_forward_length": 1536,
            f"{model.family}.attention.head_count": 9,
            f"{model.family}.attention.head_count_kv": 3,
            f"{model.family}.vocab_size": 49152,
            **({f"{model.family}.attention.sliding_window": model.window} if model.window else {}),
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": None,
        },
        "tensors": [{"name": "output_norm.weight", "type": "F32", "shape": [576]}],
        "capabilities": list(model.capabilities),
        "modified_at": "2026-11-23T12:25:01.465229174Z",
        **remote,
    }


def ps_entry(runner: Runner, script: Script) -> dict[str, Any]:
    """Return a loaded model; one without expiry has a date centuries ahead."""
    model = runner.model
    until = datetime.now(UTC) + timedelta(days=106_751 if runner.forever else 5 / 1440)
    size = model.size_bytes + runner.num_ctx * len(runner.slots) * 23_040
    share = script.vram_share
    vram = model.vram_bytes if share is None else round(size * share)
    if script.memory is not None and (held := script.memory.held.get(model.name)):
        size, vram = held.listed_bytes, held.listed_vram
    return {
        "name": model.name,
        "model": model.name,
        "size": size,
        "digest": model.full_digest,
        "details": details(model),
        "expires_at": until.strftime("%Y-%m-%dT%H:%M:%S.%f000Z"),
        "size_vram": vram,
        "context_length": runner.num_ctx,
    }
