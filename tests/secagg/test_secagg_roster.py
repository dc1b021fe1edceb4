"""Identity files and rosters."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from rounds import entropy, identity

from privfm.errors import InputError, ProtocolError, VerificationError
from privfm.secagg import COORDINATOR, Identity, Member, Roster, check_successor, fingerprint, roster_diff
from privfm.secagg.identity import verify

SALT = bytes(range(16))
A, B, C = (identity(name).public for name in "abc")


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_an_identity_file_opens_again(passphrase: bytes | None) -> None:
    made = Identity.generate("Hôpital", entropy("new"))
    pem = made.to_pem(passphrase, SALT)
    found = Identity.from_pem(pem, passphrase)
    assert (found.name, found.public) == (made.name, made.public)
    assert found.sign("s", bytes(32), b"") == made.sign("s", bytes(32), b"")
    sealed = passphrase is not None
    assert (entropy("new") in base64.b64decode(b"".join(pem.split(b"\n")[1:-2]))) != sealed


def test_a_sealed_identity_needs_its_passphrase() -> None:
    pem = identity("a").to_pem(b"correct horse", SALT)
    with pytest.raises(InputError, match="give its passphrase"):
        Identity.from_pem(pem, None)
    with pytest.raises(InputError, match="passphrase is wrong"):
        Identity.from_pem(pem, b"battery staple")
    with pytest.raises(ValueError, match="passphrase"):
        identity("a").to_pem(b"", SALT)


def test_a_damaged_identity_file_is_refused() -> None:
    pem = identity("a").to_pem(None, SALT)
    body = pem.split(b"\n")[1]
    for damaged in (b"", b"\xff", pem[:-5], pem.replace(body, body[4:]), pem.replace(body, b"!" + body), pem + pem):
        with pytest.raises(InputError):
            Identity.from_pem(damaged, None)


def test_a_renamed_sealed_identity_does_not_open() -> None:
    pem = identity("a").to_pem(b"p", SALT)
    lines = pem.decode().split("\n")
    body = bytearray(base64.b64decode("".join(lines[1:-2])))
    assert body[5:6] == b"a"
    body[5:6] = b"b"
    forged = "\n".join([lines[0], base64.b64encode(body).decode(), lines[-2], ""]).encode()
    with pytest.raises(InputError, match="does not open"):
        Identity.from_pem(forged, b"p")


def test_the_private_half_is_never_shown() -> None:
    seed = entropy("identity", "a")
    assert seed.hex() not in repr(identity("a"))
    assert repr(seed) not in repr(identity("a"))


def test_signatures_are_bound_to_stage_context_body_and_key() -> None:
    signature = identity("a").sign("share", bytes(32), b"body")
    verify(A, "share", bytes(32), b"body", signature)
    for key, stage, context, body in (
        (B, "share", bytes(32), b"body"),
        (A, "agree", bytes(32), b"body"),
        (A, "share", entropy("x"), b"body"),
        (A, "share", bytes(32), b"bodY"),
    ):
        with pytest.raises(ProtocolError, match="does not verify"):
            verify(key, stage, context, body, signature)


def test_fingerprints_can_be_read_out() -> None:
    groups = fingerprint(A).split(" ")
    assert len(groups) == 8
    assert all(len(group) == 5 and group.isdigit() for group in groups)
    assert fingerprint(A) != fingerprint(B)


def test_a_roster_comes_back_from_its_file() -> None:
    roster = Roster.first("f", {"b": B, "a": A}).successor({"a": A, "c": C})
    assert Roster.from_json(roster.to_json()) == roster
    assert roster.names == ("a", "c")
    assert roster.revoked == (B,)


def test_the_digest_covers_every_field() -> None:
    base = Roster.first("f", {"a": A, "b": B})
    others = [
        Roster.first("g", {"a": A, "b": B}),
        Roster.first("f", {"a": B, "b": A}),
        Roster.first("f", {"a": A, "c": B}),
        Roster.first("f", {"a": A}),
        base.successor({"a": A, "b": B}),
        Roster("f", 1, base.members, (C,)),
    ]
    assert len({roster.digest for roster in [base, *others]}) == len(others) + 1


def test_keys_that_left_never_come_back() -> None:
    first = Roster.first("f", {"a": A, "b": B})
    second = first.successor({"a": A, "b": C})
    check_successor(first, second)
    with pytest.raises(ValueError, match="'b' was revoked"):
        second.successor({"a": A, "b": B})
    unrevoked = Roster("f", 2, second.members, (), first.digest)
    with pytest.raises(VerificationError, match="without revoking"):
        check_successor(first, unrevoked)


def test_only_the_next_version_made_from_this_one_follows() -> None:
    first = Roster.first("f", {"a": A, "b": B})
    second = first.successor({"a": A, "b": B})
    third = second.successor({"a": A, "b": B})
    other = Roster.first("f", {"a": A, "c": C}).successor({"a": A, "c": C})
    for old, new in ((first, third), (second, first), (first, first), (first, other)):
        with pytest.raises(VerificationError, match="does not follow"):
            check_successor(old, new)
    skipping = Roster("f", 3, second.members, (), first.digest)
    with pytest.raises(VerificationError, match="ask for the ones between"):
        check_successor(first, skipping)
    with pytest.raises(VerificationError, match="is of 'g'"):
        check_successor(first, Roster.first("g", {"a": A}))


def test_a_key_stays_with_its_name() -> None:
    first = Roster.first("f", {"a": A, "b": B})
    swapped = Roster("f", 2, (Member("a", B), Member("b", A)), (), first.digest)
    moved = Roster("f", 2, (Member("a", A), Member("c", B)), (), first.digest)
    for new, said in ((swapped, "the key of b to a"), (moved, "the key of b to c")):
        with pytest.raises(VerificationError, match=f"{said}; a key belongs to one name"):
            check_successor(first, new)


def test_a_diff_says_who_joins_leaves_and_has_another_key() -> None:
    first = Roster.first("f", {"a": A, "b": B})
    second = first.successor({"a": C, "d": identity("d").public})
    lines = roster_diff(first, second)
    assert lines[0] == "version: 1 -> 2"
    assert lines[1] == f"a: {fingerprint(A)} -> {fingerprint(C)}"
    assert lines[2] == f"b: {fingerprint(B)} -> not a member"
    assert lines[3].startswith("d: not a member -> ")
    assert sum(line.startswith("revoked: ") for line in lines) == 2
    assert roster_diff(first, first) == ()


def test_members_are_sound() -> None:
    with pytest.raises(ValueError, match="reserved"):
        Member(COORDINATOR, A)
    with pytest.raises(ValueError, match="small order"):
        Member("a", (1).to_bytes(32, "little"))
    with pytest.raises(ValueError, match="each key once"):
        Roster.first("f", {"a": A, "b": A})
    with pytest.raises(ValueError, match="at least one"):
        Roster.first("f", {})


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(Roster.first("f", {"a": A, "b": B}).to_json()), **fields}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        changed(format="other"),
        changed(version=True),
        changed(version=0),
        changed(version=2),
        changed(version="1"),
        changed(federation=3),
        changed(members=[]),
        changed(members={"a": 7}),
        changed(members={"a": "zz"}),
        changed(members={"a": A.hex()[2:]}),
        changed(members={"coordinator": A.hex()}),
        changed(revoked=[A.hex()]),
        changed(revoked=["00"]),
        changed(previous="00"),
        changed(surplus=1),
        Roster.first("f", {"a": A}).to_json().replace(b'"version"', b'"version": 1, "version"'),
    ],
)
def test_an_unsound_roster_file_is_one_line_of_input_error(data: bytes) -> None:
    with pytest.raises(InputError, match="roster file is not sound") as caught:
        Roster.from_json(data)
    assert "\n" not in str(caught.value)
