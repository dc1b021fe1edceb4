"""Coordinators that lie, each in one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rounds import Coordinator, Hospital, Mail, Rig, entropy, hospitals_of, identity, play

from privfm.secagg import LedgerMark
from privfm.secagg.exchange import public_key
from privfm.secagg.framing import Signed
from privfm.secagg.messages import Agreement, Agreements, Cohort, Deal, Deliveries, Delivery, KeyPackage, Survivors

Packages = tuple[Signed[KeyPackage], ...]

VICTIM = "h01"


def package_of(name: str, rig: Rig, *, signer: str | None = None, label: str = "forged") -> Signed[KeyPackage]:
    """A package in somebody's name with keys that the coordinator knows, signed by whoever it can sign as."""
    body = KeyPackage(
        name,
        public_key(entropy(label, name, "channel")),
        public_key(entropy(label, name, "mask")),
        LedgerMark(9, bytes(32)),
    )
    return Signed.by(identity(signer or "coordinator's own"), rig.spec.context0, body)


def edit_cohort(mail: Mail, edit: Callable[[Packages], list[Signed[KeyPackage]]]) -> Mail:
    def edited(data: bytes) -> bytes:
        cohort = Cohort.decode(data)
        packages = sorted(edit(cohort.packages), key=lambda package: package.body.sender)
        return replace(cohort, packages=tuple(packages)).encode()

    return {name: edited(data) for name, data in mail.items()}


class SubstitutesAKey(Coordinator):
    """Shows its own keys in a hospital's name, to hold both ends of every pairwise secret."""

    def cohorts(self, packages: Mail) -> Mail:
        honest = super().cohorts(packages)
        fake = package_of(VICTIM, self.rig)
        edited = edit_cohort(honest, lambda items: [fake if p.body.sender == VICTIM else p for p in items])
        return {name: honest[name] if name == VICTIM else data for name, data in edited.items()}


class AddsSybils(Coordinator):
    """Fills the cohort with hospitals of its own that nobody has heard of."""

    def cohorts(self, packages: Mail) -> Mail:
        sybils = [package_of(f"sybil{index}", self.rig, signer=f"sybil{index}") for index in range(20)]
        return edit_cohort(super().cohorts(packages), lambda items: [*items, *sybils])


class AddsAStranger(Coordinator):
    """Adds a single hospital outside the roster."""

    def cohorts(self, packages: Mail) -> Mail:
        sybil = package_of("sybil", self.rig, signer="sybil")
        return edit_cohort(super().cohorts(packages), lambda items: [*items, sybil])


class AddsAnUninvitedMember(Coordinator):
    """Adds a colluding member of the roster that is not invited to this round."""

    def cohorts(self, packages: Mail) -> Mail:
        extra = package_of("uninvited", self.rig, signer="uninvited")
        return edit_cohort(super().cohorts(packages), lambda items: [*items, extra])


class RepeatsAMember(Coordinator):
    """Lists one hospital twice, to weigh its shares double."""

    def cohorts(self, packages: Mail) -> Mail:
        return edit_cohort(super().cohorts(packages), lambda items: [*items, items[0]])


class ReplaysAnOlderRound(Coordinator):
    """Shows packages of an earlier round, whose secrets it may have learned since."""

    def cohorts(self, packages: Mail) -> Mail:
        older = self.rig.at(round=self.rig.spec.round - 1)
        old = Signed.decode(KeyPackage, Hospital(older, VICTIM).advertise())
        honest = super().cohorts(packages)
        edited = edit_cohort(honest, lambda items: [old if p.body.sender == VICTIM else p for p in items])
        return {name: honest[name] if name == VICTIM else data for name, data in edited.items()}


def without(name: str, packages: Packages) -> list[Signed[KeyPackage]]:
    return [package for package in packages if package.body.sender != name]


class OmitsTheReader(Coordinator):
    """Shows each hospital a cohort that it is not in."""

    def cohorts(self, packages: Mail) -> Mail:
        honest = super().cohorts(packages)
        mail: Mail = {}
        for reader, data in honest.items():
            mail |= edit_cohort({reader: data}, partial(without, reader))
        return mail


