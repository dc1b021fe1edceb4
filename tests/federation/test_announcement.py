import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfm.errors import ProtocolError
from privfm.federation.announcement import Announcement, model_hash

MODEL = np.arange(4, dtype=np.float32)
WHOLE = Announcement(3, 1, 0, ("a", "b", "c"), MODEL)


def test_what_is_encoded_is_decoded() -> None:
    again = Announcement.decode(WHOLE.encode(), 4)
    assert (again.round, again.attempt, again.generation, again.cohort) == (3, 1, 0, ("a", "b", "c"))
    np.testing.assert_array_equal(again.model, MODEL)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE.encode()[:-1],
        WHOLE.encode() + b"\0",
        b"\xff\xff\xff\xff" + WHOLE.encode()[4:],
        WHOLE.encode().replace(b'"round": 3', b'"round": 0'),
        WHOLE.encode().replace(b'"round": 3', b'"roumd": 3'),
        WHOLE.encode().replace(b'"round": 3', b'"round":"3'),
        WHOLE.encode().replace(b'"c"]', b"   1]"),
        Announcement(3, 1, 0, ("a",), np.array([0, 1, np.nan, 2], dtype=np.float32)).encode(),
    ],
)
def test_anything_else_is_the_coordinators_fault(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Announcement.decode(data, 4)
    assert caught.value.blamed == ("coordinator",)


@given(st.binary(max_size=200))
def test_rubbish_raises_nothing_else(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Announcement.decode(data, 4)


def test_the_hash_binds_start_model_and_generation() -> None:
    hashes = {
        model_hash(b"s" * 32, WHOLE),
        model_hash(b"t" * 32, WHOLE),
        model_hash(b"s" * 32, Announcement(3, 1, 1, WHOLE.cohort, MODEL)),
        model_hash(b"s" * 32, Announcement(3, 1, 0, WHOLE.cohort, MODEL + 1)),
    }
    assert len(hashes) == 4
