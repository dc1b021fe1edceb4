"""Rounds on a sparse graph: parameters, exact sums, drop-outs, and coordinators that lie about the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import comb, log2
from typing import Any

import numpy as np
import pytest
from hostile_coordinator import package_of
from rounds import Mail, Rig, entropy, identity, make_rig, mark_of
from sparse_rounds import STAGES, SparseCoordinator, SparseStory, answer, make_sparse_rig, play_sparse

from privfm.errors import ProtocolError
from privfm.secagg import COORDINATOR, ClientPolicy, LedgerMark, Neighbours, run_round
from privfm.secagg.encoding import MessageError, Reader, Writer
from privfm.secagg.exchange import public_key
from privfm.secagg.framing import Message, Signed, SignedBody
from privfm.secagg.messages import Agreement, Deal, KeyPackage, Reveal, Seed, Survivors
from privfm.secagg.server import advertise
from privfm.secagg.sparse import check_policy, choose_neighbours, client, run_sparse_round, server, smallest_group
from privfm.secagg.sparse.client import sparse_context
from privfm.secagg.sparse.merkle import Tree, check_proof
from privfm.secagg.sparse.messages import Anchor, Choice, Evidence, Masking, Neighbourhood, SparseDeliveries
from privfm.secagg.sparse.parameters import LOG2_FAILURE, log2_tail
from privfm.secagg.stages import SparseStage


@pytest.mark.parametrize(("others", "marked", "drawn"), [(7, 3, 4), (8, 5, 5), (6, 0, 3), (6, 6, 2)])
def test_tails_agree_with_counting(others: int, marked: int, drawn: int) -> None:
    draws = list(combinations(range(others), drawn))
    for at_least in range(drawn + 2):
        hits = sum(sum(item < marked for item in draw) >= at_least for draw in draws)
        assert 2 ** log2_tail(others, marked, drawn, at_least) == pytest.approx(hits / len(draws))


@pytest.mark.parametrize(
    ("cohort", "corrupt", "dropped"), [(12, 1, 1), (120, 6, 6), (200, 20, 10), (1000, 100, 50), (1000, 100, 100)]
)
def test_chosen_graphs_fail_with_less_than_two_to_the_minus_forty(cohort: int, corrupt: int, dropped: int) -> None:
    graph = choose_neighbours(cohort, max_corrupt=corrupt, max_dropped=dropped)
    k, t = graph.degree, graph.threshold
    both_seeds = log2(cohort) + log2_tail(cohort - 1, corrupt, k, 2 * t - k)
    too_few = log2(cohort) + log2_tail(cohort - 1, dropped, k, k - t + 1)
    assert both_seeds <= LOG2_FAILURE
    assert too_few <= LOG2_FAILURE
    assert smallest_group(cohort, graph, corrupt) >= 2
    check_policy(ClientPolicy(corrupt, 2), cohort, graph)
    assert k < cohort - 1


def test_the_degree_grows_slowly_with_the_cohort() -> None:
    degrees = [choose_neighbours(n, max_corrupt=n // 20, max_dropped=n // 20).degree for n in (200, 2000, 20_000)]
    assert degrees[2] < 3 * degrees[0]


def test_no_sparse_graph_for_too_many_corrupt() -> None:
    with pytest.raises(ValueError, match="too many for a sparse graph"):
        choose_neighbours(20, max_corrupt=7, max_dropped=6)


def test_a_hospital_keeps_to_its_own_policy() -> None:
    rig = make_sparse_rig()
    strict = replace(rig, policy=ClientPolicy(5, 2))
    story = play_sparse(SparseCoordinator(strict))
    assert "does not withstand max_corrupt=5" in str(story.refusals["h00"])
    alone = replace(rig, policy=ClientPolicy(1, 13))
    assert "cohort of 12 is below 13" in str(play_sparse(SparseCoordinator(alone)).refusals["h00"])


def test_each_graph_is_played_by_its_own_package() -> None:
    sparse, complete = make_sparse_rig(), make_rig(5)
    with pytest.raises(ValueError, match=r"for privfm\.secagg\.sparse"):
        run_round(sparse.spec, sparse.parties(), entropy=entropy("c"))
    with pytest.raises(ValueError, match=r"for privfm\.secagg$"):
        run_sparse_round(complete.spec, complete.parties(), entropy=entropy("c"))
    with pytest.raises(ValueError, match=r"for privfm\.secagg\.sparse"):
        advertise(sparse.spec, {}, entropy=entropy("c"))
    with pytest.raises(ValueError, match="at most 100 in a complete graph"):
        make_rig(101)


@pytest.mark.parametrize("size", range(1, 18))
def test_every_leaf_has_a_proof_and_nothing_else_does(size: int) -> None:
    leaves = [bytes([index]) * (index % 3) for index in range(size)]
    tree = Tree(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.proof(index)
        check_proof(tree.root, size, index, leaf, proof)
        forged = [
            (size, index, leaf + b"x", proof),
            (size + 1, index, leaf, proof),
            (size, (index + 1) % size if size > 1 else 1, leaf, proof),
            (size, index, leaf, (*proof, bytes(32))),
            *([(size, index, leaf, proof[:-1]), (size, index, leaf, (bytes(32), *proof[1:]))] if proof else []),
        ]
        for case in forged:
            with pytest.raises(ProtocolError, match=r"in the tree|too short"):
                check_proof(tree.root, *case)


@pytest.mark.parametrize("stage", STAGES)
def test_drop_outs_at_any_stage_leave_an_exact_sum(stage: SparseStage) -> None:
    rig = make_sparse_rig()
    outcome = run_sparse_round(rig.spec, rig.parties(), entropy=entropy("c"), leaves={"h03": stage})
    early = STAGES.index(stage) <= STAGES.index(SparseStage.MASK)
    assert outcome.survivors == tuple(name for name in rig.names if name != "h03" or not early)
    np.testing.assert_array_equal(outcome.sums[0], rig.plain_sum(outcome.survivors))


@pytest.mark.parametrize("stage", STAGES)
def test_more_than_the_tolerated_end_the_round_clean(stage: SparseStage) -> None:
    rig = make_sparse_rig()
    with pytest.raises(ProtocolError, match=r"10 of 12 answered, need 11") as caught:
        run_sparse_round(rig.spec, rig.parties(), entropy=entropy("c"), leaves={"h03": stage, "h04": stage})
    assert caught.value.blamed == ()


@pytest.mark.slow
def test_a_larger_round_with_drop_outs_over_all_stages() -> None:
    rig = make_sparse_rig(24, corrupt=2, dropped=2)
    leaves = {"h03": SparseStage.CHOOSE, "h20": SparseStage.AGREE}
    outcome = run_sparse_round(rig.spec, rig.parties(), entropy=entropy("c"), leaves=leaves)
    np.testing.assert_array_equal(outcome.sums[0], rig.plain_sum(outcome.survivors))
    assert rig.spec.neighbours is not None
    assert rig.spec.neighbours.degree < 12


@pytest.mark.slow
def test_more_hospitals_than_a_complete_graph_takes() -> None:
    rig = make_sparse_rig(130, corrupt=3, dropped=10, length=100)
    names = [f"h{index:03d}" for index in range(100, 110)]
    leaves = {name: STAGES[index % 6] for index, name in enumerate(names)}
    outcome = run_sparse_round(rig.spec, rig.parties(), entropy=entropy("c"), leaves=leaves)
    np.testing.assert_array_equal(outcome.sums[0], rig.plain_sum(outcome.survivors))


def test_everybody_ends_with_one_transcript() -> None:
    story = play_sparse(SparseCoordinator(make_sparse_rig()))
    assert story.outcome is not None
    assert {state.transcript for state in story.states.values()} == {story.outcome.transcript}


def opened(story: SparseStory) -> Counter[tuple[str, Seed]]:
    counts: Counter[tuple[str, Seed]] = Counter()
    for message in story.sent.get(SparseStage.UNMASK, {}).values():
        counts.update((opening.dealer, opening.seed) for opening in Signed.decode(Reveal, message).body.openings)
    return counts


def test_one_seed_of_each_is_opened_by_its_neighbours_alone() -> None:
    rig = make_sparse_rig()
    counts = opened(play_sparse(SparseCoordinator(rig), leaves={"h03": SparseStage.MASK}))
    assert rig.spec.neighbours is not None
    assert {name for name, _ in counts} == set(rig.names)
    assert all(seed is (Seed.MASK_KEY if name == "h03" else Seed.SELF_MASK) for name, seed in counts)
    assert max(counts.values()) <= rig.spec.neighbours.degree


class Edits(SparseCoordinator):
    """Changes what hospitals are sent after one stage."""

    after: SparseStage

    def reply(self, stage: SparseStage, messages: Mail) -> Mail:
        mail = super().reply(stage, messages)
        return {name: self.edit(name, data, mail) for name, data in mail.items()} if stage is self.after else mail

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        raise NotImplementedError


class ShowsAnotherRoot(Edits):
    """Fixes another set of key packages than each hospital's own is in."""

    after = SparseStage.ADVERTISE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return replace(Anchor.decode(data), root=entropy("root")).encode()


