"""A hospital's own files: what it must remember between messages, and what it keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privfm.errors import RunError
from privfm.federation.imprints import is_imprint
from privfm.files import write_atomic

__all__ = ["Memory", "Notebook"]


@dataclass(frozen=True)
class Memory:
    """What a hospital remembers of the newest round that it advertised for.

    Args:
        round: its number, 0 before the first.
        attempt: the newest attempt, -1 before the first.
        generation: of the update that it stored or will store.
        model: 32 bytes that bind a generation to the global model it is computed from.
        counter: the last that it took of its ledger; ties this memory to the ledger.
        survivors: whom its stored update was agreed to be summed with; a retry must have the same.
        transcript: 32 bytes, once the round was unmasked.
    """

    round: int = 0
    attempt: int = -1
    generation: int = 0
    model: bytes = b""
    counter: int = 0
    survivors: tuple[str, ...] | None = None
    transcript: bytes | None = None

    @property
    def answered(self) -> tuple[int, int] | None:
        """The newest round and attempt that was answered."""
        return None if self.round == 0 else (self.round, self.attempt)

    def advertised(self, number: int, attempt: int, generation: int, model: bytes) -> Memory:
        """Return the memory after advertising; a new round, or a new generation of one, starts without survivors."""
        if (number, generation) == (self.round, self.generation):
            return replace(self, attempt=attempt)
        return Memory(number, attempt, generation, model, self.counter)

    def agreed(self, survivors: tuple[str, ...]) -> Memory:
        return replace(self, survivors=survivors)

    def unmasked(self, transcript: bytes) -> Memory:
        return replace(self, transcript=transcript)


class Notebook:
    """The folder of what never leaves a hospital.

    Args:
        folder: exists, readable for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self._memory = folder / "memory.json"
        self._clip_norm = folder / "clip-norm.json"
        self._notes = folder / "local.jsonl"

    def memory(self) -> Memory:
        """Return what was remembered last; RunError when the file is missing or damaged."""
        try:
            content = json.loads(self._memory.read_text(encoding="utf-8"))
            survivors, transcript = content["survivors"], content["transcript"]
            return Memory(
                int(content["round"]),
                int(content["attempt"]),
                int(content["generation"]),
                bytes.fromhex(content["model"]),
                int(content["counter"]),
                None if survivors is None else tuple(survivors),
                None if transcript is None else bytes.fromhex(transcript),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self._memory}: cannot be read ({type(error).__name__}); restore this folder") from None

    def remember(self, memory: Memory) -> None:
        """Keep `memory`, durably, in place of the last."""
        content = {
            "round": memory.round,
            "attempt": memory.attempt,
            "generation": memory.generation,
            "model": memory.model.hex(),
            "counter": memory.counter,
            "survivors": memory.survivors,
            "transcript": None if memory.transcript is None else memory.transcript.hex(),
        }
        write_atomic(self._memory, json.dumps(content).encode(), mode=0o600)

    def clip_norm(self) -> float | None:
        """Return the adapted clip norm that was kept last, or None; RunError when the file is damaged."""
        if not self._clip_norm.exists():
            return None
        try:
            return float(json.loads(self._clip_norm.read_text(encoding="utf-8"))["clip_norm"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self._clip_norm}: cannot be read ({type(error).__name__}); delete it") from None

    def keep_clip_norm(self, clip_norm: float) -> None:
        """Keep an adapted clip norm over restarts. Any older one is as private; this one is only nearer."""
        write_atomic(self._clip_norm, json.dumps({"clip_norm": clip_norm}).encode(), mode=0o600)

    def note_imprints(self, number: int, attempt: int, lines: Sequence[str]) -> None:
        """Keep what is suspicious about the model that a round was to start from."""
        self.note(round=number, attempt=attempt, imprints=list(lines))

    def imprints(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield the rounds whose models were suspicious, and why; lines that no hospital wrote are passed over."""
        if not self._notes.exists():
            return
        with self._notes.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    match json.loads(line):
                        case {"round": int(number), "imprints": [*lines]} if number is not True:
                            yield number, tuple(told for told in lines if is_imprint(told))

    def note(self, **facts: Any) -> None:
        """Append a line of local facts: losses, counts. They are the hospital's own."""
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
