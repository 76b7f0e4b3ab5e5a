"""Memory of the machine that a fake Ollama runs on: cards, main memory, and what loaded models take of them.

The use of other programs is read from the script of the tests' NVML stub; the memory of models is written
beside it, and as processes into a directory laid out like /proc. So server and watchdog see the same machine.
The rules are those of a real Ollama on an H100 (tests/data/README.md):

- A load takes weights, keys and values, and CUDA's own memory; a long prompt takes some MB more, once.
- A model that fits on one card goes there, else it is spread over all; 1 GB stays free on each. If it does
  not fit, other models are unloaded first, and then the rest silently stays in main memory.
- With `num_gpu` over 0 nothing stays in main memory: the load runs out of memory instead.
- Of a card with MIG instances a process sees only the first.
- The prompt cache grows in main memory with each answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GB = 1 << 30
CUDA_BYTES = 632_000_000
"""CUDA's own memory on the card of a loaded model."""
LEFT_FREE_BYTES = GB
"""What Ollama leaves free on a card if it decides the placement (1.05 GB were measured)."""
MOST_CACHED_BYTES = 8 * GB
"""llama-server's limit of its prompt cache."""
_PROCESS_BYTES = 300 << 20
_FIRST_PID = 424_242

AT_LOAD = (
    "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory\n"
    "alloc_tensor_range: failed to allocate CUDA0 buffer of size {size}\n"
    "error loading model: unable to allocate CUDA0 buffer"
)
AT_WORK = "an error was encountered while running the model: CUDA error: out of memory"


class CardsFull(Exception):
    """A load or an answer ran out of memory; the text is the server's."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What a model takes besides its weights."""

    token_bytes: int = 23_040
    """Keys and values of a token, as in the fake's `/api/show` for every model."""
    hidden_bytes: int = 0
    """Taken by a load beyond its shape and Ollama's estimate, as by a part for images."""
    hidden_token_bytes: int = 0
    """The same for each token of the window."""
    long_tokens: int = 1024
    growth_bytes: int = 20 << 20
    """Taken at the first prompt that is longer than `long_tokens`."""
    cached_bytes: int = 0
    """Growth of the prompt cache in main memory at each answer."""


@dataclass(slots=True)
class Held:
    """A loaded model."""

    pid: int
    on_cards: dict[str, int]
    """By the card's number in the script: `0`, or `0/1` for a MIG instance."""
    in_main: int
    listed_bytes: int
    """Its size in `/api/ps`, without CUDA's own memory and without hidden memory."""
    listed_vram: int
    cached: int = 0
    grown: bool = False

    @property
    def resident(self) -> int:
        """Main memory of its process."""
        return _PROCESS_BYTES + self.in_main + self.cached


@dataclass(frozen=True, slots=True)
class _Card:
    total: int
    taken: int
    """By other programs and the driver."""


@dataclass(frozen=True, slots=True)
class _Load:
    name: str
    weights: int
    cells: int
    """Tokens of all slots' windows together."""
    num_gpu: int | None