class ShowsASmallKey(Edits):
    """Shows a key of its own that makes every secret with it predictable."""

    after = SparseStage.ADVERTISE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return replace(Anchor.decode(data), coordinator_key=bytes(32)).encode()


class PlantsAPackage(SparseCoordinator):
    """Builds the tree over a package of its own making in h05's place."""

    signer = "coordinator's own"
    sender = "h05"

    def collect(self, stage: SparseStage, messages: Mail) -> Any:
        state, mail = super().collect(stage, messages)
        if stage is not SparseStage.ADVERTISE:
            return state, mail
        planted = Signed.by(identity(self.signer), self.rig.spec.context0, self.body(state.packages))
        packages = {**state.packages, "h05": planted}
        tree = Tree([packages[name].encode() for name in self.rig.names])
        context1 = sparse_context(self.rig.spec.context0, tree.root)
        anchors = {
            name: Anchor(public_key(entropy("coordinator")), tree.root, tree.proof(place)).encode()
            for place, name in enumerate(self.rig.names)
        }
        return replace(state, packages=packages, tree=tree, context1=context1), anchors

    def body(self, packages: Any) -> KeyPackage:
        return replace(package_of("h05", self.rig).body, sender=self.sender)


class PlantsAnAccomplicesPackage(PlantsAPackage):
    """The same with h05's own signature, under a package that speaks for h06."""

    signer = "h05"
    sender = "h06"


