"""From cards to the next roster: who may join, change a key, or leave, and on whose word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from privfm.errors import InputError, VerificationError
from privfm.secagg.cards import Card, Revocation
from privfm.secagg.identity import fingerprint
from privfm.secagg.roster import Roster

__all__ = ["first_roster", "next_roster"]


def first_roster(federation: str, cards: Iterable[Card]) -> Roster:
    """Version 1, with everybody who sent a card.

    Raises:
        InputError: no card, two for one name, or one key under two names.
    """
    keys = {name: card.key for name, card in _by_name(cards).items()}
    return _sound(lambda: Roster.first(federation, keys))


def next_roster(
    old: Roster,
    cards: Iterable[Card],
    revocations: Sequence[Revocation] = (),
    *,
    removed: Iterable[str] = (),
    replaced: Iterable[str] = (),
) -> Roster:
    """The version after `old`.

    Rules:
        A new name joins by its card. A member's new key needs the signature of the key that `old` holds, unless the
        name is in `replaced`; the signature of a revoked key counts for nothing. A revoked key's member leaves unless
        it has a card in `replaced`. No key that was revoked comes back, and no key moves to another name.

    Args:
        old: the version in force.
        cards: of who joins or changes its key.
        revocations: of keys that nobody may use any more, members' or not.
        removed: names that leave.
        replaced: names whose new fingerprint was compared by telephone, since their old key cannot sign.

    Raises:
        InputError: names or files that do not fit each other or the roster, or nothing would change.
        VerificationError: a card that `old` gives no reason to believe.
    """
    sent, gone, trusted = _by_name(cards), frozenset(removed), frozenset(replaced)
    _check_names(old, sent, gone, trusted)
    dead = _revoked(old, revocations)
    for card in sent.values():
        _check_card(old, card, dead, trusted)
    kept = {name: key for name, key in old.keys.items() if name not in gone and key not in dead}
    keys = kept | {name: card.key for name, card in sent.items()}
    if keys == old.keys and dead == set(old.revoked):
        raise InputError("nothing would change: the roster holds these very keys")
    return _sound(lambda: old.successor(keys, revoked=dead))


def _by_name(cards: Iterable[Card]) -> dict[str, Card]:
    found: dict[str, Card] = {}
    for card in cards:
        if card.name in found:
            raise InputError(
                f"two cards of {card.name!r}: ask that hospital which one it means, and leave the other out"
            )
        found[card.name] = card
    return found


def _sound(make: Callable[[], Roster]) -> Roster:
    try:
        return make()
    except ValueError as error:
        raise InputError(f"no roster can be made: {error}") from error


def _check_names(old: Roster, sent: dict[str, Card], removed: frozenset[str], replaced: frozenset[str]) -> None:
    for name in sorted(removed):
        if name not in old.names:
            raise InputError(f"--remove {name}: no such member; there are {', '.join(old.names)}")
        if name in sent:
            raise InputError(f"--remove {name}: its card was given as well; leave one of the two out")
    for name in sorted(replaced):
        if name not in old.names or name not in sent:
            raise InputError(f"--replace {name}: needs a member of the previous roster and its new card")


def _revoked(old: Roster, revocations: Sequence[Revocation]) -> set[bytes]:
    owners = {key: name for name, key in old.keys.items()}
    for revocation in revocations:
        owner = owners.get(revocation.key, revocation.name)
        if owner != revocation.name:
            raise VerificationError(
                f"revocation of {revocation.name!r} is for the key of {owner!r}: ask both by telephone"
            )
    return {*old.revoked, *(revocation.key for revocation in revocations)}


def _check_card(old: Roster, card: Card, dead: set[bytes], replaced: frozenset[str]) -> None:
    owner = next((name for name, key in old.keys.items() if key == card.key), card.name)
    if card.key in dead:
        raise VerificationError(
            f"the key on the card of {card.name!r} was revoked: it needs a new one (privfm keys new)"
        )
    if owner != card.name:
        raise VerificationError(f"the key on the card of {card.name!r} is that of {owner!r}: it needs one of its own")
    held = old.keys.get(card.name, card.key)
    if held != card.key and card.name not in replaced:
        _check_rotation(card, held, dead)


def _check_rotation(card: Card, held: bytes, dead: set[bytes]) -> None:
    last_resort = f"if its old key is lost, compare {card.fingerprint} by telephone and add --replace {card.name}"
    if held in dead:
        raise VerificationError(f"the old key of {card.name!r} is revoked and vouches for no card: {last_resort}")
    if card.replaces is None or card.replaces.key != held:
        raise VerificationError(
            f"the card of {card.name!r} is not signed by the key that the roster holds, {fingerprint(held)}: "
            f"it should run privfm keys rotate on that one; {last_resort}"
        )
