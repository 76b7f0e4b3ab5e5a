"""The estimate of a load compared with measurements on a card and with published figures.

Shapes of the published models come from their GGUF headers, as llama.cpp printed them in the cited threads.
gemma2:9b, qwen3:8b and phi4:14b are left out, because no published figure of their KV cache with a known
window was found.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoolama.backends.model_shape import ModelShape, shape_of
from spoolama.memory.estimate import (
    Estimate,
    estimate,
    ollama_batch,
    words_of,
)

MIB = 1 << 20
GIB = 1 << 30
LOADS = json.loads((Path(__file__).parents[2] / "data" / "h100-ollama.json").read_text())["loads"]
NAMES = [f"{load['parallel']}x{load['num_ctx']}" for load in LOADS]


def shape(kind: str, layers: int, width: int, forward: int, heads: int, kv: Any, **more: Any) -> ModelShape:
    """A model by its header; `__` in a name stands for a dot."""
    size = more.pop("size", 0)
    pairs = {
        "block_count": layers,
        "embedding_length": width,
        "feed_forward_length": forward,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    found = shape_of({"general.architecture": kind, **{f"{kind}.{k}": v for k, v in pairs.items()}}, size)
    assert found is not None
    return found


def gemma3_12b(size: int) -> ModelShape:
    """The shape of the model on the H100."""
    wide = {"attention__key_length": 256, "attention__value_length": 256, "attention__sliding_window": 1024}
    return shape("gemma3", 48, 3840, 15360, 16, 8, vocab_size=262_144, size=size, **wide)


LLAMA_8B = shape("llama", 32, 4096, 14336, 32, 8, vocab_size=128_256, size=16_068_894_912)
"""Dimensions: ollama/ollama#5821; the file is F16 (14.96 GiB, llama.cpp tools/quantize/README.md)."""
LLAMA_70B = shape("llama", 80, 8192, 28672, 64, 8)
"""ollama/ollama#6279."""
MISTRAL_7B = shape("llama", 32, 4096, 14336, 32, 8, attention__sliding_window=4096)
"""mistralai/Mistral-7B-v0.1, config.json: llama.cpp keeps all of its window."""
COMMAND_R7B = shape("cohere2", 32, 4096, 14336, 32, 8, attention__sliding_window=4096)
"""CohereLabs/c4ai-command-r7b-12-2024, config.json."""
GEMMA4_E4B = shape(
    "gemma4",
    42,
    2560,
    10240,
    8,
    2,
    attention__key_length=512,
    attention__value_length=512,
    attention__key_length_swa=256,
    attention__value_length_swa=256,
    attention__sliding_window=512,
    attention__sliding_window_pattern=[(n + 1) % 6 != 0 for n in range(42)],
    attention__shared_kv_layers=18,
)
"""ggml-org/llama.cpp#21730: full layers 5, 11, 17 and 23 with heads of 512, the later ones use theirs."""
QWEN_27B = shape(
    "qwen35",
    64,
    5120,
    17408,
    24,
    4,
    attention__key_length=256,
    attention__value_length=256,
    vocab_size=248_320,
    ssm__conv_kernel=4,
    ssm__state_size=128,
    ssm__group_count=16,
    ssm__inner_size=6144,
)
"""Headers in ggml-org/llama.cpp#23792 and, for the state, #22105."""


@pytest.mark.parametrize("load", LOADS, ids=NAMES)
def test_the_kv_cache_is_that_of_the_card(load: dict[str, Any]) -> None:
    """The KV cache equals to the byte what llama-server logged under Ollama on an H100, sliding
    layers included.
    """
    logged = sum(size for _, what, size in load["llama_server_mib"] if what == "KV")

    assert estimate(gemma3_12b(1), load["num_ctx"], load["parallel"]).kv_bytes == logged * MIB


@pytest.mark.parametrize("load", LOADS, ids=NAMES)
def test_the_compute_buffer_is_that_of_the_card(load: dict[str, Any]) -> None:
    """The estimate is within 1 % of the compute buffer, whose size follows Ollama's batch and the masks."""
    logged = sum(
        size for place, what, size in load["llama_server_mib"] if (place, what) == ("CUDA0", "compute")
    )

    need = estimate(gemma3_12b(1), load["num_ctx"], load["parallel"])

    assert need.compute_bytes == pytest.approx(logged * MIB, rel=0.01)


@pytest.mark.parametrize("load", LOADS, ids=NAMES)
def test_the_total_is_that_of_the_card(load: dict[str, Any]) -> None:
    """The total is within 1 % with the tensors' logged size, and within 15 % with the recorded
    file size of 7.7 GB.
    """
    used = load["nvml_used_loaded"] - load["nvml_used_before"]
    tensors = sum(
        size for place, what, size in load["llama_server_mib"] if (place, what) == ("CUDA0", "model")
    )

    def total(size: float) -> int:
        return estimate(gemma3_12b(round(size)), load["num_ctx"], load["parallel"]).total_bytes

    assert total(tensors * MIB) == pytest.approx(used, rel=0.01)
    assert total(7.7e9) == pytest.approx(used, rel=0.15)


