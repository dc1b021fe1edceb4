"""Keystreams, packing, uploads: against definitions written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from rounds import entropy

from privfm.secagg import VectorSpec
from privfm.secagg.chunks import CHUNK, pieces, spread
from privfm.secagg.encoding import MessageError
from privfm.secagg.masks import Mask, keystream, masked_pieces
from privfm.secagg.ring import add_packed, lift, pack, packed_bytes
from privfm.secagg.upload import add_upload, masked_upload, upload_bytes

KEY = entropy("tag key")


def words_of(mask: Mask, length: int) -> list[int]:
    """One AES block at a time, without counter mode."""
    cipher = Cipher(algorithms.AES(mask.key), modes.ECB()).encryptor()  # noqa: S305 - the definition of counter mode
    stream = b"".join(cipher.update(block.to_bytes(16, "big")) for block in range(length // 4 + 1))
    return [mask.sign * int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(length)]


@given(st.integers(1, 50), st.lists(st.sampled_from([1, -1]), min_size=1, max_size=4))
def test_masks_agree_with_the_definition(length: int, signs: list[int]) -> None:
    masks = [Mask(entropy(index), sign) for index, sign in enumerate(signs)]
    values = np.arange(length, dtype=np.uint32) * 85_000_000
    (found,) = [words.copy() for _, words in masked_pieces(values, masks, 0, length)]
    expected = [
        (int(value) + sum(words)) % 2**32
        for value, *words in zip(values, *(words_of(mask, length) for mask in masks), strict=True)
    ]
    assert found.tolist() == expected


def test_a_mask_and_its_negation_cancel_from_any_chunk_on() -> None:
    mask = Mask(entropy("m"), 1)
    values = np.random.default_rng(0).integers(0, 2**32, 2 * CHUNK + 9, dtype=np.uint32)
    for start in (0, CHUNK, 2 * CHUNK):
        for piece, words in masked_pieces(values, [mask, mask.negated()], start, len(values)):
            assert np.array_equal(words, values[piece])
    whole = keystream(mask.key, 0).update(bytes(4 * len(values)))
    assert keystream(mask.key, CHUNK).update(bytes(64)) == whole[4 * CHUNK : 4 * CHUNK + 64]


def test_an_unmasked_vector_is_never_handed_out() -> None:
    with pytest.raises(ValueError, match="at least one"):
        next(masked_pieces(np.zeros(4, np.uint32), [], 0, 4))


def test_keys_do_not_show_and_signs_are_signs() -> None:
    assert entropy("k").hex() not in repr(Mask(entropy("k"), 1))
    with pytest.raises(ValueError, match="sign=0"):
        Mask(entropy("k"), 0)
    with pytest.raises(ValueError, match="word=3"):
        keystream(entropy("k"), 3)


@given(st.integers(0, 400_000), st.integers(1, 5))
def test_spread_covers_every_entry_once(length: int, threads: int) -> None:
    counts = np.zeros(length, np.uint8)

    def work(start: int, stop: int) -> None:
        assert start % CHUNK == 0
        for piece in pieces(start, stop):
            assert 0 < piece.stop - piece.start <= CHUNK
            counts[piece] += 1

    spread(length, threads, work)
    assert (counts == 1).all()


def test_a_failure_in_a_thread_is_raised() -> None:
    def work(start: int, stop: int) -> None:
        raise ValueError(f"at {start}")

    with pytest.raises(ValueError, match="at"):
        spread(3 * CHUNK, 2, work)
    with pytest.raises(ValueError, match="threads=0"):
        spread(1, 0, work)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30), st.sampled_from([16, 24, 32]))
def test_packing_keeps_the_low_bits_and_lifting_their_sign(values: list[int], ring_bits: int) -> None:
    block = np.zeros(packed_bytes(len(values), ring_bits), np.uint8)
    pack(np.array(values, np.uint32), ring_bits, block)
    total = np.zeros(len(values), np.uint32)
    add_packed(block, ring_bits, total, np.empty_like(total))
    ring = 2**ring_bits
    assert total.tolist() == [value % ring for value in values]
    signed = [value % ring - (ring if value % ring >= ring // 2 else 0) for value in values]
    lifted = np.empty(len(values), np.int32)
    lift(total, ring_bits, lifted)
    assert lifted.tolist() == signed


def two_vectors(length: int) -> tuple[list[VectorSpec], list[np.ndarray]]:
    specs = [VectorSpec("a", length, 1.0, levels=100), VectorSpec("b", 5, 1.0, levels=100, ring_bits=16)]
    rng = np.random.default_rng(length)
    return specs, [rng.integers(-100, 101, spec.length, dtype=np.int32) for spec in specs]


@pytest.mark.parametrize("length", [1, 4, CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_upload_adds_up_to_levels_and_masks(length: int, threads: int) -> None:
    specs, levels = two_vectors(length)
    masks = [[Mask(entropy("a"), 1)], [Mask(entropy("b"), -1)]]
    upload = masked_upload(specs, levels, masks, KEY, threads)
    assert len(upload) == upload_bytes(specs)
    totals = [np.zeros(spec.length, np.uint32) for spec in specs]
    add_upload(specs, upload, KEY, totals, threads)
    for spec, total, values, own in zip(specs, totals, levels, masks, strict=True):
        for piece, words in masked_pieces(total, [own[0].negated()], 0, spec.length):
            lifted = np.empty(len(words), np.int32)
            lift(words, spec.ring_bits, lifted)
            assert np.array_equal(lifted, values[piece])


def test_a_spoiled_upload_adds_nothing() -> None:
    specs, levels = two_vectors(CHUNK + 8)
    upload = bytes(masked_upload(specs, levels, [[Mask(KEY, 1)], [Mask(KEY, 1)]], KEY, 1))
    totals = [np.zeros(spec.length, np.uint32) for spec in specs]
    block = packed_bytes(CHUNK, 24) + 16
    swapped = upload[:2] + upload[2 + 16 : 18 + 16] + upload[18:]
    last_byte = upload[:-1] + bytes([upload[-1] ^ 1])
    in_second = upload[: 2 + block] + bytes([upload[2 + block] ^ 1]) + upload[3 + block :]
    for spoiled, key in ((swapped, KEY), (last_byte, KEY), (in_second, KEY), (upload, entropy("other"))):
        with pytest.raises(MessageError, match="damaged or another party's"):
            add_upload(specs, spoiled, key, totals, 2)
    for spoiled in (upload[:-1], upload + b"\0", b""):
        with pytest.raises(MessageError, match="bytes, not"):
            add_upload(specs, spoiled, KEY, totals, 1)
    with pytest.raises(MessageError, match="version or type"):
        add_upload(specs, b"\2" + upload[1:], KEY, totals, 1)
    assert not any(total.any() for total in totals)


def test_blocks_cannot_change_places() -> None:
    specs = [VectorSpec(name, 2 * CHUNK, 1.0, levels=1) for name in ("a", "b")]
    levels = [np.zeros(2 * CHUNK, np.int32)] * 2
    upload = bytes(masked_upload(specs, levels, [[Mask(KEY, 1)], [Mask(entropy("b"), 1)]], KEY, 1))
    size = packed_bytes(CHUNK, 24) + 16
    blocks = [upload[2 + size * place : 2 + size * (place + 1)] for place in range(4)]
    totals = [np.zeros(2 * CHUNK, np.uint32) for _ in specs]
    add_upload(specs, upload[:2] + b"".join(blocks), KEY, totals, 1)
    for order in ((1, 0, 2, 3), (0, 2, 1, 3), (2, 3, 0, 1), (0, 0, 2, 3)):
        with pytest.raises(MessageError, match="damaged or another party's"):
            add_upload(specs, upload[:2] + b"".join(blocks[place] for place in order), KEY, totals, 1)


@pytest.mark.parametrize("level", [101, -101, 2**31 - 1, -(2**31)])
def test_levels_beyond_the_spec_are_refused(level: int) -> None:
    specs, levels = two_vectors(9)
    levels[0][4] = level
    with pytest.raises(ValueError, match="levels of 'a'"):
        masked_upload(specs, levels, [[Mask(KEY, 1)], [Mask(KEY, 1)]], KEY, 1)
    with pytest.raises(ValueError, match=r"need 9 of int32 for 'a', not \(8,\)"):
        masked_upload(specs, [levels[0][1:], levels[1]], [[Mask(KEY, 1)], [Mask(KEY, 1)]], KEY, 1)


@pytest.mark.parametrize("ring_bits", [16, 24, 32])
def test_bytes_on_the_wire(ring_bits: int) -> None:
    spec = VectorSpec("a", 10_000_000, 1.0, levels=100, ring_bits=ring_bits)
    assert upload_bytes([spec]) / spec.length < ring_bits / 8 + 0.01


def test_low_bits_of_a_mask_are_uniform() -> None:
    """Chi-squared over the packed bytes of a masked constant, three standard deviations either way."""
    length = 1 << 18
    specs = [VectorSpec("a", length, 1.0, levels=1)]
    upload = masked_upload(specs, [np.ones(length, np.int32)], [[Mask(entropy("u"), 1)]], KEY, 1)
    counts = np.bincount(np.frombuffer(upload, np.uint8)[2:-16], minlength=256)
    expected = counts.sum() / 256
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - 255) < 3 * np.sqrt(2 * 255) + 10
