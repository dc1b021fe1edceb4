"""A hospital that lies is blamed by the coordinator or by its peers, and cannot spoil a sum unnoticed."""

from __future__ import annotations

import hostile_hospital as hostile
import numpy as np
import pytest
from hostile_coordinator import package_of, relay_unchecked
from knowledge import opened
from replay import record
from rounds import Coordinator, Hospital, Mail, Rig, entropy, hospitals_of, identity, make_rig, mark_of, play

from privfm.errors import ProtocolError
from privfm.secagg import COORDINATOR, Client, Identity, Stage, server
from privfm.secagg.exchange import public_key
from privfm.secagg.framing import Signed
from privfm.secagg.messages import Cohort, KeyPackage

LIAR = "h01"
OTHERS = ("h00", "h02", "h03", "h04")


class Trusting(Coordinator):
    """Colludes with h01: lets everything through that hospitals sign."""

    def cohorts(self, packages: Mail) -> Mail:
        signed = {name: Signed.decode(KeyPackage, data) for name, data in packages.items()}
        self.advertised = server.Advertised(self.rig.spec, signed, (), self.secret)
        cohort = Cohort(public_key(self.secret), tuple(signed.values())).encode()
        return dict.fromkeys(signed, cohort)


def check_others_go_on(rig: Rig, outcome: server.Outcome | None, stage: Stage, reason: str) -> None:
    assert outcome is not None
    (fault,) = outcome.faults
    assert fault.blamed == (LIAR,)
    assert fault.stage is stage
    assert reason in fault.reason
    np.testing.assert_array_equal(outcome.sums[0], rig.plain_sum(outcome.survivors))


BAD_KEYS = {
    "zero": (bytes(32), "small order"),
    "one": ((1).to_bytes(32, "little"), "small order"),
    "order eight": ((0xB8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0).to_bytes(32, "little"), "small"),
    "p": ((2**255 - 19).to_bytes(32, "little"), "canonical"),
    "p + 2": ((2**255 - 17).to_bytes(32, "little"), "canonical"),
    "all ones": (b"\xff" * 32, "canonical"),
}


