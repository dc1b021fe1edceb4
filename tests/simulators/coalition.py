"""A coordinator together with some hospitals: everything they can derive from what they were sent and were told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product

from replay import Recording

from privfm.secagg import Stage, client, keys
from privfm.secagg.exchange import exchange
from privfm.secagg.messages import Reveal, Seed
from privfm.secagg.shamir import recover

Incidence = tuple[tuple[tuple[int, int], ...], ...]  # for each honest hospital: (unknown mask, sign), ...


class Coalition:
    """Knows all secrets of its members, every message, and what honest hospitals opened."""

    def __init__(self, story: Recording, members: Iterable[str]) -> None:
        self.story = story
        self.members = frozenset(members)
        self.honest = tuple(name for name in story.rig.names if name not in self.members)
        self.shared: dict[str, client.Shared] = story.before[Stage.MASK]
        self.masked: dict[str, client.Masked] = story.before[Stage.AGREE]
        self.points = {name: point for point, name in enumerate(story.rig.names, start=1)}

    def shares(self, dealer: str, seed: Seed, opened: Iterable[Reveal]) -> dict[int, bytes]:
        """By point: what its members hold, and what was opened to it."""
        found = {self.points[name]: self.masked[name].held[dealer].of(seed).value for name in self.members}
        for reveal in opened:
            for opening in reveal.openings:
                if (opening.dealer, opening.seed) == (dealer, seed):
                    found[self.points[reveal.sender]] = opening.share.value
        return found

    def seed(self, dealer: str, seed: Seed, opened: Sequence[Reveal]) -> bytes | None:
        """A hospital's seed, if it can be had."""
        if dealer in self.members:
            state = self.shared[dealer]
            return state.self_seed if seed is Seed.SELF_MASK else state.mask_seed
        shares = self.shares(dealer, seed, opened)
        threshold = self.story.rig.spec.threshold
        return recover(shares, threshold) if len(shares) >= threshold else None

    def known_masks(self, opened: Sequence[Reveal]) -> set[bytes]:
        """The keys of every mask that it can expand."""
        found: set[bytes] = set()
        for dealer, state in self.shared.items():
            vectors, context1 = state.own.spec.vectors, state.context1
            if (self_seed := self.seed(dealer, Seed.SELF_MASK, opened)) is not None:
                found.update(mask.key for mask in keys.self_masks(self_seed, context1, dealer, vectors))
            if (mask_seed := self.seed(dealer, Seed.MASK_KEY, opened)) is not None:
                for peer, package in state.packages.items():
                    if peer != dealer:
                        secret = exchange(mask_seed, package.mask_key)
                        found.update(mask.key for mask in keys.pair_masks(secret, context1, dealer, peer, vectors))
        return found

    def unknown(self, opened: Sequence[Reveal]) -> Incidence:
        """For each honest hospital's first vector, the masks in it that the coalition cannot expand, by number."""
        known = self.known_masks(opened)
        numbers: dict[bytes, int] = {}
        rows = []
        for name in self.honest:
            peers = [peer for peer in self.masked[name].dealings if peer != name]
            masks = self.shared[name].masks(peers)[0]
            rows.append(
                tuple(
                    (numbers.setdefault(mask.key, len(numbers)), mask.sign) for mask in masks if mask.key not in known
                )
            )
        return tuple(rows)


def smallest_group(rows: Incidence) -> int:
    """The fewest honest hospitals whose sum of vectors is determined.

    Hospitals that share an unknown mask belong together; a mask in one hospital's vector alone hides its whole group.
    """
    groups: list[tuple[set[int], set[int]]] = []
    for index, row in enumerate(rows):
        merged = ({index}, {number for number, _ in row})
        for group in [group for group in groups if group[1] & merged[1]]:
            groups.remove(group)
            merged = (merged[0] | group[0], merged[1] | group[1])
        groups.append(merged)
    uses = Counter(number for row in rows for number, _ in row)
    sizes = [len(members) for members, masks in groups if all(uses[mask] == 2 for mask in masks)]
    return min(sizes, default=len(rows))


def view_distribution(rows: Incidence, values: Sequence[int], ring: int) -> Counter[tuple[int, ...]]:
    """How often each tuple of masked values occurs, over every value of every unknown mask."""
    count = 1 + max((number for row in rows for number, _ in row), default=-1)
    views: Counter[tuple[int, ...]] = Counter()
    for masks in product(range(ring), repeat=count):
        views[
            tuple(
                (value + sum(sign * masks[number] for number, sign in row)) % ring
                for value, row in zip(values, rows, strict=True)
            )
        ] += 1
    return views
