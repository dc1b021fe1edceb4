"""Who gets into the next roster, and on whose word."""

from __future__ import annotations

import pytest
from rounds import entropy, identity

from privfm.errors import InputError, VerificationError
from privfm.secagg import Identity, Roster, check_successor
from privfm.secagg.cards import Card, Revocation
from privfm.secagg.enrolment import first_roster, next_roster

NORTH, SOUTH, WEST = (identity(name) for name in ("north", "south", "west"))
AGAIN = Identity.generate("north", entropy("again"))
THIRD = Identity.generate("north", entropy("third"))
OLD = first_roster("demo", [Card.of(NORTH), Card.of(SOUTH)])


def test_the_first_roster_holds_every_card() -> None:
    assert Roster.first("demo", {"north": NORTH.public, "south": SOUTH.public}) == OLD
    for cards in ([], [Card.of(NORTH), Card.of(AGAIN)]):
        with pytest.raises(InputError):
            first_roster("demo", cards)
    with pytest.raises(InputError, match="each key once"):
        first_roster("demo", [Card.of(NORTH), Card.of(Identity("south", entropy("identity", "north")))])
    with pytest.raises(InputError, match="printable"):
        first_roster(" demo", [Card.of(NORTH)])


def test_joining_leaving_and_rotating_make_a_successor() -> None:
    new = next_roster(OLD, [Card.of(AGAIN, replaces=NORTH), Card.of(WEST)], removed=["south"])
    check_successor(OLD, new)
    assert new.keys == {"north": AGAIN.public, "west": WEST.public}
    assert set(new.revoked) == {NORTH.public, SOUTH.public}


def test_a_card_that_is_in_force_changes_nothing_for_its_owner() -> None:
    assert next_roster(OLD, [Card.of(NORTH), Card.of(WEST)]).key_of("north") == NORTH.public
    with pytest.raises(InputError, match="nothing would change"):
        next_roster(OLD, [Card.of(NORTH)])


@pytest.mark.parametrize(
    "card", [Card.of(AGAIN), Card.of(AGAIN, replaces=THIRD), Card.of(Identity("north", entropy("identity", "west")))]
)
def test_another_key_needs_the_signature_of_the_one_in_force(card: Card) -> None:
    with pytest.raises(VerificationError, match="not signed by the key that the roster holds"):
        next_roster(OLD, [card])
    assert next_roster(OLD, [card], replaced=["north"]).key_of("north") == card.key


def test_an_old_rotation_cannot_be_played_again() -> None:
    rotated = Card.of(AGAIN, replaces=NORTH)
    newest = next_roster(next_roster(OLD, [rotated]), [Card.of(THIRD, replaces=AGAIN)])
    with pytest.raises(VerificationError, match="was revoked"):
        next_roster(newest, [rotated])
    with pytest.raises(VerificationError, match="was revoked"):
        next_roster(newest, [rotated], replaced=["north"])


def test_a_revoked_key_leaves_and_stays_out() -> None:
    new = next_roster(OLD, [], [Revocation.of(NORTH)])
    assert new.names == ("south",)
    for cards, replaced in (([Card.of(NORTH)], []), ([Card.of(Identity("x", entropy("identity", "north")))], [])):
        with pytest.raises(VerificationError, match="was revoked"):
            next_roster(new, cards, replaced=replaced)
    assert next_roster(new, [Card.of(AGAIN)]).key_of("north") == AGAIN.public


def test_a_revoked_key_vouches_for_nobody() -> None:
    """A thief who has the key signs a rotation; the hospital revokes."""
    stolen, revocation = Card.of(AGAIN, replaces=NORTH), Revocation.of(NORTH)
    with pytest.raises(VerificationError, match="vouches for no card"):
        next_roster(OLD, [stolen], [revocation])
    new = next_roster(OLD, [Card.of(THIRD)], [revocation], replaced=["north"])
    assert new.key_of("north") == THIRD.public
    assert NORTH.public in new.revoked


def test_a_key_that_never_was_a_members_can_be_revoked() -> None:
    new = next_roster(OLD, [], [Revocation.of(WEST)])
    check_successor(OLD, new)
    assert new.keys == OLD.keys
    with pytest.raises(VerificationError, match="was revoked"):
        next_roster(new, [Card.of(WEST)])
    with pytest.raises(InputError, match="nothing would change"):
        next_roster(new, [], [Revocation.of(WEST)])


def test_a_key_belongs_to_one_name() -> None:
    alias = Identity("west", entropy("identity", "north"))
    with pytest.raises(VerificationError, match="is that of 'north'"):
        next_roster(OLD, [Card.of(alias)], removed=["north"])
    with pytest.raises(VerificationError, match="is for the key of 'north'"):
        next_roster(OLD, [], [Revocation.of(alias)])


def test_names_that_do_not_fit_are_refused() -> None:
    for removed, replaced, cards in (
        (["east"], [], []),
        (["north"], [], [Card.of(NORTH)]),
        ([], ["north"], []),
        ([], ["west"], [Card.of(WEST)]),
        (["north", "south"], [], []),
    ):
        with pytest.raises(InputError):
            next_roster(OLD, cards, removed=removed, replaced=replaced)