class HidesANeighbour(Edits):
    """Says of a neighbour that is there that it is not."""

    after = SparseStage.CHOOSE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        first, *rest = Neighbourhood.decode(data).leaves
        return Neighbourhood((replace(first, package=b""), *rest)).encode()


class ReplacesANeighbour(Edits):
    """Shows others than those whom a hospital drew."""

    after = SparseStage.CHOOSE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return Neighbourhood(Neighbourhood.decode(data).leaves[1:]).encode()


class ShowsAnothersPackage(Edits):
    """Shows one neighbour's package in another's place."""

    after = SparseStage.CHOOSE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        first, second, *rest = Neighbourhood.decode(data).leaves
        return Neighbourhood((replace(first, package=second.package, proof=second.proof), second, *rest)).encode()


class SaysFewDealt(Edits):
    """Says that most of those drawn dealt nothing, to thin out a hospital's masks."""

    after = SparseStage.SHARE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        deliveries = SparseDeliveries.decode(data)
        return replace(deliveries, sharers=deliveries.sharers[:2]).encode()


class SaysAStrangerDealt(Edits):
    """Names a sharer that the hospital did not draw."""

    after = SparseStage.SHARE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        deliveries = SparseDeliveries.decode(data)
        return replace(deliveries, sharers=("a stranger", *deliveries.sharers)).encode()


