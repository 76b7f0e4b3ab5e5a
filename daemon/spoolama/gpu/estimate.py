"""What a load of a model will need in memory, estimated before it, as llama.cpp allocates.

Keys and values are reckoned as llama.cpp does it (b10488, `llama-context.cpp`, `llama-kv-cache.cpp`,
`llama-kv-cache-iswa.cpp`) and were exact wherever they were measured. What computing takes was read off
measured loads (an H100 under Ollama, the embedded engine on a CPU) and follows the widest place of the graph.
Assumed: flash attention, keys and values of 16 bits, one card or none. Not in it: the prompt cache, which
grows in main memory while rows are answered, and what a model of several cards or of images takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from spoolama.backends.model_shape import ModelShape
from spoolama.gpu.limits import GB

__all__ = ["Estimate", "estimate", "ollama_batch", "words_of"]

PAD = 256
"""Cells come in such steps."""
CELL_BYTES = 2
"""Of a number in keys, values and masks: 16 bits."""
FLOAT_BYTES = 4
LLAMA_BATCH = 512
"""Tokens that llama.cpp evaluates at once unless told otherwise (`n_ubatch`)."""
CUDA_BYTES = 655_000_000
"""CUDA's own memory: 632 MB after each of seven loads, 19 to 23 MB more after a long prompt (an H100, driver
580, CUDA 13). Other cards will differ by some hundred MB."""
PROCESS_BYTES = 48_000_000
TOKEN_BYTES = 172
"""Python with the engine, and what it keeps for each token of the vocabulary: from the resident memory of
SmolLM2-135M and Gemma 3 270M, loaded with windows from 2K to 32K."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes that a load is expected to take where it runs: on the card, or in main memory."""

    weights_bytes: int
    kv_bytes: int
    """Keys and values, and the state of recurrent layers."""
    compute_bytes: int
    """The widest intermediate results, masks and outputs."""
    overhead_bytes: int
    """CUDA's own memory on a card; the process and its vocabulary in main memory."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
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
    """What a load is expected to need.

    Args:
        shape: The model.
        num_ctx: Window of one slot in tokens; one that is longer than the model was made for counts as that.
        slots: Requests at once; each has its own cells.
        batch: Tokens evaluated at once; None: as Ollama chooses on a card, llama.cpp's 512 elsewhere.
        swa_full: Whether sliding layers keep the whole window; None: as the shape says of its server.
        on_card: Whether all layers go to one card; else all of it stays in main memory.
    """
    slots = max(1, slots)
    window = max(1, num_ctx if shape.trained_ctx is None else min(num_ctx, shape.trained_ctx))
    if batch is None:
        batch = ollama_batch(window, slots) if on_card else LLAMA_BATCH
    cells = _padded(_padded(window * slots) // slots)
    batch = min(batch, cells * slots)  # llama.cpp evaluates no more at once than all windows hold
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
    """Tokens that Ollama has evaluated at once, from all slots' windows together.

    `generationBatchForContext` in server/sched.go of 0.33; it takes less where little memory is free.
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
    """Of one slot: in each layer that keeps any, cells x heads x (key + value)."""
    total = 0
    for heads, slides in zip(shape.kv_heads, shape.slides, strict=True):
        if slides:
            total += sliding * heads * (shape.sliding_key_length + shape.sliding_value_length)
        else:
            total += cells * heads * (shape.key_length + shape.value_length)
    return total * CELL_BYTES


def _weights(shape: ModelShape, *, on_card: bool) -> int:
    """What of the file is where the load runs. Without a list of tensors all of it: an upper bound."""
    if on_card:
        return max(0, shape.weights_bytes - (shape.host_bytes or 0))
    return shape.weights_bytes + (shape.repacked_bytes or 0)


def _widest(shape: ModelShape, batch: int, slots: int, *, on_card: bool) -> int:
    """The most that intermediate results take at one time.

    For each token of a batch: gate, up and their product (3 x feed-forward floats) beside the stream and its
    norm (3 x embedding), and in main memory the looked-up embeddings (2 x). Read off measured loads of three
    models. Not measured: with experts each token has several such, and as many results to be added up;
    attention can be wider where the feed-forward part is narrow. Logits are one row for each slot.
    """
    width, forward = shape.embedding_length, shape.feed_forward_length or 0
    queries, keys = shape.head_count * shape.key_length, max(shape.kv_heads) * shape.key_length
    experts = forward + (shape.experts_used or 0) * width
    widest = max(3 * forward, experts, 2 * queries + 2 * keys) + (3 if on_card else 5) * width
    return max(batch * widest, slots * (shape.vocab_size or 0)) * FLOAT_BYTES + _output(shape, slots, on_card)


def _output(shape: ModelShape, slots: int, on_card: bool) -> int:
    """Logits as they are handed out, in main memory always."""
    return 0 if on_card else slots * (shape.vocab_size or 0) * FLOAT_BYTES


def _gb(size: int) -> str:
    return f"{size / GB:.1f}"
