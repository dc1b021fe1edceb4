"""Fields, names and digests: one meaning for each string of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfm.secagg.encoding import MessageError, Reader, Writer, check_bytes, check_name, digest, signed_bytes


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_digests_of_different_fields_differ(left: list[bytes], right: list[bytes]) -> None:
    assert (digest("x", *left) == digest("x", *right)) == (left == right)


def test_digests_and_signatures_are_separated_by_label() -> None:
    assert digest("a", b"b") != digest("b", b"b")
    assert signed_bytes("share", bytes(32), b"") == b"privfm/v1/share\0" + bytes(32)


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=20))
def test_fields_come_back(small: int, middle: int, large: int, blob: bytes) -> None:
    data = bytes(Writer().u8(small).u32(middle).u64(large).blob(blob))
    reader = Reader(data)
    assert (reader.u8(), reader.u32(), reader.u64(), reader.blob(20)) == (small, middle, large, blob)
    reader.end()
    for cut in range(len(data)):
        with pytest.raises(MessageError):
            read_all(data[:cut])
    with pytest.raises(MessageError, match="follow"):
        read_all(data + b"\0")


def read_all(data: bytes) -> None:
    reader = Reader(data)
    reader.u8(), reader.u32(), reader.u64(), reader.blob(20)
    reader.end()


def test_lengths_and_counts_are_limited_before_anything_is_read() -> None:
    huge = Writer().u32(2**32 - 1)
    with pytest.raises(MessageError, match="at most 9 fit"):
        Reader(bytes(huge)).blob(9)
    with pytest.raises(MessageError, match="4294967295 items where at most 3 fit"):
        Reader(bytes(huge)).sequence(3, Reader.u8)


@pytest.mark.parametrize("name", ["a", "Hôpital Saint-Louis", "病院", "x" * 64])
def test_names_of_people_and_places_are_allowed(name: str) -> None:
    check_name(name)
    assert Reader(bytes(Writer().name(name))).name() == name


@pytest.mark.parametrize("name", ["", " a", "a ", "a\n", "a\0b", "e\u0301", "x" * 65, "\u202eabc", "\ud800", "é" * 33])
def test_names_that_two_readers_could_take_for_another_are_not(name: str) -> None:
    with pytest.raises(ValueError, match="name="):
        check_name(name)
    raw = name.encode("utf-8", "surrogatepass")
    with pytest.raises(MessageError):
        Reader(bytes(Writer().blob(raw))).name()


def test_check_bytes_names_the_field_but_shows_no_bytes() -> None:
    with pytest.raises(ValueError, match="head: need 32 bytes, not 3") as caught:
        check_bytes("head", b"abc", 32)
    assert "abc" not in str(caught.value)