@dataclass(slots=True)
class CardModel:
    """The machine's memory.

    Args:
        script: What others use; see `tests/nvml_stub`.
        proc: The directory laid out like /proc; None: nobody looks there.
        habits: What models take.
    """

    script: Path
    proc: Path | None = None
    habits: Habits = field(default_factory=Habits)
    held: dict[str, Held] = field(default_factory=dict)
    """Loaded models by name."""
    _pid: int = _FIRST_PID
    _read: tuple[str, dict[str, _Card], tuple[int, int]] = ("", {}, (0, 0))
    _written: dict[Path, str] = field(default_factory=dict)

    def fits(self, name: str, weights: int, cells: int, num_gpu: int | None) -> bool:
        """Whether all of it fits on the cards now."""
        return self._whole(_Load(name, weights, cells, num_gpu)) is not None

    def load(self, name: str, weights: int, cells: int, num_gpu: int | None) -> None:
        """Take the memory of a load.

        Raises:
            CardsFull: there is not enough.
        """
        load = _Load(name, weights, cells, num_gpu)
        size = self._size(load)
        places = self._whole(load)
        in_main = 0
        if places is None:
            if num_gpu:
                raise CardsFull(AT_LOAD.format(size=weights))
            room = {place: max(0, free - LEFT_FREE_BYTES) for place, free in self._free().items()}
            places = {place: most for place, most in room.items() if most > CUDA_BYTES and num_gpu != 0}
            in_main = size - sum(most - CUDA_BYTES for most in places.values())
        hidden = (self.habits.hidden_bytes + self.habits.hidden_token_bytes * cells) if places else 0
        fullest = max(places, key=lambda place: places[place], default="")
        if places and places[fullest] + hidden > self._free()[fullest]:
            raise CardsFull(AT_LOAD.format(size=hidden))
        if places:
            places[fullest] += hidden
        self.held[name] = Held(self._pid, places, in_main, size, size - in_main)
        self._pid += 1
        self.refresh()

    def answered(self, name: str, tokens: int) -> None:
        """Take the memory for a prompt of this many tokens.

        Raises:
            CardsFull: there is not enough.
        """
        held, habits = self.held.get(name), self.habits
        if held is None:
            return
        if tokens > habits.long_tokens and held.on_cards and not held.grown:
            fullest = max(held.on_cards, key=lambda place: held.on_cards[place])
            if habits.growth_bytes > self._free()[fullest]:
                raise CardsFull(AT_WORK)
            held.on_cards[fullest] += habits.growth_bytes
            held.grown = True
        held.cached = min(MOST_CACHED_BYTES, held.cached + habits.cached_bytes)
        self.refresh()

    def free(self, name: str) -> None:
        """End its process."""
        held = self.held.pop(name, None)
        if held is not None and self.proc is not None:
            shutil.rmtree(self.proc / str(held.pid), ignore_errors=True)
        self.refresh()

    def refresh(self) -> None:
        """Read what others use and write the present state."""
        total, others = self._machine()[1]
        self._write(
            self.script.with_name(self.script.name + ".server"),
            "".join(
                f"more {place} {size} {held.pid}\n"
                for held in self.held.values()
                for place, size in held.on_cards.items()
            ),
        )
        if self.proc is None:
            return
        left = max(0, total - others - sum(held.resident for held in self.held.values()))
        self._write(
            self.proc / "meminfo",
            f"MemTotal: {total // 1024} kB\nMemAvailable: {left // 1024} kB\n",
        )
        for held in self.held.values():
            folder = self.proc / str(held.pid)
            self._write(folder / "cmdline", "/usr/lib/ollama/llama-server\0--port\0")
            kib = held.resident // 1024
            self._write(folder / "status", f"Name:\tllama-server\nVmRSS:\t{kib} kB\nRssAnon:\t{kib} kB\n")

    def _whole(self, load: _Load) -> dict[str, int] | None:
        """Return bytes by card if all of it fits, else None."""
        if load.num_gpu == 0:
            return {}
        free = self._free()
        if not free:
            return None
        size = self._size(load)
        spare = 0 if load.num_gpu else LEFT_FREE_BYTES
        best = max(free, key=lambda place: free[place])
        if size + CUDA_BYTES + spare <= free[best]:
            return {best: size + CUDA_BYTES}
        room = {place: max(0, most - spare - CUDA_BYTES) for place, most in free.items()}
        if len(free) == 1 or sum(room.values()) < size:
            return None
        return {place: size * most // sum(room.values()) + CUDA_BYTES for place, most in room.items() if most}

    def _size(self, load: _Load) -> int:
        return load.weights + self.habits.token_bytes * load.cells

    def _free(self) -> dict[str, int]:
        """Return the free bytes of each card that a process sees."""
        cards = self._machine()[0]
        visible = {
            place: card
            for place, card in cards.items()
            if f"{place}/0" not in cards and not ("/" in place and not place.endswith("/0"))
        }
        own = {place: sum(held.on_cards.get(place, 0) for held in self.held.values()) for place in visible}
        return {place: max(0, card.total - card.taken - own[place]) for place, card in visible.items()}

    def _machine(self) -> tuple[Mapping[str, _Card], tuple[int, int]]:
        """Return the cards, and main memory in total and used by others, from the script."""
        text = self.script.read_text()
        if text != self._read[0]:
            cards: dict[str, _Card] = {}
            host = (64 * GB, 8 * GB)
            for line in text.splitlines():
                word, _, rest = line.partition(" ")
                if word not in ("card", "host"):
                    continue
                place, *pairs = rest.split()
                of = {key: int(value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)}
                if word == "card":
                    cards[place] = _Card(of["total"], of["used"] + of.get("reserved", 0))
                else:
                    host = (of["total"], of["used"])
            self._read = (text, cards, host)
        return self._read[1], self._read[2]

    def _write(self, file: Path, text: str) -> None:
        """Write atomically, because others read at any time."""
        if self._written.get(file) == text and file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_text(text)
        part.rename(file)
        self._written[file] = text
