"""Hospitals that lie, each in one way. They hold valid identities; some collude with the coordinator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rounds import Hospital, entropy, identity, mark_of

from privfm.secagg import LedgerMark, client, keys
from privfm.secagg.encoding import Writer, digest
from privfm.secagg.exchange import exchange, seal_box
from privfm.secagg.framing import Signed
from privfm.secagg.messages import Cohort, Deal, Dealing, KeyPackage, Opening, Reveal, Seed, Share


class Stepping(Hospital):
    """Takes the pure steps itself, so that it can look into and change its own states."""

    state: Any = None

    def advertise(self) -> bytes:
        ready = client.Ready(self.rig.spec, identity(self.name), self.rig.policy)
        secret = entropy("round", self.name, self.rig.spec.number)
        self.state, sent = client.advertise(ready, mark_of(self.name), answered=None, entropy=secret)
        return sent

    def share(self, incoming: bytes) -> bytes:
        self.state, sent = client.share(self.state, incoming, seen=self.seen)
        return sent

    def mask(self, incoming: bytes) -> bytes:
        self.state, sent = client.mask(self.state, incoming, lambda: self.rig.levels[self.name])
        return bytes(sent)

    def agree(self, incoming: bytes) -> bytes:
        self.state, sent = client.agree(self.state, incoming)
        return sent

    def unmask(self, incoming: bytes) -> bytes:
        self.state, sent = client.unmask(self.state, incoming)
        return sent


class ShowsKey(Stepping):
    """Advertises a key of its choice, properly signed."""

    def __init__(self, base: Hospital, key: bytes, use: str = "mask_key") -> None:
        super().__init__(base.rig, base.name)
        self.key, self.use = key, use

    def advertise(self) -> bytes:
        honest = Signed.decode(KeyPackage, super().advertise())
        package = Signed.by(identity(self.name), self.rig.spec.context0, replace(honest.body, **{self.use: self.key}))
        self.state = replace(self.state, package=package)
        return package.encode()


def peers_key(peer: Hospital) -> bytes:
    """The mask key that a hospital will advertise."""
    return Signed.decode(KeyPackage, Hospital(peer.rig, peer.name).advertise()).body.mask_key


class RestoredBackup(Stepping):
    """Runs from a backup: its ledger stands where it stood three entries ago."""

    def advertise(self) -> bytes:
        ready = client.Ready(self.rig.spec, identity(self.name), self.rig.policy)
        now = mark_of(self.name)
        mark = LedgerMark(now.counter - 3, entropy("older"))
        self.state, sent = client.advertise(ready, mark, answered=None, entropy=entropy("restored"))
        return sent


class ForkedLedger(Stepping):
    """Runs two copies of its ledger, which part at the same entry."""

    def advertise(self) -> bytes:
        ready = client.Ready(self.rig.spec, identity(self.name), self.rig.policy)
        mark = LedgerMark(mark_of(self.name).counter, entropy("another head"))
        self.state, sent = client.advertise(ready, mark, answered=None, entropy=entropy("forked"))
        return sent


class DealsOtherBoxes(Stepping):
    """Commits to one share for h02 and seals another, or seals nothing that opens."""

    garbage = False

    def share(self, incoming: bytes) -> bytes:
        deal = Deal.decode(super().share(incoming))
        cohort = Cohort.decode(incoming)
        peer = next(package.body for package in cohort.packages if package.body.sender == "h02")
        key = keys.channel_key(
            exchange(self.state.channel_seed, peer.channel_key), self.state.context1, self.name, "h02"
        )
        out = Writer()
        for _ in Seed:
            Share(bytes(33), bytes(32)).write(out)
        box = bytes(146) if self.garbage else seal_box(key, bytes(out))
        return resigned(self, deal, "h02", box).encode()


class DealsGarbage(DealsOtherBoxes):
    """Seals something for h02 that does not open."""

    garbage = True


def resigned(hospital: Stepping, deal: Deal, holder: str, box: bytes) -> Deal:
    """The deal with another box for one holder, and a signature that says so."""
    body = deal.dealing.body
    place = [entry.holder for entry in body.holders].index(holder)
    holders = list(body.holders)
    holders[place] = replace(holders[place], box=digest("box", box))
    dealing: Signed[Dealing] = Signed.by(
        identity(hospital.name), hospital.state.context1, replace(body, holders=tuple(holders))
    )
    boxes = list(deal.boxes)
    boxes[place] = box
    hospital.state = replace(hospital.state, dealing=dealing)
    return Deal(dealing, tuple(boxes))


class DealsToFewer(Stepping):
    """Leaves h04 out of its dealing, properly signed."""

    def share(self, incoming: bytes) -> bytes:
        deal = Deal.decode(super().share(incoming))
        body = deal.dealing.body
        kept = tuple(entry for entry in body.holders if entry.holder != "h04")
        dealing = Signed.by(identity(self.name), self.state.context1, replace(body, holders=kept))
        self.state = replace(self.state, dealing=dealing)
        return Deal(dealing, deal.boxes[: len(kept)]).encode()


class DealsAnotherSeed(Stepping):
    """Deals, with consistent commitments, shares of seeds other than the ones it uses."""

    seed = Seed.SELF_MASK

    def share(self, incoming: bytes) -> bytes:
        wrong = entropy("another seed")
        honest = self.state
        if self.seed is Seed.MASK_KEY:
            self.state = replace(self.state, mask_seed=wrong)
        sent = super().share(incoming)
        self.state = replace(self.state, mask_seed=honest.mask_seed)
        if self.seed is Seed.SELF_MASK:
            body = replace(self.state.dealing.body, self_seed=entropy("commitment to another"))
            dealing = Signed.by(identity(self.name), self.state.context1, body)
            self.state = replace(self.state, dealing=dealing)
            return replace(Deal.decode(sent), dealing=dealing).encode()
        return sent


class DealsAnotherKey(DealsAnotherSeed):
    """The same for the mask-key seed, which comes out when it drops out."""

    seed = Seed.MASK_KEY


class EditsReveal(Stepping):
    """Opens other shares than it holds, or others than it was asked for, properly signed."""

    def edit(self, openings: tuple[Opening, ...]) -> tuple[Opening, ...]:
        raise NotImplementedError

    def unmask(self, incoming: bytes) -> bytes:
        context2 = self.state.context2
        body = Signed.decode(Reveal, super().unmask(incoming)).body
        return Signed.by(identity(self.name), context2, replace(body, openings=self.edit(body.openings))).encode()


class ReturnsABadShare(EditsReveal):
    """Changes one bit of one share."""

    def edit(self, openings: tuple[Opening, ...]) -> tuple[Opening, ...]:
        share = openings[0].share
        value = share.value[:-1] + bytes([share.value[-1] ^ 1])
        return (replace(openings[0], share=replace(share, value=value)), *openings[1:])


class SwapsShares(EditsReveal):
    """Returns one dealer's share as another's."""

    def edit(self, openings: tuple[Opening, ...]) -> tuple[Opening, ...]:
        first, second, *rest = openings
        return (replace(first, share=second.share), replace(second, share=first.share), *rest)


class OpensTooLittle(EditsReveal):
    """Leaves one dealer out."""

    def edit(self, openings: tuple[Opening, ...]) -> tuple[Opening, ...]:
        return openings[1:]


class OpensTheOtherSeed(EditsReveal):
    """Opens a survivor's mask-key share."""

    def edit(self, openings: tuple[Opening, ...]) -> tuple[Opening, ...]:
        return (replace(openings[0], seed=Seed.MASK_KEY), *openings[1:])
