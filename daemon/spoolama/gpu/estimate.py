"""What a load of a model will need in memory, estimated before it, as llama.cpp allocates.

Keys and values are reckoned as llama.cpp reckons them (b10488, `llama-context.cpp`, `llama-kv-cache.cpp`,
`llama-kv-cache-iswa.cpp`) and were exact wherever they were measured. Everything else is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from spoolama.backends.model_shape import ModelShape

__all__ = ["Estimate", "Quantisation", "estimate", "fitting_quantisations", "largest_window", "words_of"]

PAD = 256
"""Cells come in such steps."""
BATCH = 512
"""llama.cpp's own number of tokens that it evaluates at once."""
CUDA_BYTES = 632_000_000
"""What CUDA itself takes beside the buffers (an H100, driver 580, CUDA 13; 7 loads alike)."""
HOST_BYTES = 60_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes that a load is expected to take where it runs: on the card, or in main memory."""

    weights_bytes: int
    kv_bytes: int
    """Keys and values, and the state of recurrent layers."""
    compute_bytes: int
    """What evaluating takes: the largest intermediate results and masks."""
    overhead_bytes: int
    """CUDA's own memory on a card; the process and its vocabulary in main memory."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Quantisation:
    """The same model with fewer bits a weight."""

    name: str
    """llama.cpp's name: `Q4_K_M`."""
    weights_bytes: int
    """About; models differ by some percent."""
    total_bytes: int
    """With everything else that the load needs."""


def estimate(
    shape: ModelShape,
    num_ctx: int,
    slots: int,
    *,
    batch: int | None = None,
    swa_full: bool = False,
    on_card: bool = True,
) -> Estimate:
    """What a load is expected to need.

    Args:
        shape: The model.
        num_ctx: Window of one slot in tokens; a longer one than the model was made for counts as that.
        slots: Requests at once; each has its own cells.
        batch: Tokens evaluated at once; None: as Ollama chooses on a card, llama.cpp's 512 elsewhere.
        swa_full: Whether sliding layers keep the whole window.
        on_card: Whether all of it goes to one card; else it stays in main memory.
    """
    raise NotImplementedError


def largest_window(
    shape: ModelShape,
    room_bytes: int,
    slots: int,
    *,
    batch: int | None = None,
    swa_full: bool = False,
    on_card: bool = True,
) -> int | None:
    """The longest window, in steps of 256, that is expected to fit; None: not even the shortest."""
    raise NotImplementedError


def fitting_quantisations(
    shape: ModelShape,
    room_bytes: int,
    num_ctx: int,
    slots: int,
    *,
    batch: int | None = None,
    swa_full: bool = False,
    on_card: bool = True,
) -> tuple[Quantisation, ...]:
    """Smaller quantisations of the model that are expected to fit, the largest first."""
    raise NotImplementedError


def words_of(estimate: Estimate) -> str:
    """`an estimated 9.4 GB: weights 7.3, keys and values 1.1, ...`, in units of 10^9 bytes."""
    raise NotImplementedError
