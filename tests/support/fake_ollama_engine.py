"""The engine of the fake: tokens, prefix cache, slots, loads. Its rules, all deterministic:

- **Tokens.** A message counts one token for every four bytes of UTF-8, rounded up, and four for its frame;
  the answer opened behind the last message counts three. An answer counts its text and one for its end.
  A raw prompt that stops inside a message counts three for its frame and the whole tokens of its text.
- **Prefix cache.** Each slot stores its last prompt and answer. The part that a new prompt shares with it,
  message by message and inside the first one that differs, is not evaluated; one token always is.
- **Sliding window** (a model with `window`): a prefix that ends further back than the window is usable only
  up to the end of an earlier prompt in this slot; without one everything is evaluated.
  (A simplification of llama.cpp's checkpoints. A request of just the shared prefix is such a place.)
- **Choice of slot.** The idle slot that shares most, if that is over a tenth of the prompt; else the one
  unused for longest. Waiting calls get slots in the order of their arrival.
- **Loads** happen one at a time, when a model is not loaded or any load-time option differs, once the calls
  in flight on the old one have ended. With a memory model (`card_model`) they may run out of memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.fake_ollama_script import FakeModel, Script

LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
DEFAULT_NUM_CTX = 4096

Segment = tuple[str, str]
"""Role and text of one message."""


class QueueFull(Exception):
    """More calls wait for a load than the server allows."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine sees it."""

    segments: tuple[Segment, ...]
    opened: bool
    """Whether the frame of an answer follows it."""
    cut: bool = False
    """Whether it stops inside its last message, whose frame is therefore open."""


@dataclass(slots=True)
class Slot:
    """One slot of the server, with the cache of one conversation."""

    number: int
    held: tuple[Segment, ...] = ()
    held_cut: bool = False
    """Whether it stops inside its last message."""
    held_tokens: int = 0
    checkpoints: list[int] = field(default_factory=list)
    used: int = 0
    busy: bool = False


class Runner:
    """A loaded model."""

    def __init__(self, model: FakeModel, key: tuple[Any, ...], num_ctx: int, slots: int) -> None:
        self.model = model
        self.key = key
        self.num_ctx = num_ctx
        self.slots = [Slot(number) for number in range(slots)]
        self.gate = asyncio.Semaphore(slots)
        self.forever = False
        self.dead = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self.idle = asyncio.Event()
        self.idle.set()


