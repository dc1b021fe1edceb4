"""The JSON vectors: unchanged, and enough by themselves to replay everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vectors import all_vectors, encode

from privfm.errors import ProtocolError
from privfm.secagg import (
    Client,
    ClientPolicy,
    Identity,
    LedgerMark,
    Roster,
    RoundSpec,
    Stage,
    VectorSpec,
    fingerprint,
    quantise,
    server,
)
from privfm.secagg.curves import check_x25519
from privfm.secagg.encoding import MessageError
from privfm.secagg.shamir import check_share, recover

FOLDER = Path(__file__).parents[1] / "vectors"
ROUNDS = ["round_of_three", "round_with_a_drop_out"]


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_bytes())


def test_the_files_have_not_changed() -> None:
    """If they must, so must the protocol's version. `python tests/simulators/vectors.py` writes them anew."""
    made = {f"{name}.json": encode(vectors) for name, vectors in all_vectors().items()}
    assert {path.name: path.read_bytes() for path in FOLDER.glob("*.json")} == made


def test_shamir_vectors() -> None:
    vectors = load("shamir")
    for case in vectors["cases"]:
        threshold = len(case["coefficients"]) + 1
        shares = {int(point): bytes.fromhex(share) for point, share in case["shares"].items()}
        assert recover(shares, threshold) == bytes.fromhex(case["seed"])
    for case in vectors["refused_shares"]:
        with pytest.raises(MessageError):
            check_share(bytes.fromhex(case["share"]))


def test_quantisation_vectors() -> None:
    vectors = load("quantisation")
    values = np.frombuffer(bytes.fromhex(vectors["values_float32"]), "<f4")
    spec = VectorSpec("update", len(values), vectors["clip"], vectors["levels"])
    assert quantise(values, spec, bytes.fromhex(vectors["entropy"])).tolist() == vectors["result"]


def test_refused_public_keys() -> None:
    for case in load("derivation")["refused_public_keys"]:
        with pytest.raises(MessageError):
            check_x25519(bytes.fromhex(case["key"]))


class Replay:
    """A round rebuilt from its vector alone."""

    def __init__(self, vector: Any) -> None:
        self.vector = vector
        fields = vector["spec"]
        self.spec = RoundSpec(
            run=bytes.fromhex(fields["run"]),
            round=fields["round"],
            attempt=fields["attempt"],
            plan_hash=bytes.fromhex(fields["plan_hash"]),
            roster=Roster.from_json(json.dumps(fields["roster"]).encode()),
            model_hash=bytes.fromhex(fields["model_hash"]),
            vectors=tuple(VectorSpec(**entry) for entry in fields["vectors"]),
            cohort=tuple(fields["cohort"]),
            threshold=fields["threshold"],
        )
        self.coordinator: dict[Stage, Any] = {}

    def client(self, name: str) -> Client:
        identity = Identity(name, bytes.fromhex(self.vector["hospitals"][name]["identity_seed"]))
        return Client(self.spec, identity, ClientPolicy(**self.vector["policy"]))

    def answer(self, client: Client, name: str, stage: Stage, incoming: bytes) -> bytes:
        own = self.vector["hospitals"][name]
        if stage is Stage.ADVERTISE:
            mark = LedgerMark(own["mark"]["counter"], bytes.fromhex(own["mark"]["head"]))
            return client.advertise(mark, answered=None, entropy=bytes.fromhex(own["entropy"]))
        if stage is Stage.SHARE:
            return client.share(incoming, seen={})
        if stage is Stage.MASK:
            return bytes(client.mask(incoming, lambda: [np.array(levels, np.int32) for levels in own["levels"]]))
        return client.agree(incoming) if stage is Stage.AGREE else client.unmask(incoming)

    def collect(self, stage: Stage, messages: dict[str, bytes]) -> Any:
        if stage is Stage.ADVERTISE:
            return server.advertise(self.spec, messages, entropy=bytes.fromhex(self.vector["coordinator_entropy"]))
        steps: dict[Stage, Any] = {
            Stage.SHARE: server.share,
            Stage.MASK: server.mask,
            Stage.AGREE: server.agree,
            Stage.UNMASK: server.unmask,
        }
        return steps[stage](self.coordinator[stage], messages)

    def messages(self, stage: Stage, kind: str) -> dict[str, bytes]:
        return {name: bytes.fromhex(data) for name, data in self.vector["stages"][stage][kind].items()}

    def run(self) -> server.Outcome:
        """The whole round, every message compared."""
        clients = {name: self.client(name) for name in self.spec.cohort}
        mail: dict[str, bytes] = dict.fromkeys(clients, b"")
        for stage in Stage:
            answers = {name: self.answer(clients[name], name, stage, mail[name]) for name in mail}
            sent = self.messages(stage, "sent")
            assert {name: answers[name] for name in sent} == sent
            result = self.collect(stage, sent)
            if stage is Stage.UNMASK:
                assert isinstance(result, server.Outcome)
                return result
            following = list(Stage)[list(Stage).index(stage) + 1]
            self.coordinator[following], mail = result
            assert mail == self.messages(following, "incoming")
        raise AssertionError


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_replay_byte_for_byte(name: str) -> None:
    vector = load(name)
    replay = Replay(vector)
    assert replay.spec.context0.hex() == vector["context0"]
    assert replay.spec.roster.digest.hex() == vector["roster_digest"]
    assert fingerprint(replay.spec.roster.digest) == vector["roster_fingerprint"]
    outcome = replay.run()
    assert list(outcome.survivors) == vector["survivors"]
    assert [total.tolist() for total in outcome.sums] == vector["sums"]
    assert outcome.transcript.hex() == vector["transcript"]


def test_refused_messages_blame_whom_they_should() -> None:
    vector = load("round_of_three")
    replay = Replay(vector)
    replay.run()
    for case in vector["refused"]:
        stage, message = Stage(case["stage"]), bytes.fromhex(case["message"])
        with pytest.raises(ProtocolError) as caught:
            give(replay, case, stage, message)
        assert list(caught.value.blamed) == case["blamed"], case["comment"]


def give(replay: Replay, case: Any, stage: Stage, message: bytes) -> None:
    """Hand the message to its receiver, at the stage where it is due."""
    name = case["receiver"]
    if name == "coordinator":
        replay.collect(stage, {**replay.messages(stage, "sent"), case["sender"]: message})
        return
    client = replay.client(name)
    for earlier in Stage:
        if earlier is stage:
            break
        replay.answer(client, name, earlier, replay.messages(earlier, "incoming").get(name, b""))
    replay.answer(client, name, stage, message)