class ShowsTwoCohorts(Coordinator):
    """Shows some hospitals a cohort without one, to make two groups that do not know of each other."""

    def cohorts(self, packages: Mail) -> Mail:
        honest = super().cohorts(packages)
        fewer = edit_cohort(honest, lambda items: without("h00", items))
        return {name: fewer[name] if name in ("h01", "h02") else honest[name] for name in honest}

    def deliveries(self, deals: Mail) -> Mail:
        return relay_unchecked(deals)

    def survivors(self, uploads: Mail) -> Mail:
        return dict.fromkeys(uploads, Survivors(tuple(uploads)).encode())

    def answers(self, agreements: Mail) -> Mail:
        return {}


def relay_unchecked(deals: Mail) -> Mail:
    """What every hospital dealt, passed on whatever it is."""
    dealt = {name: Deal.decode(data) for name, data in sorted(deals.items())}
    mail = {}
    for holder in dealt:
        items = []
        for dealer, deal in dealt.items():
            for entry, box in zip(deal.dealing.body.holders, deal.boxes, strict=True):
                if entry.holder == holder != dealer:
                    items.append(Delivery(deal.dealing, box))
        mail[holder] = Deliveries(tuple(items)).encode()
    return mail


class SwapsBoxes(Coordinator):
    """Gives one hospital the box of another."""

    def deliveries(self, deals: Mail) -> Mail:
        honest = super().deliveries(deals)
        mine, other = Deliveries.decode(honest["h01"]).items, Deliveries.decode(honest["h02"]).items
        swapped = {item.dealing.body.sender: item.box for item in other}
        items = [replace(item, box=swapped.get(item.dealing.body.sender, item.box)) for item in mine]
        return {**honest, "h01": Deliveries(tuple(items)).encode()}


class RepeatsADealing(Coordinator):
    """Reaches the threshold of sharers by passing one dealing on many times."""

    def deliveries(self, deals: Mail) -> Mail:
        honest = super().deliveries(deals)
        return {name: Deliveries(Deliveries.decode(data).items[:1] * 4).encode() for name, data in honest.items()}


class TooFewSharers(Coordinator):
    """Passes on the shares of too few."""

    def deliveries(self, deals: Mail) -> Mail:
        honest = super().deliveries(deals)
        keep = self.rig.spec.threshold - 2
        return {name: Deliveries(Deliveries.decode(data).items[:keep]).encode() for name, data in honest.items()}


class KeepsOneOut(Coordinator):
    """Tells a hospital that it survived and the others that it did not, and shows each side its own agreements."""

    def survivors(self, uploads: Mail) -> Mail:
        honest = super().survivors(uploads)
        without = Survivors(tuple(name for name in honest if name != VICTIM)).encode()
        return {name: data if name == VICTIM else without for name, data in honest.items()}

    def answers(self, agreements: Mail) -> Mail:
        signed = {name: Signed.decode(Agreement, data) for name, data in agreements.items()}
        others = Agreements(tuple(item for name, item in signed.items() if name != VICTIM)).encode()
        return {name: Agreements((signed[name],)).encode() if name == VICTIM else others for name in signed}


class MixesAgreements(KeepsOneOut):
    """Tells the two sides different survivors, and shows everybody all the agreements it has."""

    def answers(self, agreements: Mail) -> Mail:
        signed = Agreements(tuple(Signed.decode(Agreement, data) for data in agreements.values())).encode()
        return dict.fromkeys(agreements, signed)