class Engine:
    """Loads models and processes prompts in slots."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.runners: dict[str, Runner] = {}
        self.loads: list[tuple[str, int]] = []
        """Name and window of each load, in order."""
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._uses = 0

    # loads

    async def runner(self, model: FakeModel, options: Mapping[str, Any], shift: bool) -> tuple[Runner, float]:
        """Return the model loaded with these options, and the reported time of its load."""
        num_ctx = self._window(model, int(options.get("num_ctx") or DEFAULT_NUM_CTX))
        key = (num_ctx, shift, *(options.get(name) for name in LOAD_OPTIONS[1:]))
        if (found := self._fitting(model, key)) is not None:
            return found, 0.001
        if self._waiting >= self._script.max_queue:
            raise QueueFull
        self._waiting += 1
        try:
            async with self._lock:
                if (found := self._fitting(model, key)) is not None:
                    return found, model.load_s
                if old := self.runners.get(model.name):
                    await old.idle.wait()
                latency = self._script.latency
                wait = latency.load_s + latency.pace * model.load_s
                if wait > 0:
                    await asyncio.sleep(wait)
                self._take_memory(model, num_ctx, options)
                runner = Runner(model, key, num_ctx, self._script.slots)
                self.runners[model.name] = runner
                self.loads.append((model.name, num_ctx))
                return runner, model.load_s
        finally:
            self._waiting -= 1

    def _fitting(self, model: FakeModel, key: tuple[Any, ...]) -> Runner | None:
        found = self.runners.get(model.name)
        return found if found is not None and found.key == key else None

    def _window(self, model: FakeModel, asked: int) -> int:
        return min(max(asked, 4), model.context_length, self._script.num_ctx_limit or asked)

    def _take_memory(self, model: FakeModel, num_ctx: int, options: Mapping[str, Any]) -> None:
        """Unload the old model and, without room, idle others; then place the new one.

        Raises:
            CardsFull: there is not enough memory.
        """
        memory = self._script.memory
        if memory is None:
            return
        self.unload(model.name)
        load = (model.name, model.size_bytes, num_ctx * self._script.slots, options.get("num_gpu"))
        for name in [name for name, other in self.runners.items() if other.idle.is_set()]:
            if not memory.fits(*load):
                self.unload(name)
        memory.load(*load)

    def reload(self, model: FakeModel, num_ctx: int) -> None:
        """Replace the model by a new load with this window and no other option."""
        window = self._window(model, num_ctx)
        key = (window, True, *(None for _ in LOAD_OPTIONS[1:]))
        self.runners[model.name] = Runner(model, key, window, self._script.slots)
        self.loads.append((model.name, window))

    def unload(self, name: str) -> None:
        """Unload a model; calls in flight on it finish."""
        self.runners.pop(name, None)
        if self._script.memory is not None:
            self._script.memory.free(name)

    def kill(self, runner: Runner) -> None:
        """Kill the model's process and every call on it."""
        runner.dead = True
        if self.runners.get(runner.model.name) is runner:
            self.unload(runner.model.name)
        for task in list(runner.tasks):
            if task is not asyncio.current_task():
                task.cancel()

    # tokens

    def tokens(self, text: str) -> int:
        """Count the tokens of a text."""
        return -(-_size(text) // self._script.bytes_per_token)

    def pieces(self, text: str) -> list[bytes]:
        """Split a text into tokens."""
        raw, step = text.encode("utf-8", "surrogatepass"), self._script.bytes_per_token
        return [raw[place : place + step] for place in range(0, len(raw), step)]

    def segment_tokens(self, segment: Segment) -> int:
        """Count the tokens of a message with its frame."""
        role, text = segment
        return self.tokens(text) + (self._script.tokens_per_message if role != "raw" else 0)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Count the tokens of a whole prompt."""
        if prompt.cut:
            *whole, last = prompt.segments
            return sum(map(self.segment_tokens, whole)) + self._begun(last[1])
        opened = self._script.tokens_per_message - 1 if prompt.opened else 0
        return sum(map(self.segment_tokens, prompt.segments)) + opened

    def _begun(self, text: str) -> int:
        """Count the tokens that all messages with this beginning share."""
        return self._script.tokens_per_message - 1 + _size(text) // self._script.bytes_per_token

    # slots

    def take(self, runner: Runner, prompt: Prompt) -> tuple[Slot, int]:
        """Return an idle slot for a prompt and how many of its tokens the slot reuses; pass the
        gate first.
        """
        idle = [slot for slot in runner.slots if not slot.busy]
        shared = {slot.number: self._shared(slot, prompt) for slot in idle}
        total = self.prompt_tokens(prompt)
        best = max(idle, key=lambda slot: (shared[slot.number], -slot.used))
        if shared[best.number] <= total * 0.1:
            best = min(idle, key=lambda slot: slot.used)
        self._uses += 1
        best.used = self._uses
        best.busy = True
        usable = self._usable(runner.model, best, shared[best.number])
        return best, min(usable, max(0, total - 1))

    def leave(self, slot: Slot, prompt: Prompt, answer: str, reused: int) -> None:
        """Leave the processed prompt in the slot's cache."""
        total = self.prompt_tokens(prompt)
        slot.checkpoints = [place for place in slot.checkpoints if place <= reused][-31:]
        slot.checkpoints.append(total)
        slot.held_cut = prompt.cut
        slot.held = prompt.segments
        if answer and not prompt.cut:
            slot.held = (*prompt.segments, ("assistant", answer))
        slot.held_tokens = total + self.tokens(answer) + 1

    def _shared(self, slot: Slot, prompt: Prompt) -> int:
        total = 0
        for place, segment in enumerate(prompt.segments):
            if place >= len(slot.held):
                return total
            held = slot.held[place]
            stops = (slot.held_cut and place == len(slot.held) - 1) or (
                prompt.cut and place == len(prompt.segments) - 1
            )
            if held != segment or stops:
                if held[0] != segment[0]:
                    return total
                return total + self._begun(segment[1][: _common(held[1], segment[1])])
            total += self.segment_tokens(segment)
        behind = slot.held[len(prompt.segments) :]
        if prompt.opened and behind and behind[0][0] == "assistant":
            total += self._script.tokens_per_message - 1
        return total

    @staticmethod
    def _usable(model: FakeModel, slot: Slot, shared: int) -> int:
        if model.window is None or slot.held_tokens - shared <= model.window:
            return shared
        return max((place for place in slot.checkpoints if place <= shared), default=0)


def _size(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _common(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    shorter = min(len(one), len(other))
    low, high = 0, shorter
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def segments_of(messages: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    """Return messages as the engine sees them."""
    return tuple((str(m.get("role", "")), str(m.get("content", ""))) for m in messages)