class SwapsBoxes(Edits):
    """Gives a hospital a box meant for another."""

    after = SparseStage.SHARE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        deliveries = SparseDeliveries.decode(data)
        first, *rest = deliveries.items
        others = SparseDeliveries.decode(mail["h00" if name == "h01" else "h01"]).items
        return replace(deliveries, items=(replace(first, box=others[-1].box), *rest)).encode()


class DropsEveryNeighbour(Edits):
    """Declares those gone whom a hospital drew, so that it would stand alone."""

    after = SparseStage.MASK

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        rig = self.rig
        assert rig.spec.neighbours is not None
        holders = self.states[SparseStage.AGREE].shared.deals[name].dealing.body.holders
        gone = {entry.holder for entry in holders[: len(holders) - rig.spec.neighbours.threshold + 1]}
        return Survivors(tuple(peer for peer in mail if peer not in gone)).encode()


class TooFewSurvivors(Edits):
    """Asks for the sum of a few."""

    after = SparseStage.MASK

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return Survivors(tuple(sorted({name, *list(mail)[:9]}))).encode()


class OmitsTheReader(Edits):
    """Tells each hospital that it dropped out."""

    after = SparseStage.MASK

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return Survivors(tuple(peer for peer in mail if peer != name)).encode()


class TooFewAgreements(Edits):
    """Asks for shares before enough agreed."""

    after = SparseStage.AGREE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        evidence = Evidence.decode(data)
        return replace(evidence, agreements=evidence.agreements[:2]).encode()


class RepeatsAnAgreement(Edits):
    """Reaches the threshold by showing one agreement many times."""

    after = SparseStage.AGREE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        evidence = Evidence.decode(data)
        return replace(evidence, agreements=evidence.agreements[:1] * len(evidence.agreements)).encode()


class AgreementsOfOthers(Edits):
    """Shows agreements of hospitals that hold none of the reader's shares."""

    after = SparseStage.AGREE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        evidence = Evidence.decode(data)
        everybody = {item.body.sender: item for other in mail.values() for item in Evidence.decode(other).agreements}
        return replace(evidence, agreements=tuple(everybody[peer] for peer in sorted(everybody))).encode()


class ForgesAgreements(Edits):
    """Puts one hospital's agreement in another's name."""

    after = SparseStage.AGREE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        evidence = Evidence.decode(data)
        first, second, *rest = evidence.agreements
        forged = Signed(Agreement(second.body.sender), first.signature)
        return replace(evidence, agreements=(first, forged, *rest)).encode()


class NoMaskings(Edits):
    """Does not say with whom the dealers are masked."""

    after = SparseStage.AGREE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return replace(Evidence.decode(data), maskings=()).encode()


class ForgesMaskings(Edits):
    """Says that a dealer masked with the reader, in the dealer's name."""

    after = SparseStage.AGREE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        evidence = Evidence.decode(data)
        first, *rest = evidence.maskings
        forged = Signed(Masking(first.body.sender, (*first.body.peers, "zz")), first.signature)
        return replace(evidence, maskings=(forged, *rest)).encode()


ATTACKS = [
    (ShowsAnotherRoot, "not in the tree"),
    (ShowsASmallKey, "small order"),
    (HidesANeighbour, "not in the tree"),
    (ReplacesANeighbour, "not the neighbours drawn"),
    (ShowsAnothersPackage, "not in the tree"),
    (SaysFewDealt, "2 of the neighbours drawn dealt"),
    (SaysAStrangerDealt, "did not draw"),
    (SwapsBoxes, "is not the one it signed for"),
    (DropsEveryNeighbour, "survivors, need|of the neighbours drawn survived"),
    (TooFewSurvivors, "survivors, need 11"),
    (OmitsTheReader, "asked to agree that it dropped out"),
    (TooFewAgreements, "2 signed for these survivors, need 3"),
    (RepeatsAnAgreement, "do not ascend"),
    (AgreementsOfOthers, "does not wait for the agreement of"),
    (ForgesAgreements, "agree message does not verify"),
    (NoMaskings, "did not sign that it masked with"),
    (ForgesMaskings, "mask message does not verify"),
]


