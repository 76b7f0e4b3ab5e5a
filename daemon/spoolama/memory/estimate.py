"""Estimates how much memory loading a model takes, from the way llama.cpp allocates it.

The KV cache size follows llama.cpp (b10488, `llama-context.cpp`, `llama-kv-cache.cpp`,
`llama-kv-cache-iswa.cpp`) and was exact in every measurement. The compute buffer size is fitted to measured
loads (an H100 with Ollama, the embedded engine on a CPU) and depends on the widest part of the graph.
Assumptions: flash attention, 16-bit keys and values, one card or none. Not included: the prompt cache, which
grows in main memory while rows are answered, models spread over several cards, and vision models.
"""

from __future__ import annotations

from dataclasses import dataclass

from spoolama.backends.model_shape import ModelShape
from spoolama.memory.level import GB

PAD = 256
"""llama.cpp rounds the number of KV cells up to a multiple of this."""
CELL_BYTES = 2
"""Bytes of one number in keys, values and masks (16 bits)."""
FLOAT_BYTES = 4
LLAMA_BATCH = 512
"""llama.cpp's default batch size in tokens (`n_ubatch`)."""
CUDA_BYTES = 655_000_000
"""CUDA's own memory: 632 MB after each of seven loads, 19 to 23 MB more after a long prompt (an H100, driver
580, CUDA 13). Other cards may differ by some hundred MB."""
PROCESS_BYTES = 48_000_000
TOKEN_BYTES = 172
"""Memory of Python with the engine, and of each token of the vocabulary. Both come from the resident memory
of SmolLM2-135M and Gemma 3 270M, loaded with windows from 2K to 32K."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes that a load takes where it runs: on the card or in main memory."""

    weights_bytes: int
    kv_bytes: int
    """KV cache and the state of recurrent layers."""
    compute_bytes: int
    """The widest intermediate results, masks and outputs."""
    overhead_bytes: int
    """On a card: CUDA's own memory. In main memory: the process and its vocabulary."""

    @property
    def total_bytes(self) -> int:
        """The sum of all parts."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes


def estimate(
    shape: ModelShape,
    num_ctx: int,
    slots: int,
    *,
    batch: int | None = None,
    swa_full: bool | None = None,
    on_card: bool = True,
) -> Estimate:
    """Estimate the memory that a load needs.

    Args:
        shape: The model.
        num_ctx: Context window of one slot in tokens; limited to the model's trained context length.
        slots: Number of parallel requests; each has its own cells.
        batch: Tokens evaluated at once; None: Ollama's choice on a card, llama.cpp's 512 otherwise.
        swa_full: Whether sliding-window layers keep the whole window; None: derived from the shape.
        on_card: True: all layers are on one card. False: everything is in main memory.
    """
    slots = max(1, slots)
    window = max(1, num_ctx if shape.trained_ctx is None else min(num_ctx, shape.trained_ctx))
    if batch is None:
        batch = ollama_batch(window, slots) if on_card else LLAMA_BATCH
    cells = _padded(_padded(window * slots) // slots)
    batch = min(batch, cells * slots)  # llama.cpp limits the batch to the cells of all slots
    if swa_full is None:
        swa_full = slots * _kv_bytes(shape, window, window) <= shape.whole_window_bytes
    sliding = cells
    if shape.sliding_window is not None and not swa_full:
        sliding = _padded(min(cells, shape.sliding_window + batch))
    masks = CELL_BYTES * batch * (cells + (sliding if any(shape.slides) else 0))
    return Estimate(
        weights_bytes=_weights(shape, on_card=on_card),
        kv_bytes=slots * (_kv_bytes(shape, cells, sliding) + shape.state_bytes),
        compute_bytes=masks + _widest(shape, batch, slots, on_card=on_card),
        overhead_bytes=CUDA_BYTES if on_card else PROCESS_BYTES + TOKEN_BYTES * (shape.vocab_size or 0),
    )


def ollama_batch(num_ctx: int, slots: int) -> int:
    """Return the batch size in tokens that Ollama chooses for the windows of all slots together.

    From `generationBatchForContext` in server/sched.go of 0.33; Ollama uses less if little memory is free.
    """
    total = num_ctx * max(1, slots)
    return 512 if total <= 4096 else 1024 if total <= 32768 else 2048


def words_of(estimate: Estimate) -> str:
    """`an estimated 9.4 GB: weights 7.3, keys and values 1.1, computing 0.3, the rest 0.7`; GB of 2^30."""
    return (
        f"an estimated {_gb(estimate.total_bytes)} GB: weights {_gb(estimate.weights_bytes)}, "
        f"keys and values {_gb(estimate.kv_bytes)}, computing {_gb(estimate.compute_bytes)}, "
        f"the rest {_gb(estimate.overhead_bytes)}"
    )


def _padded(cells: int) -> int:
    return -(-cells // PAD) * PAD


def _kv_bytes(shape: ModelShape, cells: int, sliding: int) -> int:
    """KV cache of one slot: the sum over the layers of cells x heads x (key + value)."""
    total = 0
    for heads, slides in zip(shape.kv_heads, shape.slides, strict=True):
        if slides:
            total += sliding * heads * (shape.sliding_key_length + shape.sliding_value_length)
        else:
            total += cells * heads * (shape.key_length + shape.value_length)
    return total * CELL_BYTES


def _weights(shape: ModelShape, *, on_card: bool) -> int:
    """Bytes of weights where the load runs; without a list of tensors the whole file, an upper bound."""
    if on_card:
        return max(0, shape.weights_bytes - (shape.host_bytes or 0))
    return shape.weights_bytes + (shape.repacked_bytes or 0)


def _widest(shape: ModelShape, batch: int, slots: int, *, on_card: bool) -> int:
    """Peak size of the intermediate results.

    For each token of a batch: gate, up and their product (3 x feed-forward floats), the residual stream and
    its norm (3 x embedding), and in main memory the embeddings that were looked up (2 x embedding). Fitted to
    measured loads of three models. Two cases are not measured: mixture-of-experts models have several such
    results for each token and add them up, and attention can be wider than a narrow feed-forward part. Logits
    are one row for each slot.
    """
    width, forward = shape.embedding_length, shape.feed_forward_length or 0
    queries, keys = shape.head_count * shape.key_length, max(shape.kv_heads) * shape.key_length
    experts = forward + (shape.experts_used or 0) * width
    widest = max(3 * forward, experts, 2 * queries + 2 * keys) + (3 if on_card else 5) * width
    return max(batch * widest, slots * (shape.vocab_size or 0)) * FLOAT_BYTES + _output(shape, slots, on_card)


def _output(shape: ModelShape, slots: int, on_card: bool) -> int:
    """Size of the output buffer for logits, which is always in main memory."""
    return 0 if on_card else slots * (shape.vocab_size or 0) * FLOAT_BYTES


def _gb(size: int) -> str:
    return f"{size / GB:.1f}"
