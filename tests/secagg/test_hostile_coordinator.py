"""A coordinator that lies is caught by the hospitals it lies to, blamed, and never holds both seeds of anybody."""

from __future__ import annotations

import re
from dataclasses import replace

import hostile_coordinator as hostile
import pytest
from knowledge import lying_open, opened
from replay import record
from rounds import Coordinator, Hospital, entropy, hospitals_of, make_rig, mark_of, play

from privfm.errors import ProtocolError
from privfm.secagg import COORDINATOR, ClientPolicy, Stage, client, server
from privfm.secagg.messages import Cohort, Seed, Survivors

EVERYBODY = ("h00", "h01", "h02", "h03", "h04")

# the attack, the hospitals that must see through it, and what one of them says
ATTACKS = [
    (hostile.SubstitutesAKey, ("h00", "h02", "h03", "h04"), "does not verify"),
    (hostile.AddsSybils, EVERYBODY, "sybil0.* not invited"),
    (hostile.AddsAStranger, EVERYBODY, "sybil not invited"),
    (hostile.AddsAnUninvitedMember, EVERYBODY, "uninvited not invited"),
    (hostile.RepeatsAMember, EVERYBODY, "do not ascend"),
    (hostile.ReplaysAnOlderRound, ("h00", "h02", "h03", "h04"), "does not verify"),
    (hostile.OmitsTheReader, EVERYBODY, "h00 is not the one it sent"),
    (hostile.ShowsTwoCohorts, EVERYBODY[1:], "did not deal to this cohort|is no peer in this cohort"),
    (hostile.SwapsBoxes, ("h01",), "not the one it signed for h01"),
    (hostile.RepeatsADealing, EVERYBODY, "do not ascend"),
    (hostile.TooFewSharers, EVERYBODY, "3 sharers, need 4"),
    (hostile.MixesAgreements, EVERYBODY, "signature over the agree message does not verify"),
    (hostile.ShowsTwoSurvivorSets, EVERYBODY, "2 signed for these survivors|asked to agree that it dropped out"),
    (hostile.SaysTheReaderLeft, EVERYBODY, "is asked to agree that it dropped out"),
    (hostile.TooFewSurvivors, ("h00", "h01", "h02"), "3 survivors, need 4"),
    (hostile.RepeatsASurvivor, ("h00", "h01", "h02"), "do not ascend"),
    (hostile.AsksForOneWhoNeverShared, ("h00", "h01", "h02", "h03"), "h04 did not share"),
    (hostile.TooFewAgreements, EVERYBODY, "3 signed for these survivors, need 4"),
    (hostile.RepeatsAnAgreement, EVERYBODY, "do not ascend"),
    (hostile.ReplaysAgreements, EVERYBODY, "signature over the agree message does not verify"),
    (hostile.ShowsTwoKeys, EVERYBODY, "signature over the share message does not verify"),
    (hostile.ForgesAgreements, EVERYBODY, "signature over the agree message does not verify"),
    (hostile.RelabelsAnAgreement, EVERYBODY, "signature over the agree message does not verify"),
]


@pytest.mark.parametrize(("attack", "lied_to", "reason"), ATTACKS, ids=[kind.__name__ for kind, _, _ in ATTACKS])
def test_every_hospital_lied_to_blames_the_coordinator_and_opens_nothing(
    attack: type[Coordinator], lied_to: tuple[str, ...], reason: str
) -> None:
    rig = make_rig(5)
    story = play(attack(rig), hospitals_of(rig))
    assert set(story.refusals) >= set(lied_to)
    assert {error.blamed for error in story.refusals.values()} == {(COORDINATOR,)}
    assert any(re.search(reason, str(error)) for error in story.refusals.values())
    assert lying_open(story, rig.names, rig.spec.threshold, colluding=2) == []
    if attack is not hostile.SwapsBoxes:  # there the other four go on without the fifth
        assert opened(story) == {}


def test_a_hospital_kept_out_stays_masked_although_the_others_finish() -> None:
    rig = make_rig(5)
    story = play(hostile.KeepsOneOut(rig), hospitals_of(rig))
    assert set(story.refusals) == {hostile.VICTIM}
    assert opened(story)[hostile.VICTIM, Seed.MASK_KEY] == 4
    assert opened(story)[hostile.VICTIM, Seed.SELF_MASK] == 0
    assert lying_open(story, rig.names, rig.spec.threshold, colluding=2) == []


