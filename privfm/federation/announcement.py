"""What the coordinator tells every hospital at the start of a round."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from privfm.errors import ProtocolError

__all__ = ["Announcement", "model_hash"]

MAX_HEADER_BYTES = 1 << 16
MAX_NUMBER = 1 << 32
FIELDS = {"round": int, "attempt": int, "generation": int, "cohort": list}


@dataclass(frozen=True)
class Announcement:
    """A round, its cohort and the global model to start from.

    Args:
        round: counted from 1.
        attempt: rises with every time that a round is announced again.
        generation: rises when every hospital must compute the round anew rather than mask again what it stored.
        cohort: the invited hospitals, ascending.
        model: trainable parameters of the global model.
    """

    round: int
    attempt: int
    generation: int
    cohort: tuple[str, ...]
    model: Float32[np.ndarray, " parameters"]

    def encode(self) -> bytes:
        """Return header length (4 bytes, big-endian), a JSON header, then the model as little-endian float32."""
        header = json.dumps({name: getattr(self, name) for name in FIELDS}).encode()
        return len(header).to_bytes(4, "big") + header + self.model.astype("<f4").tobytes()

    @classmethod
    def decode(cls, data: bytes, parameters: int) -> Announcement:
        """Return what `encode` wrote; ProtocolError blames the coordinator for anything else.

        Args:
            data: the whole message.
            parameters: how many trainable parameters the plan's model has.
        """
        size = int.from_bytes(data[:4], "big")
        if len(data) < 4 or size > MAX_HEADER_BYTES or len(data) != 4 + size + 4 * parameters:
            raise _malformed("its length does not fit the plan's model")
        try:
            header = json.loads(data[4 : 4 + size])
        except (ValueError, RecursionError):
            raise _malformed("its header is not JSON") from None
        if not isinstance(header, dict) or {name: type(value) for name, value in header.items()} != FIELDS:
            raise _malformed(f"its header must hold {', '.join(FIELDS)}")
        numbers = (header["round"] - 1, header["attempt"], header["generation"])
        if min(numbers) < 0 or max(numbers) >= MAX_NUMBER or not all(type(name) is str for name in header["cohort"]):
            raise _malformed("its header is out of range")
        model = np.frombuffer(data, dtype="<f4", offset=4 + size).astype(np.float32)
        if not np.isfinite(model).all():
            raise _malformed("the model holds values that are not finite")
        return cls(header["round"], header["attempt"], header["generation"], tuple(header["cohort"]), model)


def model_hash(start: bytes, announcement: Announcement) -> bytes:
    """Return the 32 bytes that bind a round to the model it starts from and to the generation of its updates.

    The generation is bound because a coordinator that had one hospital compute anew, while the others mask their
    stored updates again, would learn from two sums how that hospital's two updates differ.

    Args:
        start: SHA-256 of the run's initial network, frozen weights included.
        announcement: of the round.
    """
    generation = announcement.generation.to_bytes(8, "big")
    return hashlib.sha256(
        b"privfm/v1/model\0" + start + generation + announcement.model.astype("<f4").tobytes()
    ).digest()


def _malformed(why: str) -> ProtocolError:
    return ProtocolError(f"the announcement of a round is malformed: {why}", ("coordinator",))
