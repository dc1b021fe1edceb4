"""Cards and revocations: what is signed, and that nothing unsigned or half-signed is read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import entropy, identity

from privfm.errors import InputError, VerificationError
from privfm.secagg import Identity, Roster
from privfm.secagg.cards import CARD_LIMIT, Card, Revocation, parse_paper

OLD = identity("north")
NEW = Identity.generate("north", entropy("rotated"))
OTHER = identity("south")
FIRST, ROTATED, REVOKED = Card.of(OLD), Card.of(NEW, replaces=OLD), Revocation.of(OLD)
PAPERS = [FIRST, ROTATED, REVOKED]


def changed(paper: Card | Revocation, **fields: Any) -> bytes:
    return json.dumps({**json.loads(paper.to_json()), **fields}).encode()


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_comes_back_from_its_file(paper: Card | Revocation) -> None:
    assert parse_paper(paper.to_json()) == paper
    assert type(paper).from_json(paper.to_json()) == paper


def test_the_signed_bytes_are_the_documented_ones() -> None:
    zeros, named = bytes(32), len(b"north").to_bytes(4, "big") + b"north"
    old, new = (Ed25519PublicKey.from_public_bytes(key) for key in (OLD.public, NEW.public))
    old.verify(FIRST.signature, b"privfm/v1/card\0" + zeros + named + OLD.public + b"\0")
    body = zeros + named + NEW.public + b"\1" + OLD.public
    new.verify(ROTATED.signature, b"privfm/v1/card\0" + body)
    assert ROTATED.replaces is not None
    old.verify(ROTATED.replaces.signature, b"privfm/v1/rotation\0" + body)
    old.verify(REVOKED.signature, b"privfm/v1/revocation\0" + zeros + named + OLD.public)


def test_formats_and_stages_are_as_written() -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    for paper in (ROTATED, REVOKED, Roster.first("f", {"north": OLD.public})):
        fields = json.loads(paper.to_json())
        start = f"| `{fields.pop('format')}` |"
        row = next(line for line in text.splitlines() if line.startswith(start))
        assert all(f"`{key}`" in row for key in fields)
    for stage in ("card", "rotation", "revocation"):
        assert f"\n| `{stage}` | " in text
    assert f"`{b'privfm/v1/card'.hex()}00`" in text


@pytest.mark.parametrize(
    "data",
    [
        changed(FIRST, name="south"),
        changed(FIRST, key=OTHER.public.hex()),
        changed(FIRST, signature=Card.of(OTHER).signature.hex()),
        changed(FIRST, signature=REVOKED.signature.hex()),
        changed(FIRST, replaces=json.loads(ROTATED.to_json())["replaces"]),
        changed(ROTATED, replaces={}),
        changed(ROTATED, replaces={"key": OLD.public.hex(), "signature": ROTATED.signature.hex()}),
        changed(ROTATED, replaces={"key": OTHER.public.hex(), "signature": ROTATED.signature.hex()}),
        changed(REVOKED, name="south"),
        changed(REVOKED, key=OTHER.public.hex()),
        changed(REVOKED, signature=FIRST.signature.hex()),
    ],
)
def test_a_tampered_paper_does_not_verify(data: bytes) -> None:
    with pytest.raises(VerificationError, match="does not verify"):
        parse_paper(data)


def test_the_old_key_signs_for_one_new_key_only() -> None:
    """The old key's signature in an honest rotation, moved to the card of a stranger's key."""
    thief = Identity.generate("north", entropy("thief"))
    assert ROTATED.replaces is not None
    own = thief.sign("card", bytes(32), b"\0\0\0\5north" + thief.public + b"\1" + OLD.public)
    with pytest.raises(VerificationError, match="rotation signature"):
        Card("north", thief.public, own, ROTATED.replaces)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        b"[" * 4000,
        FIRST.to_json()[:-3],
        FIRST.to_json() + b"{}",
        b"\xef\xbb\xbf" + FIRST.to_json(),
        FIRST.to_json().decode().encode("utf-16"),
        FIRST.to_json() + b" " * CARD_LIMIT,
        FIRST.to_json().replace(b'"name"', b'"name": "south", "name"'),
        ROTATED.to_json().replace(b'"replaces"', b'"replaces": {}, "replaces"'),
        changed(FIRST, format="privfm card 2"),
        changed(FIRST, format=1),
        changed(FIRST, surplus=1),
        changed(FIRST, name=7),
        changed(FIRST, name=""),
        changed(FIRST, name="nor\u202eth"),
        changed(FIRST, name="nor\ud800th"),
        changed(FIRST, name="coordinator"),
        changed(FIRST, key=None),
        changed(FIRST, key=OLD.public.hex().upper()),
        changed(FIRST, key=" " + OLD.public.hex()[1:]),
        changed(FIRST, key=OLD.public.hex()[2:]),
        changed(FIRST, key=(1).to_bytes(32, "little").hex()),
        changed(FIRST, signature="00"),
        changed(FIRST, replaces=None),
        changed(FIRST, replaces={"key": OLD.public.hex()}),
        changed(REVOKED, replaces={}),
        changed(REVOKED, key="00"),
        Roster.first("f", {"north": OLD.public}).to_json(),
    ],
)
def test_an_unsound_file_is_one_line_of_input_error(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        parse_paper(data)
    assert "\n" not in str(caught.value)


def test_a_key_cannot_replace_itself_or_another_hospitals() -> None:
    with pytest.raises(ValueError, match="replaces itself"):
        Card.of(OLD, replaces=OLD)
    with pytest.raises(ValueError, match="same name"):
        Card.of(NEW, replaces=OTHER)
    with pytest.raises(ValueError, match="64 bytes"):
        Card("north", OLD.public, b"")


@pytest.mark.parametrize("paper", PAPERS)
def test_the_private_half_is_nowhere(paper: Card | Revocation) -> None:
    for secret in (entropy("identity", "north"), entropy("rotated")):
        assert secret.hex() not in paper.to_json().decode() + repr(paper)


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_noise_is_refused(data: bytes) -> None:
    for parse in (parse_paper, Card.from_json, Revocation.from_json, Roster.from_json):
        with pytest.raises(InputError):
            parse(data)


@settings(max_examples=300)
@given(st.sampled_from(PAPERS), st.data())
def test_every_byte_that_means_anything_is_signed(paper: Card | Revocation, data: st.DataObject) -> None:
    """A file with some bytes changed is refused, or is the same paper."""
    file = bytearray(paper.to_json())
    at = data.draw(st.integers(0, len(file) - 1))
    file[at : at + data.draw(st.integers(0, 3))] = data.draw(
        st.binary(max_size=3) | st.sampled_from([b"0", b'"', b"}"])
    )
    with contextlib.suppress(InputError, VerificationError):
        assert parse_paper(bytes(file)) == paper


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_roster_file_is_refused_or_means_something_else(data: st.DataObject) -> None:
    roster = Roster.first("f", {"north": OLD.public, "south": OTHER.public})
    file = bytearray(roster.to_json())
    at = data.draw(st.integers(0, len(file) - 1))
    file[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(InputError):
        found = Roster.from_json(bytes(file))
        assert (found == roster) == (found.fingerprint == roster.fingerprint)


def test_a_roster_file_has_a_limit() -> None:
    roster = Roster.first("f", {"north": OLD.public})
    with pytest.raises(InputError, match="longer than"):
        Roster.from_json(roster.to_json() + b" " * 2**24)