def test_a_predictable_key_of_the_coordinators_own_is_refused() -> None:
    rig = make_rig(5)

    class ShowsASmallKey(Coordinator):
        def cohorts(self, packages: dict[str, bytes]) -> dict[str, bytes]:
            mail = super().cohorts(packages)
            return {
                name: replace(Cohort.decode(data), coordinator_key=bytes(32)).encode() for name, data in mail.items()
            }

    story = play(ShowsASmallKey(rig), hospitals_of(rig))
    assert {error.blamed for error in story.refusals.values()} == {(COORDINATOR,)}
    assert Stage.MASK not in story.sent


@pytest.mark.parametrize("count", [5, 7, 10])
def test_two_survivor_sets_never_both_find_enough_signers(count: int) -> None:
    rig = make_rig(count)
    story = play(hostile.ShowsTwoSurvivorSets(rig), hospitals_of(rig))
    assert opened(story) == {}


def test_two_models_have_no_hospital_in_common() -> None:
    rig = make_rig(5)
    other = rig.at(model_hash=entropy("another model"))
    hospitals = {name: Hospital(other if name == "h02" else rig, name) for name in rig.names}

    class ShowsTwoModels(Coordinator):
        def cohorts(self, packages: dict[str, bytes]) -> dict[str, bytes]:
            mail = super().cohorts(packages)
            assert self.advertised.faults[0].blamed == ("h02",)
            return {**mail, "h02": mail["h00"]}

    story = play(ShowsTwoModels(rig), hospitals)
    assert story.refusals["h02"].blamed == (COORDINATOR,)
    assert story.outcome is not None
    assert story.outcome.survivors == ("h00", "h01", "h03", "h04")


def test_a_round_is_not_played_twice() -> None:
    rig = make_rig(5)
    for number in ((3, 0), (3, 1), (4, 0)):
        with pytest.raises(ProtocolError, match="not newer") as caught:
            rig.client("h00").advertise(mark_of("h00"), answered=number, entropy=entropy("again"))
        assert caught.value.blamed == (COORDINATOR,)
    assert rig.client("h00").advertise(mark_of("h00"), answered=(2, 9), entropy=entropy("again"))


def test_each_stage_is_answered_once() -> None:
    rig = make_rig(5)
    seen: dict[str, bytes] = {}

    class Remembers(Coordinator):
        def survivors(self, uploads: dict[str, bytes]) -> dict[str, bytes]:
            seen.update(super().survivors(uploads))
            return seen

    hospitals = hospitals_of(rig)
    story = play(Remembers(rig), hospitals)
    assert story.outcome is not None
    without = Survivors(EVERYBODY[:-1]).encode()
    for name, hospital in hospitals.items():
        assert hospital.client.stage is None
        for step in (hospital.share, hospital.mask, hospital.agree, hospital.unmask):
            with pytest.raises(ProtocolError, match="due is nothing") as caught:
                step(without if step == hospital.agree else seen[name])
            assert caught.value.blamed == (COORDINATOR,)


def test_a_step_out_of_order_is_refused_and_changes_nothing() -> None:
    rig = make_rig(5)

    class AsksAhead(Coordinator):
        def cohorts(self, packages: dict[str, bytes]) -> dict[str, bytes]:
            for hospital in hospitals.values():
                with pytest.raises(ProtocolError, match="asked to agree, due is share"):
                    hospital.agree(Survivors(EVERYBODY).encode())
                with pytest.raises(ProtocolError, match="asked to advertise, due is share"):
                    hospital.advertise()
            return super().cohorts(packages)

    hospitals = hospitals_of(rig)
    story = play(AsksAhead(rig), hospitals)
    assert story.refusals == {}
    assert story.outcome is not None


def test_a_failed_step_closes_a_hospital() -> None:
    rig = make_rig(5)
    hospital = Hospital(rig, "h00")
    hospital.advertise()
    for reason in ("message ends", "due is nothing"):
        with pytest.raises(ProtocolError, match=reason):
            hospital.share(b"")
    assert hospital.client.stage is None


@pytest.mark.parametrize(
    ("count", "threshold", "policy", "reason"),
    [
        (5, 3, ClientPolicy(0, 2), "threshold 3 of 5 is below 4"),
        (5, 4, ClientPolicy(3, 2), "does not withstand max_corrupt=3"),
        (10, 7, ClientPolicy(4, 2), "does not withstand max_corrupt=4"),
        (3, 3, ClientPolicy(2, 2), "does not withstand max_corrupt=2"),
        (5, 4, ClientPolicy(1, 6), "cohort of 5 is below 6"),
    ],
)
def test_a_hospital_keeps_to_its_own_policy(count: int, threshold: int, policy: ClientPolicy, reason: str) -> None:
    rig = make_rig(count, threshold=threshold, policy=policy)
    with pytest.raises(ProtocolError, match=reason) as caught:
        Hospital(rig, "h00").advertise()
    assert caught.value.blamed == (COORDINATOR,)