class ShowsTwoSurvivorSets(Coordinator):
    """Splits the hospitals between two survivor sets, to have both seeds of those in which the sets differ."""

    def survivors(self, uploads: Mail) -> Mail:
        names = tuple(super().survivors(uploads))
        first, second = (tuple(name for name in names if name != out) for out in (names[0], names[-1]))
        half = len(names) // 2
        return {name: Survivors(second if name in names[:half] else first).encode() for name in names}

    def answers(self, agreements: Mail) -> Mail:
        names = tuple(agreements)
        sides = names[: len(names) // 2], names[len(names) // 2 :]
        return {
            name: Agreements(tuple(Signed.decode(Agreement, agreements[peer]) for peer in side)).encode()
            for side in sides
            for name in side
        }


class SaysTheReaderLeft(Coordinator):
    """Asks each hospital to agree that it dropped out, so that it helps to open its own mask key."""

    def survivors(self, uploads: Mail) -> Mail:
        honest = super().survivors(uploads)
        return {name: Survivors(tuple(peer for peer in honest if peer != name)).encode() for name in honest}


class TooFewSurvivors(Coordinator):
    """Asks for the sum of too few."""

    def survivors(self, uploads: Mail) -> Mail:
        honest = super().survivors(uploads)
        few = tuple(honest)[: self.rig.spec.threshold - 1]
        return dict.fromkeys(few, Survivors(few).encode())


class RepeatsASurvivor(Coordinator):
    """Reaches the threshold by naming one hospital twice."""

    def survivors(self, uploads: Mail) -> Mail:
        honest = super().survivors(uploads)
        few = tuple(honest)[: self.rig.spec.threshold - 1]
        return dict.fromkeys(few, Survivors((*few, few[-1])).encode())


class AsksForOneWhoNeverShared(Coordinator):
    """Names a survivor that dealt no shares."""

    def deliveries(self, deals: Mail) -> Mail:
        return super().deliveries({name: data for name, data in deals.items() if name != "h04"})

    def survivors(self, uploads: Mail) -> Mail:
        honest = super().survivors(uploads)
        return dict.fromkeys(honest, Survivors((*honest, "h04")).encode())


class TooFewAgreements(Coordinator):
    """Asks for shares before enough have agreed."""

    def answers(self, agreements: Mail) -> Mail:
        few = [Signed.decode(Agreement, data) for data in agreements.values()][: self.rig.spec.threshold - 1]
        return dict.fromkeys(agreements, Agreements(tuple(few)).encode())


class RepeatsAnAgreement(Coordinator):
    """Reaches the threshold of agreements by showing one many times."""

    def answers(self, agreements: Mail) -> Mail:
        first = Signed.decode(Agreement, next(iter(agreements.values())))
        return dict.fromkeys(agreements, Agreements((first,) * len(agreements)).encode())


class ReplaysAgreements(Coordinator):
    """Shows what the same survivors signed in an earlier round."""

    def answers(self, agreements: Mail) -> Mail:
        older = self.rig.at(round=self.rig.spec.round - 1)
        old: Mail = {}

        class Remembers(Coordinator):
            def answers(self, agreements: Mail) -> Mail:
                old.update(super().answers(agreements))
                return {}

        play(Remembers(older), hospitals_of(older))
        return {name: old[name] for name in agreements}


class ShowsTwoKeys(Coordinator):
    """Colludes with a hospital that signs two key packages, and shows each to half of the others."""

    def cohorts(self, packages: Mail) -> Mail:
        honest = super().cohorts(packages)
        second = package_of(VICTIM, self.rig, signer=VICTIM)
        edited = edit_cohort(honest, lambda items: [second if p.body.sender == VICTIM else p for p in items])
        return {name: edited[name] if name in ("h03", "h04") else honest[name] for name in honest}

    def deliveries(self, deals: Mail) -> Mail:
        return relay_unchecked(deals)

    def survivors(self, uploads: Mail) -> Mail:
        return {}

    def answers(self, agreements: Mail) -> Mail:
        return {}


class ForgesAgreements(Coordinator):
    """Signs for those who did not agree."""

    def answers(self, agreements: Mail) -> Mail:
        context2 = self.masked.context2
        forged = [Signed.by(identity("coordinator's own"), context2, Agreement(name)) for name in self.masked.survivors]
        return dict.fromkeys(agreements, Agreements(tuple(forged)).encode())


class RelabelsAnAgreement(Coordinator):
    """Counts one hospital's signature as another's too."""

    def answers(self, agreements: Mail) -> Mail:
        items = [Signed.decode(Agreement, data) for data in agreements.values()]
        items[1] = replace(items[0], body=Agreement(items[1].body.sender))
        return dict.fromkeys(agreements, Agreements(tuple(items)).encode())