@pytest.mark.parametrize(
    ("model", "window", "published"),
    [
        # huggingface/blog, llama31.md: in FP16, for 1k, 16k and 128k tokens. GB means GiB there.
        (LLAMA_8B, 1024, 0.125 * GIB),
        (LLAMA_8B, 16_000, 1.95 * GIB),
        (LLAMA_8B, 128_000, 15.62 * GIB),
        (LLAMA_70B, 1024, 0.313 * GIB),
        (LLAMA_70B, 16_000, 4.88 * GIB),
        (LLAMA_70B, 128_000, 39.06 * GIB),
        # ggml-org/llama.cpp#10136 (ngxson): "around 512MB" at 4096; #8101: a failed allocation in bytes.
        (LLAMA_8B, 4096, 512 * MIB),
        (LLAMA_8B, 1_048_576, 137_438_953_504),
        # fedora-copr/logdetective#106, a log; vocabulary and rope base are those of Mistral 7B v0.2.
        (MISTRAL_7B, 2048, 256 * MIB),
        (MISTRAL_7B, 32_768, 4096 * MIB),
    ],
)
def test_the_kv_cache_is_as_published(model: ModelShape, window: int, published: float) -> None:
    """The KV cache is within 1 % of published figures for models without a sliding window."""
    assert estimate(model, window, 1).kv_bytes == pytest.approx(published, rel=0.01)


def test_sliding_layers_save_the_memory_measured_on_command_r7b() -> None:
    """ggml-org/llama.cpp#13194: 11459 MiB with the whole window, 9115 MiB without, `-c 31000`, batch 2048."""
    whole = estimate(COMMAND_R7B, 31_000, 1, batch=2048, swa_full=True)
    sliding = estimate(COMMAND_R7B, 31_000, 1, batch=2048)

    assert whole.kv_bytes - sliding.kv_bytes == pytest.approx((11459 - 9115) * MIB, rel=0.01)


def test_shared_layers_are_left_out_as_in_gemma_4() -> None:
    """ggml-org/llama.cpp#21730: 2048 MiB for the four full layers at 131072 cells; half at half of them."""
    whole, half = (estimate(GEMMA4_E4B, cells, 1, batch=512).kv_bytes for cells in (131_072, 65_536))

    assert whole - half == 1024 * MIB


def test_a_hybrid_keeps_keys_of_every_fourth_layer_and_a_state() -> None:
    """mitchross/talos-argocd-proxmox#1995: 16 of 64 layers, 32 KiB a token at 8 bits, so 64 at 16; state:
    299.25 MiB for two slots (ggml-org/llama.cpp#23792)."""
    small, large = (estimate(QWEN_27B, cells, 1).kv_bytes for cells in (4096, 8192))

    assert large - small == 4096 * 64 * 1024
    assert 2 * QWEN_27B.state_bytes == 299.25 * MIB


@pytest.mark.parametrize(("batch", "published"), [(512, 132), (2048, 568)])
def test_the_compute_buffer_is_as_published_for_another_model(batch: int, published: int) -> None:
    """The estimate is within 5 % of CUDA's compute buffer for Qwen 27B at 4096 tokens
    (GenerelSchwerz/llama.cpp#62).
    """
    need = estimate(QWEN_27B, 4096, 1, batch=batch)

    assert need.compute_bytes == pytest.approx(published * MIB, rel=0.05)


@pytest.mark.parametrize(
    ("num_ctx", "slots", "batch"),
    [(2048, 1, 512), (4096, 1, 512), (4352, 1, 1024), (8192, 4, 1024), (32768, 1, 1024), (8448, 4, 2048)],
)
def test_ollama_evaluates_more_at_once_with_more_windows(num_ctx: int, slots: int, batch: int) -> None:
    """The batch is 512 tokens up to 4096 of all windows together, 1024 up to 32768, and 2048 beyond."""
    assert ollama_batch(num_ctx, slots) == batch


def test_cells_come_in_steps_of_256() -> None:
    """llama.cpp rounds the window of a slot up: 1001 tokens take what 1024 take, 3 x 300 what 3
    x 512 take.
    """
    assert estimate(LLAMA_8B, 1001, 1).kv_bytes == estimate(LLAMA_8B, 1024, 1).kv_bytes
    assert estimate(LLAMA_8B, 300, 3).kv_bytes == estimate(LLAMA_8B, 512, 3).kv_bytes


def test_a_window_beyond_the_trained_one_counts_as_that() -> None:
    """A window longer than the trained one counts as that, because Ollama cuts it and the embedded engine
    refuses it.
    """
    model = shape("llama", 30, 576, 1536, 9, 3, context_length=8192)

    assert estimate(model, 32_768, 2) == estimate(model, 8192, 2)


def test_tables_in_main_memory_are_not_on_the_card() -> None:
    """The card holds the file without the tables; main memory holds the whole file and what the
    CPU copies.
    """
    model = ModelShape(
        "llama", 1, (1,), (False,), 8, 8, 8, 8, 1, 8, 1000, vocab_size=10, host_bytes=300, repacked_bytes=50
    )

    assert estimate(model, 256, 1).weights_bytes == 700
    assert estimate(model, 256, 1, on_card=False).weights_bytes == 1050


def test_sliding_layers_keep_all_of_a_window_that_is_short_enough() -> None:
    """The embedded engine keeps sliding layers whole up to 4 GiB, and a longer window slides."""
    model = replace(gemma3_12b(1), whole_window_bytes=4 * GIB)

    assert estimate(model, 8192, 1) == estimate(model, 8192, 1, swa_full=True)
    assert estimate(model, 16_384, 1) == estimate(model, 16_384, 1, swa_full=False)


def test_the_text_says_that_it_is_an_estimate() -> None:
    """The text gives the total and its parts in GB and says that it is an estimate."""
    need = Estimate(*(int(part * 2**30) for part in (7.3, 1.1, 0.3, 0.7)))

    assert words_of(need) == (
        "an estimated 9.4 GB: weights 7.3, keys and values 1.1, computing 0.3, the rest 0.7"
    )
