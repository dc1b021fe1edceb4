"""Masked vectors on their way to the coordinator: packed blocks, each with a tag that only their sender can make.

    upload := version u8, type u8, then for each vector its blocks
    block  := up to 2^18 entries packed as `ring` says, then a 16-byte tag

A tag is AES-256-GCM over no text with the packed entries as associated data, under a key that the sender's signed
channel key and the coordinator's single-round key agree on, with (vector index u32, block index u64) as the nonce.
So a damaged or foreign upload is found before any of it is added, at twenty gigabytes a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from jaxtyping import Int32, UInt8, UInt32
from numpy.typing import NDArray

from privfm.secagg.chunks import CHUNK, pieces, spread
from privfm.secagg.encoding import MessageError
from privfm.secagg.masks import Mask, masked_pieces
from privfm.secagg.ring import add_packed, pack, packed_bytes
from privfm.secagg.spec import VERSION, VectorSpec

__all__ = ["TYPE", "add_upload", "masked_upload", "upload_bytes"]

TYPE = 6
TAG_BYTES = 16
_HEADER = bytes([VERSION, TYPE])


def upload_bytes(vectors: Sequence[VectorSpec]) -> int:
    """The exact length of an upload.

    >>> upload_bytes([VectorSpec("update", 1_000_000, 1.0, levels=100)]) / 1_000_000
    3.000066
    """
    return len(_HEADER) + sum(_vector_bytes(vector) for vector in vectors)


def masked_upload(
    vectors: Sequence[VectorSpec],
    levels: Sequence[Int32[np.ndarray, " _"]],
    masks: Sequence[Sequence[Mask]],
    tag_key: bytes,
    threads: int,
    *,
    prefix: bytes = b"",
) -> memoryview:
    """Every vector's levels with its masks added, packed and tagged, after a prefix.

    What comes back is a read-only view rather than bytes, because copying a long upload into fresh memory costs as
    much as a third of masking it.

    Raises:
        ValueError: a vector has the wrong length or type, or a level is beyond its spec.
    """
    head = prefix + _HEADER
    upload = np.empty(len(prefix) + upload_bytes(vectors), np.uint8)
    upload[: len(head)] = memoryview(head)
    offset = len(head)
    for index, (vector, values, keys) in enumerate(zip(vectors, levels, masks, strict=True)):
        if values.dtype != np.int32 or values.shape != (vector.length,):
            raise ValueError(
                f"levels: need {vector.length} of int32 for {vector.name!r}, not {values.shape} of {values.dtype}"
            )
        region = upload[offset : offset + _vector_bytes(vector)]
        _write_vector(vector, index, values, keys, AESGCM(tag_key), region, threads)
        offset += len(region)
    view: memoryview = upload.data
    return view.toreadonly()


def add_upload(
    vectors: Sequence[VectorSpec],
    upload: bytes | memoryview,
    tag_key: bytes,
    totals: Sequence[UInt32[np.ndarray, " _"]],
    threads: int,
) -> None:
    """Add an upload to the totals, modulo 2^32. Nothing is added unless every tag fits.

    Raises:
        MessageError: wrong length, version or type, or a block that the holder of the key did not send.
    """
    if len(upload) != upload_bytes(vectors):
        raise MessageError(f"upload of {len(upload)} bytes, not {upload_bytes(vectors)}")
    if upload[: len(_HEADER)] != _HEADER:
        raise MessageError("upload has an unknown version or type")
    data, regions, offset = np.frombuffer(upload, np.uint8), [], len(_HEADER)
    for vector in vectors:
        regions.append(data[offset : offset + _vector_bytes(vector)])
        offset += len(regions[-1])
    for index, (vector, region) in enumerate(zip(vectors, regions, strict=True)):
        _check_tags(vector, index, AESGCM(tag_key), region, threads)
    for vector, region, total in zip(vectors, regions, totals, strict=True):
        _add_vector(vector, region, total, threads)


def _vector_bytes(vector: VectorSpec) -> int:
    return packed_bytes(vector.length, vector.ring_bits) + TAG_BYTES * -(-vector.length // CHUNK)


def _block(vector: VectorSpec, region: UInt8[np.ndarray, " _"], piece: slice) -> UInt8[np.ndarray, " _"]:
    """A block with its tag, found by the entries it holds."""
    start = piece.start // CHUNK * (packed_bytes(CHUNK, vector.ring_bits) + TAG_BYTES)
    return region[start : start + packed_bytes(piece.stop - piece.start, vector.ring_bits) + TAG_BYTES]


def _nonce(index: int, piece: slice) -> bytes:
    return index.to_bytes(4, "big") + (int(piece.start) // CHUNK).to_bytes(8, "big")


def _write_vector(
    vector: VectorSpec,
    index: int,
    values: Int32[np.ndarray, " d"],
    masks: Sequence[Mask],
    tags: AESGCM,
    region: UInt8[np.ndarray, " _"],
    threads: int,
) -> None:
    def write(start: int, stop: int) -> None:
        for piece, words in masked_pieces(values.view(np.uint32), masks, start, stop):
            _check_levels(vector, values[piece])
            block = _block(vector, region, piece)
            pack(words, vector.ring_bits, block[:-TAG_BYTES])
            block[-TAG_BYTES:] = memoryview(tags.encrypt(_nonce(index, piece), b"", block[:-TAG_BYTES].data))

    spread(vector.length, threads, write)


def _check_levels(vector: VectorSpec, values: NDArray[np.int32]) -> None:
    if np.maximum.reduce(values) > vector.levels or np.minimum.reduce(values) < -vector.levels:
        raise ValueError(f"levels of {vector.name!r}: need -{vector.levels} to {vector.levels}, or the sum could wrap")


def _check_tags(vector: VectorSpec, index: int, tags: AESGCM, region: UInt8[np.ndarray, " _"], threads: int) -> None:
    def check(start: int, stop: int) -> None:
        for piece in pieces(start, stop):
            block = _block(vector, region, piece)
            tags.decrypt(_nonce(index, piece), block[-TAG_BYTES:].data, block[:-TAG_BYTES].data)

    try:
        spread(vector.length, threads, check)
    except InvalidTag as error:
        raise MessageError(f"upload of {vector.name!r} is damaged or another party's") from error


def _add_vector(
    vector: VectorSpec, region: UInt8[np.ndarray, " _"], total: UInt32[np.ndarray, " d"], threads: int
) -> None:
    def add(start: int, stop: int) -> None:
        scratch = np.empty(min(CHUNK, stop - start), np.uint32)
        for piece in pieces(start, stop):
            block = _block(vector, region, piece)[:-TAG_BYTES]
            add_packed(block, vector.ring_bits, total[piece], scratch[: piece.stop - piece.start])

    spread(vector.length, threads, add)
