"""From shares that came back to the masks that do not cancel in the total, and the total without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt32

from privfm.errors import ProtocolError
from privfm.secagg import keys
from privfm.secagg.chunks import spread
from privfm.secagg.exchange import exchanges, public_key
from privfm.secagg.masks import Mask, masked_pieces
from privfm.secagg.messages import Dealing, KeyPackage, Reveal, Seed
from privfm.secagg.ring import lift
from privfm.secagg.shamir import recover
from privfm.secagg.spec import VectorSpec

__all__ = ["Recovery", "unmask_totals"]


@dataclass(frozen=True)
class Recovery:
    """What was signed before shares came back, by which they are judged.

    Args:
        points: by holder, where its shares lie on their polynomials.
        threshold: how many shares make a seed.
    """

    context1: bytes
    vectors: Sequence[VectorSpec]
    packages: Mapping[str, KeyPackage]
    dealings: Mapping[str, Dealing]
    survivors: frozenset[str]
    points: Mapping[str, int]
    threshold: int

    def check_openings(self, reveal: Reveal, dealers: Sequence[str]) -> None:
        """Refuse shares that were not asked for, or are not those dealt.

        Args:
            dealers: whose shares the sender holds, ascending.

        Raises:
            ProtocolError: saying which.
        """
        expected = [(dealer, self._seed_to_open(dealer)) for dealer in dealers]
        if [(opening.dealer, opening.seed) for opening in reveal.openings] != expected:
            raise ProtocolError("opens other shares than it was asked for")
        for opening in reveal.openings:
            committed = self.dealings[opening.dealer].to(reveal.sender).of(opening.seed)
            if opening.share.commitment(self.context1, opening.dealer, reveal.sender, opening.seed) != committed:
                raise ProtocolError(f"returns another share than {opening.dealer} dealt")

    def masks_in_total(
        self, reveals: Mapping[str, Reveal], masked_with: Mapping[str, Sequence[str]]
    ) -> list[list[Mask]]:
        """For each vector, every mask that does not cancel in the total.

        Args:
            reveals: checked, by holder.
            masked_with: by each dealer that dropped out, the survivors that masked with it.

        Raises:
            ProtocolError: too few shares of a seed came back, or they make no seed, for which their dealer is blamed.
        """
        shares: dict[str, dict[int, bytes]] = {}
        for name, reveal in reveals.items():
            for opening in reveal.openings:
                shares.setdefault(opening.dealer, {})[self.points[name]] = opening.share.value
        by_party = []
        for survivor in sorted(self.survivors):
            seed = self._recover(survivor, shares.get(survivor, {}))
            by_party.append(keys.self_masks(seed, self.context1, survivor, self.vectors))
        for dropped, survivors in sorted(masked_with.items()):
            seed = self._recover(dropped, shares.get(dropped, {}))
            secrets = exchanges(seed, (self.packages[survivor].mask_key for survivor in survivors))
            for survivor, secret in zip(survivors, secrets, strict=True):
                by_party.append(keys.pair_masks(secret, self.context1, survivor, dropped, self.vectors))
        return [list(masks) for masks in zip(*by_party, strict=True)]

    def _seed_to_open(self, dealer: str) -> Seed:
        return Seed.SELF_MASK if dealer in self.survivors else Seed.MASK_KEY

    def _recover(self, dealer: str, shares: Mapping[int, bytes]) -> bytes:
        if len(shares) < self.threshold:
            raise ProtocolError(
                f"unmask: {len(shares)} hospitals opened their shares of {dealer}, need {self.threshold}"
            )
        seed = recover(shares, self.threshold)
        if seed is None or not self._is_seed_of(dealer, seed):
            raise ProtocolError(f"{dealer} dealt shares that do not make the seed it committed to", (dealer,))
        return seed

    def _is_seed_of(self, dealer: str, seed: bytes) -> bool:
        if self._seed_to_open(dealer) is Seed.MASK_KEY:
            return public_key(seed) == self.packages[dealer].mask_key
        return keys.seed_commitment(self.context1, dealer, seed) == self.dealings[dealer].self_seed


def unmask_totals(
    vectors: Sequence[VectorSpec],
    totals: Sequence[UInt32[np.ndarray, " _"]],
    masks: Sequence[Sequence[Mask]],
    threads: int,
) -> tuple[Int32[np.ndarray, " _"], ...]:
    """Each total without its masks, as signed numbers. The totals stay as they are."""
    return tuple(
        _unmasked(total, vector_masks, vector.ring_bits, threads)
        for vector, total, vector_masks in zip(vectors, totals, masks, strict=True)
    )


def _unmasked(
    total: UInt32[np.ndarray, " d"], masks: Sequence[Mask], ring_bits: int, threads: int
) -> Int32[np.ndarray, " d"]:
    result = np.empty(len(total), np.int32)
    removal = [mask.negated() for mask in masks]

    def take_off(start: int, stop: int) -> None:
        for piece, words in masked_pieces(total, removal, start, stop):
            lift(words, ring_bits, result[piece])

    spread(len(total), threads, take_off)
    return result