@pytest.mark.parametrize(("attack", "reason"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_a_coordinator_that_lies_is_blamed_and_is_opened_nothing(attack: type[Edits], reason: str) -> None:
    rig = make_sparse_rig()
    story = play_sparse(attack(rig))
    assert len(story.refusals) >= 7
    assert {error.blamed for error in story.refusals.values()} == {(COORDINATOR,)}
    with pytest.raises(ProtocolError, match=reason):
        raise next(iter(story.refusals.values()))
    assert opened(story) == {}


@pytest.mark.parametrize(
    ("attack", "reason"),
    [(PlantsAPackage, "does not verify"), (PlantsAnAccomplicesPackage, "the package of h05 speaks for h06")],
)
def test_a_planted_package_is_seen_by_everybody_who_drew_it(attack: type[PlantsAPackage], reason: str) -> None:
    rig = make_sparse_rig()
    story = play_sparse(attack(rig))
    assert "not in the tree" in str(story.refusals["h05"])
    drew = {
        name
        for name, data in story.sent[SparseStage.CHOOSE].items()
        if "h05" in Signed.decode(Choice, data).body.neighbours
    }
    assert drew
    for name in drew:
        assert story.refusals[name].blamed == (COORDINATOR,)
        assert reason in str(story.refusals[name])


class Isolates(SparseCoordinator):
    """Tells the holders of h00's shares one survivor set and everybody else one without those holders.

    If it worked, h00's self-mask would come out and so would the mask keys of everybody that it masked with.
    """

    def reply(self, stage: SparseStage, messages: Mail) -> Mail:
        mail = super().reply(stage, messages)
        if stage is SparseStage.MASK:
            without = Survivors(tuple(peer for peer in mail if peer not in self.victims())).encode()
            return {name: data if name in self.victims() | {"h00"} else without for name, data in mail.items()}
        if stage is SparseStage.AGREE:
            return {name: self.evidence(name, data, messages) for name, data in mail.items()}
        return mail

    def victims(self) -> set[str]:
        deals = self.states[SparseStage.AGREE].shared.deals
        return {entry.holder for entry in deals["h00"].dealing.body.holders}

    def evidence(self, name: str, data: bytes, messages: Mail) -> bytes:
        """The agreements of the reader's own side."""
        side = self.victims() | {"h00"}
        holders = (entry.holder for entry in self.states[SparseStage.AGREE].shared.deals[name].dealing.body.holders)
        signed = tuple(
            Signed.decode(Agreement, messages[peer])
            for peer in holders
            if peer in messages and (peer in side) == (name in side)
        )
        return replace(Evidence.decode(data), agreements=signed).encode()

    def collect(self, stage: SparseStage, messages: Mail) -> Any:
        if stage is SparseStage.AGREE:  # pass it off as a stage at which all agreed
            masked = self.states[SparseStage.AGREE]
            return server.agree(masked, agreements_of(masked))
        return super().collect(stage, messages)


def agreements_of(masked: server.Masked) -> Mail:
    return {name: Signed.by(identity(name), masked.context2, Agreement(name)).encode() for name in masked.survivors}


def test_a_hospital_is_not_isolated_by_declaring_its_neighbours_gone_to_the_rest() -> None:
    rig = make_rig(40, length=3, policy=ClientPolicy(0, 2), threshold=28, neighbours=Neighbours(8, 5))
    coordinator = Isolates(rig)
    story = play_sparse(coordinator)
    counts, victims = opened(story), coordinator.victims()
    recovered = {name for name in victims if counts[name, Seed.MASK_KEY] >= 5}
    assert recovered, "the attack should at least get this far"
    assert counts["h00", Seed.SELF_MASK] < 5


def test_a_restored_neighbour_is_refused() -> None:
    rig = make_sparse_rig()
    story = play_sparse(SparseCoordinator(rig))
    name = "h00"
    packages = story.mail[SparseStage.SHARE][name]
    drawn = Signed.decode(Choice, story.sent[SparseStage.CHOOSE][name]).body.neighbours
    newer = {drawn[0]: LedgerMark(mark_of(drawn[0]).counter + 1, bytes(32))}
    with pytest.raises(ProtocolError, match="went back") as caught:
        answer(rig, SparseStage.SHARE, name, story.before[SparseStage.SHARE][name], packages, newer)
    assert caught.value.blamed == (drawn[0],)


def test_neighbours_are_drawn_from_the_hospitals_own_entropy_after_the_root() -> None:
    rig = make_sparse_rig()
    honest = play_sparse(SparseCoordinator(rig))
    other = play_sparse(SparseCoordinator(rig), leaves={"h11": SparseStage.ADVERTISE})
    drawn = [Signed.decode(Choice, story.sent[SparseStage.CHOOSE]["h00"]).body.neighbours for story in (honest, other)]
    assert drawn[0] != drawn[1]


def mutations(message: bytes) -> Iterator[bytes]:
    yield message + b"\0"
    yield message[:-1]
    yield b""
    rng = np.random.default_rng(len(message))
    for bit in {*range(0, 48, 4), *rng.integers(0, 8 * len(message), 6).tolist()}:
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("stage", STAGES)
def test_tampered_messages_are_caught_on_both_sides(stage: SparseStage) -> None:
    rig = make_sparse_rig()
    coordinator = SparseCoordinator(rig)
    story = play_sparse(coordinator)
    for changed in mutations(story.sent[stage]["h01"]):
        result = coordinator.collect(stage, {**story.sent[stage], "h01": changed})
        faults = result.faults if stage is SparseStage.UNMASK else result[0].faults
        assert [fault.blamed for fault in faults] == [("h01",)]
    if stage is not SparseStage.ADVERTISE:
        skip = 34 if stage is SparseStage.CHOOSE else 0  # the coordinator's own key, which nobody signs for
        for changed in mutations(story.mail[stage]["h01"]):
            if changed[:2] + changed[skip:] != story.mail[stage]["h01"][:2] + story.mail[stage]["h01"][skip:]:
                with pytest.raises(ProtocolError) as caught:
                    answer(rig, stage, "h01", story.before[stage]["h01"], changed)
                assert caught.value.blamed == (COORDINATOR,)


def test_what_decodes_encodes_to_the_same_bytes() -> None:
    story = play_sparse(SparseCoordinator(make_sparse_rig()))
    kinds: dict[SparseStage, type[Message]] = {
        SparseStage.CHOOSE: Anchor,
        SparseStage.SHARE: Neighbourhood,
        SparseStage.MASK: SparseDeliveries,
        SparseStage.UNMASK: Evidence,
    }
    for stage, kind in kinds.items():
        message = story.mail[stage]["h00"]
        assert kind.decode(message).encode() == message
        for other in kinds.values():
            if other is not kind:
                with pytest.raises(MessageError, match="type"):
                    other.decode(message)


def loose_rig() -> Rig:
    """Few need to be there in all, many around each hospital."""
    return make_rig(12, length=5, policy=ClientPolicy(0, 2), threshold=5, neighbours=Neighbours(8, 6))


def test_a_hospital_whose_neighbours_are_absent_does_not_deal() -> None:
    absent = dict.fromkeys(("h07", "h08", "h09", "h10", "h11"), SparseStage.ADVERTISE)
    story = play_sparse(SparseCoordinator(loose_rig()), leaves=absent)
    assert any("of the neighbours drawn are there, need 6" in str(error) for error in story.refusals.values())


def test_a_hospital_whose_neighbours_did_not_survive_does_not_agree() -> None:
    story = play_sparse(DropsEveryNeighbour(loose_rig()))
    assert len(story.refusals) == 12
    assert "5 of the neighbours drawn survived, need 6" in str(story.refusals["h00"])


def test_a_sum_that_some_neighbourhood_cannot_open_names_whose() -> None:
    rig = loose_rig()
    silent = dict.fromkeys(("h07", "h08", "h09", "h10", "h11"), SparseStage.UNMASK)
    with pytest.raises(ProtocolError, match=r"opened their shares of h\d\d, need 6"):
        run_sparse_round(rig.spec, rig.parties(), entropy=entropy("c"), leaves=silent)


class PlantsACopiedKey(PlantsAPackage):
    """With h05's help: a package of h05 that shows h03's key."""

    signer = "h05"

    def body(self, packages: Any) -> KeyPackage:
        return replace(super().body(packages), mask_key=packages["h03"].body.mask_key)


def test_a_copied_key_among_neighbours_is_blamed_on_the_pair() -> None:
    rig = loose_rig()
    story = play_sparse(PlantsACopiedKey(rig))
    blamed = {error.blamed for name, error in story.refusals.items() if name != "h05"}
    assert ("h03", "h05") in blamed


class DeliversForAnother(Edits):
    """Passes on what was dealt to somebody else."""

    after = SparseStage.SHARE

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return mail["h00" if name == "h01" else "h01"]


class AddsASurvivor(Edits):
    """Counts a member of the roster that was not invited."""

    after = SparseStage.MASK

    def edit(self, name: str, data: bytes, mail: Mail) -> bytes:
        return Survivors((*Survivors.decode(data).names, "uninvited")).encode()


@pytest.mark.parametrize(
    ("attack", "reason"),
    [(DeliversForAnother, "is no neighbour"), (AddsASurvivor, "survivors that were not invited")],
)
def test_strangers_among_dealers_and_survivors_are_refused(attack: type[Edits], reason: str) -> None:
    story = play_sparse(attack(make_sparse_rig()))
    assert len(story.refusals) == 12
    assert {error.blamed for error in story.refusals.values()} == {(COORDINATOR,)}
    assert any(reason in str(error) for error in story.refusals.values())


LIAR = "h01"


def draws_fewer(coordinator: SparseCoordinator, sent: bytes) -> bytes:
    choice = Signed.decode(Choice, sent).body
    return sign(coordinator, replace(choice, neighbours=choice.neighbours[1:]))


def draws_itself(coordinator: SparseCoordinator, sent: bytes) -> bytes:
    choice = Signed.decode(Choice, sent).body
    drawn = tuple(sorted((LIAR, *choice.neighbours[1:])))
    return sign(coordinator, replace(choice, neighbours=drawn))


def deals_to_fewer(coordinator: SparseCoordinator, sent: bytes) -> bytes:
    deal = Deal.decode(sent)
    body = replace(deal.dealing.body, holders=deal.dealing.body.holders[1:])
    return Deal(Signed.by(identity(LIAR), context1(coordinator), body), deal.boxes[1:]).encode()


def masks_with_fewer(coordinator: SparseCoordinator, sent: bytes) -> bytes:
    reader = Reader(sent)
    masking = Signed.decode(Masking, reader.blob(10_000)).body
    head = Signed.by(identity(LIAR), context1(coordinator), replace(masking, peers=masking.peers[1:])).encode()
    return bytes(Writer().blob(head)) + sent[4 + int.from_bytes(sent[:4], "big") :]


def opens_less(coordinator: SparseCoordinator, sent: bytes) -> bytes:
    reveal = Signed.decode(Reveal, sent).body
    return sign_reveal(coordinator, replace(reveal, openings=reveal.openings[1:]))


def opens_a_wrong_share(coordinator: SparseCoordinator, sent: bytes) -> bytes:
    reveal = Signed.decode(Reveal, sent).body
    share = replace(reveal.openings[0].share, salt=bytes(32))
    return sign_reveal(
        coordinator, replace(reveal, openings=(replace(reveal.openings[0], share=share), *reveal.openings[1:]))
    )


def context1(coordinator: SparseCoordinator) -> bytes:
    found: bytes = coordinator.states[SparseStage.CHOOSE].context1
    return found


def sign(coordinator: SparseCoordinator, body: SignedBody) -> bytes:
    return Signed.by(identity(LIAR), context1(coordinator), body).encode()


def sign_reveal(coordinator: SparseCoordinator, reveal: Reveal) -> bytes:
    return Signed.by(identity(LIAR), coordinator.states[SparseStage.AGREE].context2, reveal).encode()


@pytest.mark.parametrize(
    ("stage", "lie", "reason"),
    [
        (SparseStage.CHOOSE, draws_fewer, "its number of neighbours"),
        (SparseStage.CHOOSE, draws_itself, "its number of neighbours"),
        (SparseStage.SHARE, deals_to_fewer, "not dealt to the neighbours it drew"),
        (SparseStage.MASK, masks_with_fewer, "masked with others than its neighbours"),
        (SparseStage.UNMASK, opens_less, "other shares than it was asked for"),
        (SparseStage.UNMASK, opens_a_wrong_share, "returns another share than"),
    ],
)
def test_a_hospital_that_lies_is_at_fault_and_the_others_go_on(
    stage: SparseStage, lie: Callable[[SparseCoordinator, bytes], bytes], reason: str
) -> None:
    rig = make_sparse_rig()
    coordinator = SparseCoordinator(rig)

    def edit(at: SparseStage, name: str, sent: bytes) -> bytes:
        return lie(coordinator, sent) if (at, name) == (stage, LIAR) else sent

    story = play_sparse(coordinator, edit=edit)
    assert story.outcome is not None
    assert [fault.blamed for fault in story.outcome.faults] == [(LIAR,)]
    assert reason in story.outcome.faults[0].reason
    np.testing.assert_array_equal(story.outcome.sums[0], rig.plain_sum(story.outcome.survivors))


@pytest.mark.parametrize("stays", [True, False])
def test_shares_of_another_seed_are_blamed_on_their_dealer(stays: bool) -> None:
    """Of the self-mask seed when it stays, of the mask-key seed when it goes."""
    rig = make_sparse_rig()
    coordinator = SparseCoordinator(rig)

    def edit(at: SparseStage, name: str, sent: bytes) -> bytes:
        if (at, name) != (SparseStage.SHARE, LIAR):
            return sent
        state = honest.before[SparseStage.SHARE][LIAR]
        dishonest = replace(state, before=replace(state.before, mask_seed=entropy("another")))
        _, lie = client.share(dishonest, story_mail, seen={})
        deal = Deal.decode(lie)
        body = replace(deal.dealing.body, self_seed=bytes(32))
        return replace(deal, dealing=Signed.by(identity(LIAR), state.context1, body)).encode()

    honest = play_sparse(SparseCoordinator(rig))
    story_mail = honest.mail[SparseStage.SHARE][LIAR]
    story = play_sparse(coordinator, edit=edit, leaves={} if stays else {LIAR: SparseStage.MASK})
    assert story.failure is not None
    assert story.failure.blamed == (LIAR,)
    assert "do not make the seed" in str(story.failure)


def test_union_bounds_are_exact_fractions() -> None:
    exact = Fraction(comb(3, 2) * comb(7, 1) + comb(3, 3), comb(10, 3))
    assert 2 ** log2_tail(10, 3, 3, 2) == pytest.approx(float(exact))