def test_the_policy_holds_for_the_cohort_that_came_not_the_one_invited() -> None:
    rig = make_rig(6, threshold=5, policy=ClientPolicy(1, 6))
    hospitals = {name: Hospital(rig, name) for name in rig.names[:5]}
    story = play(Coordinator(rig), hospitals)
    assert set(story.refusals) == set(hospitals)
    assert "cohort of 5 is below 6" in str(story.refusals["h00"])


def test_a_minimum_above_the_threshold_binds_the_survivors() -> None:
    rig = make_rig(5, policy=ClientPolicy(1, 5))

    class LosesOne(Coordinator):
        def survivors(self, uploads: dict[str, bytes]) -> dict[str, bytes]:
            return super().survivors({name: data for name, data in uploads.items() if name != "h04"})

    story = play(LosesOne(rig), hospitals_of(rig))
    assert "4 survivors, need 5" in str(story.refusals["h00"])
    assert Stage.UNMASK not in story.sent or opened(story) == {}


def test_a_minimum_above_the_threshold_binds_the_sharers_before_anything_is_computed() -> None:
    rig = make_rig(5, policy=ClientPolicy(1, 5))

    class LosesADeal(Coordinator):
        def deliveries(self, deals: dict[str, bytes]) -> dict[str, bytes]:
            return super().deliveries({name: data for name, data in deals.items() if name != "h04"})

    story = play(LosesADeal(rig), hospitals_of(rig))
    assert "4 sharers, need 5" in str(story.refusals["h00"])
    assert not story.sent.get(Stage.MASK)


def test_another_party_does_not_choose_the_length_of_an_error() -> None:
    rig = make_rig(5)

    class InvitesACrowd(Coordinator):
        def cohorts(self, packages: dict[str, bytes]) -> dict[str, bytes]:
            honest = Cohort.decode(super().cohorts(packages)["h00"])
            first = honest.packages[0]
            crowd = [replace(first, body=replace(first.body, sender=f"s{k:05d}" + "x" * 58)) for k in range(500)]
            message = Cohort(honest.coordinator_key, (*honest.packages, *crowd)).encode()
            return dict.fromkeys(packages, message)

    story = play(InvitesACrowd(rig), hospitals_of(rig))
    assert "and 497 more not invited" in str(story.refusals["h00"])
    assert len(str(story.refusals["h00"])) < 500


def test_a_hospital_has_one_fault_however_much_it_sends() -> None:
    recording = record(make_rig(5))
    total = server.MaskedSum(recording.coordinator[Stage.MASK])
    for _ in range(9):
        total.add("h01", b"")
    for name, upload in recording.sent[Stage.MASK].items():
        if name != "h01":
            total.add(name, upload)
    masked, _ = total.close()
    assert [fault.blamed for fault in masked.faults] == [("h01",)]


def test_vectors_agreed_on_before_are_not_summed_with_others() -> None:
    rig = make_rig(5)
    hospitals = hospitals_of(rig)

    class Earlier(Hospital):
        def agree(self, incoming: bytes) -> bytes:
            return self.client.agree(incoming, bound_to=self.earlier)

        earlier: tuple[str, ...] = EVERYBODY[:-1]

    hospitals["h00"] = Earlier(rig, "h00")
    story = play(Coordinator(rig), hospitals)
    assert "agreed on before, with other survivors" in str(story.refusals["h00"])
    same = Earlier(rig, "h00")
    same.earlier = EVERYBODY
    assert play(Coordinator(rig), hospitals_of(rig, h00=same)).refusals == {}


def test_one_seed_of_each_dealer_is_opened_never_both() -> None:
    rig = make_rig(5)

    class LosesOne(Coordinator):
        def survivors(self, uploads: dict[str, bytes]) -> dict[str, bytes]:
            return super().survivors({name: data for name, data in uploads.items() if name != "h04"})

    story = play(LosesOne(rig), hospitals_of(rig))
    expected = {(name, Seed.SELF_MASK): 4 for name in EVERYBODY[:-1]} | {("h04", Seed.MASK_KEY): 4}
    assert opened(story) == expected


def test_states_do_not_show_secrets() -> None:
    rig = make_rig(5)
    ready = client.Ready(rig.spec, rig.client("h00")._state.identity, rig.policy)  # type: ignore[attr-defined]
    secret = entropy("secret")
    state, _ = client.advertise(ready, mark_of("h00"), answered=None, entropy=secret)
    for value in (secret, state.channel_seed, state.mask_seed):
        assert repr(value) not in repr(state)
        assert value.hex() not in repr(state)