@pytest.mark.parametrize("use", ["mask_key", "channel_key"])
@pytest.mark.parametrize(("key", "reason"), BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_a_bad_key_is_refused_by_coordinator_and_peers(key: bytes, reason: str, use: str) -> None:
    rig = make_rig(5)
    story = play(Coordinator(rig), hospitals_of(rig, h01=hostile.ShowsKey(Hospital(rig, LIAR), key, use)))
    check_others_go_on(rig, story.outcome, Stage.ADVERTISE, reason)
    story = play(Trusting(rig), hospitals_of(rig, h01=hostile.ShowsKey(Hospital(rig, LIAR), key, use)))
    for name in OTHERS:
        assert story.refusals[name].blamed == (LIAR,)
        assert reason in str(story.refusals[name])


def test_a_non_canonical_twin_of_a_peers_key_is_refused() -> None:
    rig = make_rig(5)
    key = hostile.peers_key(Hospital(rig, "h03"))
    twin = key[:-1] + bytes([key[-1] | 0x80])
    story = play(Trusting(rig), hospitals_of(rig, h01=hostile.ShowsKey(Hospital(rig, LIAR), twin)))
    for name in OTHERS:
        assert story.refusals[name].blamed == (LIAR,)
        assert "canonical" in str(story.refusals[name])


def test_a_copied_key_is_blamed_on_the_pair() -> None:
    rig = make_rig(7)
    copy = hostile.peers_key(Hospital(rig, "h03"))
    story = play(Coordinator(rig), hospitals_of(rig, h01=hostile.ShowsKey(Hospital(rig, LIAR), copy)))
    assert story.outcome is not None
    assert [fault.blamed for fault in story.outcome.faults] == [(LIAR, "h03")]
    assert story.outcome.survivors == ("h00", "h02", "h04", "h05", "h06")
    story = play(Trusting(rig), hospitals_of(rig, h01=hostile.ShowsKey(Hospital(rig, LIAR), copy)))
    assert {story.refusals[name].blamed for name in OTHERS} == {(LIAR, "h03")}


def test_one_key_for_both_uses_is_refused() -> None:
    rig = make_rig(5)
    own = Signed.decode(KeyPackage, Hospital(rig, LIAR).advertise()).body.channel_key
    story = play(Coordinator(rig), hospitals_of(rig, h01=hostile.ShowsKey(Hospital(rig, LIAR), own)))
    check_others_go_on(rig, story.outcome, Stage.ADVERTISE, "same key")
    story = play(Trusting(rig), hospitals_of(rig, h01=hostile.ShowsKey(Hospital(rig, LIAR), own)))
    assert {story.refusals[name].blamed for name in OTHERS} == {(LIAR,)}


@pytest.mark.parametrize("kind", [hostile.RestoredBackup, hostile.ForkedLedger])
def test_peers_refuse_a_ledger_that_went_back(kind: type[hostile.Stepping]) -> None:
    rig = make_rig(5)
    hospitals = hospitals_of(rig, h01=kind(rig, LIAR))
    for name in OTHERS:
        hospitals[name].seen = {peer: mark_of(peer) for peer in rig.names}
    story = play(Coordinator(rig), hospitals)
    assert {story.refusals[name].blamed for name in OTHERS} == {(LIAR,)}
    assert "went back" in str(story.refusals["h00"])
    assert opened(story) == {}


def test_marks_of_peers_are_shown_for_keeping() -> None:
    rig = make_rig(5)
    hospitals = hospitals_of(rig)
    for hospital in hospitals.values():
        hospital.seen = {peer: mark_of(peer) for peer in rig.names}
    assert play(Coordinator(rig), hospitals).refusals == {}
    assert hospitals["h00"].client.marks == {peer: mark_of(peer).masked() for peer in rig.names}


def test_a_ledger_of_one_who_masked_has_to_stand_further() -> None:
    rig = make_rig(5)
    hospitals = hospitals_of(rig)
    for hospital in hospitals.values():
        hospital.seen = {"h01": mark_of("h01").masked()}
    story = play(Coordinator(rig), hospitals)
    assert all(story.refusals[name].blamed == ("h01",) for name in OTHERS)


@pytest.mark.parametrize(
    ("kind", "reason"), [(hostile.DealsOtherBoxes, "not the one committed to"), (hostile.DealsGarbage, "does not open")]
)
def test_a_badly_dealt_share_is_blamed_on_its_dealer(kind: type[hostile.Stepping], reason: str) -> None:
    rig = make_rig(5)
    story = play(Coordinator(rig), hospitals_of(rig, h01=kind(rig, LIAR)))
    assert set(story.refusals) == {"h02"}
    assert story.refusals["h02"].blamed == (LIAR,)
    assert reason in str(story.refusals["h02"])


def test_a_dealer_that_leaves_somebody_out_is_refused_by_coordinator_and_peers() -> None:
    rig = make_rig(5)
    story = play(Coordinator(rig), hospitals_of(rig, h01=hostile.DealsToFewer(rig, LIAR)))
    check_others_go_on(rig, story.outcome, Stage.SHARE, "not dealt to this cohort")

    class RelaysIt(Coordinator):
        def deliveries(self, deals: Mail) -> Mail:
            return relay_unchecked(deals)

        def survivors(self, uploads: Mail) -> Mail:
            return {}

        def answers(self, agreements: Mail) -> Mail:
            return {}

    story = play(RelaysIt(rig), hospitals_of(rig, h01=hostile.DealsToFewer(rig, LIAR)))
    assert {story.refusals[name].blamed for name in ("h00", "h02", "h03")} == {(COORDINATOR,)}
    assert "h01 did not deal to this cohort" in str(story.refusals["h00"])


def test_shares_of_another_self_mask_seed_are_blamed_on_their_dealer() -> None:
    rig = make_rig(5)
    story = play(Coordinator(rig), hospitals_of(rig, h01=hostile.DealsAnotherSeed(rig, LIAR)))
    assert story.outcome is None
    assert story.failure is not None
    assert story.failure.blamed == (LIAR,)
    assert "h01 dealt shares that do not make the seed" in str(story.failure)


def test_shares_of_another_mask_key_are_blamed_when_they_are_needed() -> None:
    rig = make_rig(5)

    class Leaves(Coordinator):
        def survivors(self, uploads: Mail) -> Mail:
            return super().survivors({name: data for name, data in uploads.items() if name != LIAR})

    assert play(Coordinator(rig), hospitals_of(rig, h01=hostile.DealsAnotherKey(rig, LIAR))).outcome is not None
    story = play(Leaves(rig), hospitals_of(rig, h01=hostile.DealsAnotherKey(rig, LIAR)))
    assert story.failure is not None
    assert story.failure.blamed == (LIAR,)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (hostile.ReturnsABadShare, "another share than h00 dealt"),
        (hostile.SwapsShares, "another share than h00 dealt"),
        (hostile.OpensTooLittle, "other shares than it was asked for"),
        (hostile.OpensTheOtherSeed, "other shares than it was asked for"),
    ],
)
def test_a_badly_opened_share_is_blamed_on_its_sender_and_not_used(kind: type[hostile.Stepping], reason: str) -> None:
    rig = make_rig(5)
    story = play(Coordinator(rig), hospitals_of(rig, h01=kind(rig, LIAR)))
    check_others_go_on(rig, story.outcome, Stage.UNMASK, reason)
    assert story.outcome is not None
    assert story.outcome.survivors == rig.names


