"""Derives the dimensions that determine a model's memory use from the keys of its GGUF header.

Ollama's `/api/show` returns the same keys as `model_info`. For some architectures only the source of
llama.cpp defines which layers have a sliding window (b10488, `src/models/*.cpp`, `load_arch_hparams`); that
information is repeated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spoolama.backends.gguf_header import Tensor

_MOST_LAYERS = 1024
_REPACKED = {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
"""Types that llama.cpp copies into a layout for the CPU (AVX2; `ggml-cpu/repack.cpp`)."""
_TOKENS = "token_embd.weight"
_PER_LAYER = "per_layer_token_embd.weight"
"""Lookup tables: they stay in main memory even if every layer is on a card."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The dimensions of a model that determine its memory use. None: unknown."""

    architecture: str
    """`general.architecture`: `llama`, `gemma3`, ..."""
    layers: int
    kv_heads: tuple[int, ...]
    """Key-value heads of each layer; 0: the layer has no KV cache."""
    slides: tuple[bool, ...]
    """For each layer, whether it keeps only a sliding window."""
    key_length: int
    """Numbers in a key of one head."""
    value_length: int
    """Numbers in a value of one head; 0 if values are computed from keys (multi-head latent attention)."""
    sliding_key_length: int
    sliding_value_length: int
    """Key and value length in sliding-window layers."""
    head_count: int
    """Largest number of query heads of a layer."""
    embedding_length: int
    weights_bytes: int
    """Size of the file: all tensors, and some MB of vocabulary."""
    feed_forward_length: int | None = None
    """Largest feed-forward width of a layer; with experts, the sum over those used for a token."""
    vocab_size: int | None = None
    sliding_window: int | None = None
    """Window of sliding-window layers in tokens; None: there are none."""
    trained_ctx: int | None = None
    """Trained context length in tokens."""
    whole_window_bytes: int = 0
    """Up to this KV cache size in bytes the server lets sliding-window layers keep the whole window."""
    state_bytes: int = 0
    """State of recurrent layers for one slot, independent of the window."""
    host_bytes: int | None = None
    """Embedding tables that stay in main memory if all layers are on a card; None: the tensors are unknown.
    Token embeddings that are also the output layer (Gemma) do not count: the card has its own copy."""
    repacked_bytes: int | None = None
    """Upper bound of the tensors that llama.cpp copies for the CPU."""
    experts_used: int | None = None

    @property
    def token_bytes(self) -> int:
        """KV cache bytes of one token in all layers, with 16-bit numbers (llama.cpp's default)."""
        whole = self.key_length + self.value_length
        sliding = self.sliding_key_length + self.sliding_value_length
        layers = zip(self.kv_heads, self.slides, strict=True)
        return 2 * sum(heads * (sliding if slides else whole) for heads, slides in layers)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Which layers of an architecture have a sliding window if the file does not say so."""

    period: int | None = None
    """One layer in each group of this size has full attention; None: only the file can define which."""
    dense_first: bool = False
    """Whether that is the first layer of the group, not the last."""
    window: int | None = None
    """The window if the file has none; None: then no layer slides."""
    fixed: bool = False
    """Whether `window` overrides the value in the file."""


_PATTERNS = {
    "afmoe": _Pattern(4),
    "cohere2": _Pattern(4),
    "cohere2moe": _Pattern(4, dense_first=True),
    "exaone-moe": _Pattern(4, window=128),
    "exaone4": _Pattern(4, window=4096),
    "gemma2": _Pattern(2, window=4096),
    "gemma3": _Pattern(6),
    "gemma3n": _Pattern(5),
    "gemma4": _Pattern(),
    "gpt-oss": _Pattern(2),
    "gptoss": _Pattern(2),
    "laguna": _Pattern(4, dense_first=True),
    "llama4": _Pattern(4, window=8192, fixed=True),
    "mellum": _Pattern(4),
    "mimo2": _Pattern(),
    "muse-glimmer": _Pattern(4),
    "olmo2": _Pattern(4),
    "plamo3": _Pattern(8),
    "smallthinker": _Pattern(4, dense_first=True, window=4096, fixed=True),
    "step35": _Pattern(),
}
"""Files of other architectures may contain a window (llama for Mistral 7B, phi3, qwen2), but llama.cpp keeps
the whole context for them."""
_OWN_CACHE = {"deepseek4", "deepseek32", "glm-dsa", "minimax-m3"}
"""Architectures with caches beyond keys and values; they are not supported here."""
_INTERVAL = {"qwen3next", "qwen35", "qwen35moe"}
"""Every fourth layer has a KV cache, the others have a state (`full_attention_interval`)."""
_SHARED_AFTER = {"gemma3n": 20}
"""Layers from this one on use the KV cache of earlier layers."""
_NO_AHEAD = {"hy_v3", "mimo2", "step35"} | _INTERVAL
"""Their multi-token prediction layers, at the end, have no KV cache. For other architectures these layers
are counted, so that the estimate is rather too high."""


def shape_of(
    pairs: Mapping[str, Any], weights_bytes: int, tensors: Iterable[Tensor] = ()
) -> ModelShape | None:
    """Return the shape; None if a required key is missing or the architecture is not supported.

    Args:
        pairs: The keys of a GGUF header, or `model_info` of `/api/show`.
        weights_bytes: The size of the file.
        tensors: The tensors of the file, if known; they determine what stays in main memory.
    """
    kind = pairs.get("general.architecture")
    if not isinstance(kind, str) or kind in _OWN_CACHE:
        return None
    reader = _Keys(pairs, kind)
    layers, width = reader.number("block_count"), reader.number("embedding_length")
    if layers is None or width is None or layers > _MOST_LAYERS:
        return None
    heads = reader.each("attention.head_count", layers)
    kv_heads = reader.each("attention.head_count_kv", layers, absent=heads)
    if heads is None or kv_heads is None or not any(heads):
        return None
    each = width // (heads[0] or max(heads))
    key = reader.number("attention.key_length") or each
    value = reader.number("attention.value_length") or each
    sliding = _sliding(reader, kind, layers)
    if sliding is None:
        return None
    window, slides = sliding
    latent = reader.number("attention.key_length_mla") is not None
    kept, state = _kept(reader, kind, kv_heads, layers)
    facts = _tensor_facts(tuple(tensors))
    used = reader.number("expert_used_count")
    return ModelShape(
        architecture=kind,
        layers=layers,
        kv_heads=kept,
        slides=slides,
        key_length=key,
        value_length=0 if latent else value,
        sliding_key_length=reader.number("attention.key_length_swa") or key,
        sliding_value_length=0 if latent else reader.number("attention.value_length_swa") or value,
        head_count=max(heads),
        embedding_length=width,
        weights_bytes=weights_bytes,
        feed_forward_length=_feed_forward(reader, layers, used),
        vocab_size=reader.number("vocab_size") or facts.vocab,
        sliding_window=window,
        trained_ctx=reader.number("context_length"),
        state_bytes=state,
        host_bytes=facts.host_bytes,
        repacked_bytes=facts.repacked_bytes,
        experts_used=used,
    )


def lacks_arrays(pairs: Mapping[str, Any]) -> bool:
    """Whether a required list is missing, because `/api/show` omits lists without `verbose`."""
    kind = pairs.get("general.architecture")
    names = ("attention.head_count", "attention.head_count_kv", "attention.sliding_window_pattern")
    return any(f"{kind}.{name}" in pairs and pairs[f"{kind}.{name}"] in (None, []) for name in names)


class _Keys:
    """The keys of one architecture."""

    def __init__(self, pairs: Mapping[str, Any], kind: str) -> None:
        self._pairs, self._kind = pairs, kind

    def get(self, name: str) -> Any:
        """Return the raw value."""
        return self._pairs.get(f"{self._kind}.{name}")

    def number(self, name: str) -> int | None:
        """Return a count; None if it is 0 or missing."""
        return _whole(self.get(name)) or None

    def each(
        self, name: str, layers: int, *, absent: tuple[int, ...] | None = None
    ) -> tuple[int, ...] | None:
        """Return one number for each layer. A list may omit the multi-token prediction layers at the end."""
        if f"{self._kind}.{name}" not in self._pairs:
            return absent
        value = self.get(name)
        one = _whole(value)
        if one is not None:
            return (one,) * layers
        if not isinstance(value, list) or not value:
            return None
        numbers = [number for item in value[:layers] if (number := _whole(item)) is not None]
        if len(numbers) < len(value[:layers]):
            return None
        return tuple(numbers) + (0,) * (layers - len(numbers))


def _sliding(reader: _Keys, kind: str, layers: int) -> tuple[int | None, tuple[bool, ...]] | None:
    """Return the window and which layers have it; None: only a list that is missing defines it."""
    everything = (None, (False,) * layers)
    pattern = _PATTERNS.get(kind)
    given_window = reader.get("attention.sliding_window")
    if pattern is None or given_window == 0 or (kind == "exaone4" and layers < 64):
        return everything
    window = pattern.window if pattern.fixed or given_window is None else _whole(given_window)
    if window is None or (kind == "smallthinker" and given_window is None):
        return everything
    given = reader.get("attention.sliding_window_pattern")
    if isinstance(given, list) and given:
        return window, tuple(n < len(given) and bool(given[n]) for n in range(layers))
    period = _whole(given) or pattern.period
    if period is None:
        return None
    if pattern.dense_first:
        return window, tuple(n % period != 0 for n in range(layers))
    return window, tuple(n % period < period - 1 for n in range(layers))


def _kept(reader: _Keys, kind: str, kv_heads: Sequence[int], layers: int) -> tuple[tuple[int, ...], int]:
    """Return the heads of layers with a KV cache, and the bytes of state of the other layers."""
    ahead = (reader.number("nextn_predict_layers") or 0) if kind in _NO_AHEAD else 0
    shared = reader.number("attention.shared_kv_layers") or 0
    first = min(layers - max(ahead, shared), _SHARED_AFTER.get(kind, layers))
    if kind in _INTERVAL:
        every = reader.number("full_attention_interval") or 4
        kept = [heads if n < first and (n + 1) % every == 0 else 0 for n, heads in enumerate(kv_heads)]
        recurrent = sum((n + 1) % every != 0 for n in range(layers - ahead))
    else:
        kept = [heads if n < first else 0 for n, heads in enumerate(kv_heads)]
        # In falcon-h1 each layer has both.
        recurrent = layers if kind == "falcon-h1" else sum(heads == 0 for heads in kv_heads)
    return tuple(kept), recurrent * _state(reader)


def _state(reader: _Keys) -> int:
    """Return the state size of a recurrent layer in bytes (`llama_hparams::n_embd_r`, `n_embd_s`; floats)."""
    short = reader.number("shortconv.l_cache")
    if short is not None:
        return (reader.number("embedding_length") or 0) * (short - 1) * 4
    inner, state = reader.number("ssm.inner_size") or 0, reader.number("ssm.state_size") or 0
    kernel, groups = reader.number("ssm.conv_kernel") or 1, reader.number("ssm.group_count") or 0
    return ((kernel - 1) * (inner + 2 * groups * state) + state * inner) * 4


def _feed_forward(reader: _Keys, layers: int, used: int | None) -> int | None:
    """Return the widest layer, or the width of all experts used for one token if that is more."""
    each = reader.each("feed_forward_length", layers)
    widest = max(each) if each else 0
    expert = reader.number("expert_feed_forward_length")
    if expert is None and used is not None:
        expert = widest  # older format of mixture-of-experts files
    return max(widest, (expert or 0) * (used or 0)) or None


@dataclass(frozen=True, slots=True)
class _TensorFacts:
    vocab: int | None = None
    host_bytes: int | None = None
    repacked_bytes: int | None = None


def _tensor_facts(tensors: Sequence[Tensor]) -> _TensorFacts:
    named = {tensor.name: tensor for tensor in tensors}
    tokens = named.get(_TOKENS)
    if tokens is None or not tokens.shape:
        return _TensorFacts()
    tables = [tokens] if "output.weight" in named else []
    tables += [named[_PER_LAYER]] if _PER_LAYER in named else []
    sizes = [table.size_bytes for table in tables]
    known = [size for size in sizes if size is not None]
    repacked = [
        t.size_bytes or 0 for t in tensors if t.kind in _REPACKED and t.name not in (_TOKENS, _PER_LAYER)
    ]
    return _TensorFacts(
        vocab=tokens.shape[-1],
        host_bytes=sum(known) if len(known) == len(sizes) else None,
        repacked_bytes=sum(repacked),
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
