"""Decoders fed with noise and near-messages: a message or a typed error, nothing else, in bounded time and memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from replay import record
from rounds import make_rig
from sparse_rounds import SparseCoordinator, make_sparse_rig, play_sparse

from privfm.secagg import Stage, VectorSpec
from privfm.secagg.encoding import MessageError, Reader
from privfm.secagg.framing import MESSAGE_LIMIT, Signed
from privfm.secagg.messages import Agreement, Agreements, Cohort, Deal, Deliveries, KeyPackage, Reveal, Survivors
from privfm.secagg.shamir import PRIME
from privfm.secagg.sparse.messages import Anchor, Choice, Evidence, Masking, Neighbourhood, SparseDeliveries
from privfm.secagg.stages import SparseStage
from privfm.secagg.upload import add_upload

INPUTS = 100_000
QUICK = 600

STORY = record(make_rig(5, length=3))
SPARSE = play_sparse(SparseCoordinator(make_sparse_rig()))
SPECS = STORY.rig.spec.vectors
TOTAL = [np.zeros(3, np.uint32)]


def signed(kind: type) -> Callable[[bytes], object]:
    return lambda data: Signed.decode(kind, data)


def upload(data: bytes) -> None:
    add_upload(SPECS, data, bytes(32), TOTAL, 1)


DECODERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "KeyPackage": (signed(KeyPackage), STORY.sent[Stage.ADVERTISE]["h00"]),
    "Cohort": (Cohort.decode, STORY.incoming[Stage.SHARE]["h00"]),
    "Deal": (Deal.decode, STORY.sent[Stage.SHARE]["h00"]),
    "Deliveries": (Deliveries.decode, STORY.incoming[Stage.MASK]["h00"]),
    "upload": (upload, STORY.sent[Stage.MASK]["h00"]),
    "Survivors": (Survivors.decode, STORY.incoming[Stage.AGREE]["h00"]),
    "Agreement": (signed(Agreement), STORY.sent[Stage.AGREE]["h00"]),
    "Agreements": (Agreements.decode, STORY.incoming[Stage.UNMASK]["h00"]),
    "Reveal": (signed(Reveal), STORY.sent[Stage.UNMASK]["h00"]),
    "Anchor": (Anchor.decode, SPARSE.mail[SparseStage.CHOOSE]["h00"]),
    "Choice": (signed(Choice), SPARSE.sent[SparseStage.CHOOSE]["h00"]),
    "Neighbourhood": (Neighbourhood.decode, SPARSE.mail[SparseStage.SHARE]["h00"]),
    "SparseDeliveries": (SparseDeliveries.decode, SPARSE.mail[SparseStage.MASK]["h00"]),
    "Masking": (signed(Masking), Reader(SPARSE.sent[SparseStage.MASK]["h00"]).blob(MESSAGE_LIMIT)),
    "Evidence": (Evidence.decode, SPARSE.mail[SparseStage.UNMASK]["h00"]),
}


def near(message: bytes, rng: np.random.Generator) -> bytes:
    """Noise, or the message with a few bytes changed, dropped, repeated or set to the extremes that lengths fear."""
    kind = rng.integers(0, 6)
    if kind == 0:
        return rng.bytes(int(rng.integers(0, 200)))
    data = bytearray(message)
    at = int(rng.integers(0, min(len(data), 64 if kind < 4 else len(data))))
    if kind == 1:
        data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\xff\xff", b"\x7f\xff\xff\xff"])
    elif kind == 2:
        del data[at : at + int(rng.integers(1, 9))]
    elif kind == 3:
        data[at:at] = data[: int(rng.integers(1, 40))]
    else:
        data[at] = int(rng.integers(0, 256))
    return bytes(data)


def feed(name: str, count: int) -> int:
    """How many inputs were messages after all."""
    decode, message = DECODERS[name]
    rng = np.random.default_rng(len(message))
    good = 0
    for _ in range(count):
        try:
            decode(near(message, rng))
            good += 1
        except MessageError:
            continue
    return good


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_raises_typed_errors_alone(name: str) -> None:
    feed(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_withstands_a_hundred_thousand_inputs(name: str) -> None:
    feed(name, INPUTS)


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "upload"])
def test_what_decodes_encodes_to_the_same_bytes(name: str) -> None:
    decode, message = DECODERS[name]
    rng = np.random.default_rng(1)
    for data in (message, *(near(message, rng) for _ in range(200))):
        try:
            found = decode(data)
        except MessageError:
            continue
        assert found.encode() == data  # type: ignore[attr-defined]


def refuse(decode: Callable[[bytes], object], bomb: bytes) -> None:
    with contextlib.suppress(MessageError):
        decode(bomb)


@pytest.mark.parametrize("name", DECODERS)
def test_memory_is_bounded_by_the_message(name: str) -> None:
    decode, message = DECODERS[name]
    bombs = [message[:at] + b"\xff\xff\xff\xff" + message[at + 4 :] for at in range(0, min(len(message), 160), 5)]
    for bomb in bombs:  # once before it counts, so that nothing is loaded or cached while it does
        refuse(decode, bomb)
    tracemalloc.start()
    for bomb in bombs:
        refuse(decode, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * len(message) + 200_000


def test_a_message_beyond_the_limit_is_not_looked_at() -> None:
    with pytest.raises(MessageError, match="at most 67108864 fit"):
        Survivors.decode(bytes(2**26 + 1))


def test_a_share_that_is_not_canonical_is_no_message() -> None:
    message = STORY.sent[Stage.UNMASK]["h00"]
    share = Signed.decode(Reveal, message).body.openings[0].share.value
    with pytest.raises(MessageError, match="not reduced"):
        Signed.decode(Reveal, message.replace(share, PRIME.to_bytes(33, "big")))


def test_unknown_versions_are_refused() -> None:
    for name, (decode, message) in DECODERS.items():
        for version in (0, 2, 255):
            with pytest.raises(MessageError, match="version"):
                decode(bytes([version]) + message[1:])
        for other, (_, another) in DECODERS.items():
            if other != name and "upload" not in (name, other):
                with pytest.raises(MessageError, match="type"):
                    decode(another)


def test_specs_are_what_an_upload_is_read_by() -> None:
    with pytest.raises(MessageError, match="bytes, not"):
        add_upload([VectorSpec("v", 4, 1.0, levels=1)], STORY.sent[Stage.MASK]["h00"], bytes(32), TOTAL, 1)