def test_too_many_bad_openings_end_the_round_and_name_their_senders() -> None:
    rig = make_rig(5)
    liars = {name: hostile.ReturnsABadShare(rig, name) for name in ("h01", "h03")}
    story = play(Coordinator(rig), hospitals_of(rig, **liars))
    assert story.failure is not None
    assert story.failure.blamed == ("h01", "h03")
    assert "unmask: 3 of 5 answered, need 4" in str(story.failure)


def test_speaking_for_another_is_the_speakers_fault() -> None:
    rig = make_rig(5)

    class SpeaksForAnother(Hospital):
        def advertise(self) -> bytes:
            return Hospital(self.rig, "h02").advertise()

    story = play(Coordinator(rig), hospitals_of(rig, h01=SpeaksForAnother(rig, LIAR)))
    check_others_go_on(rig, story.outcome, Stage.ADVERTISE, "speaks for h02")


def test_an_upload_made_for_another_round_is_not_added() -> None:
    rig, earlier = make_rig(5), make_rig(5).at(round=2)
    hospitals = hospitals_of(earlier)
    old = play(Coordinator(earlier), hospitals).sent[Stage.MASK][LIAR]

    class Replays(Hospital):
        def mask(self, incoming: bytes) -> bytes:
            super().mask(incoming)
            return old

    story = play(Coordinator(rig), hospitals_of(rig, h01=Replays(rig, LIAR)))
    check_others_go_on(rig, story.outcome, Stage.MASK, "damaged or another party's")


def test_an_upload_counts_once_and_not_after_the_end() -> None:
    rig = make_rig(5)
    story = record(rig)
    total = server.MaskedSum(story.coordinator[Stage.MASK])
    uploads = story.sent[Stage.MASK]
    for name in (*rig.names, LIAR, "uninvited"):
        total.add(name, uploads.get(name, uploads[LIAR]))
    masked, _ = total.close()
    assert [fault.blamed for fault in masked.faults] == [(LIAR,), ("uninvited",)]
    assert masked.survivors == rig.names
    assert np.array_equal(masked.totals[0], story.coordinator[Stage.AGREE].totals[0])
    with pytest.raises(ValueError, match="the sum is closed"):
        total.add("h00", uploads["h00"])


def test_a_forged_package_is_a_fault() -> None:
    rig = make_rig(5)

    class Forges(Hospital):
        def advertise(self) -> bytes:
            return package_of(self.name, self.rig).encode()

    story = play(Coordinator(rig), hospitals_of(rig, h01=Forges(rig, LIAR)))
    check_others_go_on(rig, story.outcome, Stage.ADVERTISE, "does not verify")


def test_a_stranger_is_not_heard() -> None:
    rig = make_rig(5)
    packages = {name: Hospital(rig, name).advertise() for name in rig.names}
    packages["uninvited"] = package_of("uninvited", rig, signer="uninvited").encode()
    state, mail = server.advertise(rig.spec, packages, entropy=entropy("coordinator"))
    assert set(mail) == set(rig.names)
    assert [fault.blamed for fault in state.faults] == [("uninvited",)]


def test_an_identity_that_is_not_the_rosters_stays_at_home() -> None:
    rig = make_rig(5)
    impostor = Client(rig.spec, Identity.generate("h00", entropy("impostor")), rig.policy)
    with pytest.raises(ProtocolError, match="not in the round") as caught:
        impostor.advertise(mark_of("h00"), answered=None, entropy=entropy("x"))
    assert caught.value.blamed == (COORDINATOR,)
    assert identity("h00").public == rig.spec.roster.key_of("h00")
