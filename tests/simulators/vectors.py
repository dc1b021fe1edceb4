"""Test vectors for other implementations: what goes in, every byte that comes out, and what must be refused.

`python tests/simulators/vectors.py` writes tests/vectors/*.json anew; a test checks that they have not changed.
Bytes are hexadecimal. Entropy that a real hospital takes from its operating system is part of each vector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from replay import STAGES, Recording, record
from rounds import Rig, entropy, identity, make_rig, mark_of

from privfm.secagg import ClientPolicy, Stage, VectorSpec, fingerprint, keys, quantise
from privfm.secagg.exchange import exchange, public_key, seal_box
from privfm.secagg.framing import Signed
from privfm.secagg.masks import Mask, masked_pieces
from privfm.secagg.messages import KeyPackage
from privfm.secagg.ring import pack, packed_bytes
from privfm.secagg.shamir import COEFFICIENT_BYTES, PRIME, split

FOLDER = Path(__file__).parents[1] / "vectors"

Json = dict[str, Any]


def shamir_vectors() -> Json:
    coefficients = [(entropy("coefficient", index) * 2)[:COEFFICIENT_BYTES] for index in range(3)]
    cases = []
    for comment, seed, count, points in (
        ("any two of three", entropy("seed"), 1, (1, 2, 3)),
        ("any four of five", entropy("seed"), 3, (1, 2, 3, 4, 5)),
        ("the largest seed", b"\xff" * 32, 1, (1, 2)),
        ("a threshold of one gives the seed itself", entropy("seed"), 0, (1, 2)),
    ):
        shares = split(seed, points, coefficients[:count])
        cases.append(
            {
                "comment": comment,
                "seed": seed.hex(),
                "coefficients": [value.hex() for value in coefficients[:count]],
                "shares": {str(point): share.hex() for point, share in zip(points, shares, strict=True)},
            }
        )
    refused = [
        {"comment": "one byte short", "share": bytes(32).hex()},
        {"comment": "the prime itself", "share": PRIME.to_bytes(33, "big").hex()},
        {"comment": "all ones", "share": (b"\xff" * 33).hex()},
    ]
    return {"prime": str(PRIME), "cases": cases, "refused_shares": refused}


def derivation_vectors() -> Json:
    """Keys of a pair of hospitals from their X25519 seeds and a context."""
    low, high, context = entropy("low"), entropy("high"), entropy("context1")
    shared = exchange(low, public_key(high))
    vectors = [VectorSpec("update", 1000, 1.0, levels=100), VectorSpec("control", 7, 1.0, levels=100)]
    return {
        "low": {"name": "h00", "seed": low.hex(), "public": public_key(low).hex()},
        "high": {"name": "h01", "seed": high.hex(), "public": public_key(high).hex()},
        "context1": context.hex(),
        "shared": shared.hex(),
        "channel_h00_to_h01": keys.channel_key(shared, context, "h00", "h01").hex(),
        "channel_h01_to_h00": keys.channel_key(shared, context, "h01", "h00").hex(),
        "upload_tags_of_h00": keys.tag_key(shared, context, "h00").hex(),
        "pair_masks": [mask.key.hex() for mask in keys.pair_masks(shared, context, "h00", "h01", vectors)],
        "self_masks_of_h00": [mask.key.hex() for mask in keys.self_masks(low, context, "h00", vectors)],
        "vector_lengths": [vector.length for vector in vectors],
        "box_of_a_text": seal_box(keys.channel_key(shared, context, "h00", "h01"), b"text").hex(),
        "refused_public_keys": [
            {"comment": "zero", "key": bytes(32).hex()},
            {"comment": "p", "key": (2**255 - 19).to_bytes(32, "little").hex()},
            {"comment": "9 + p, a second spelling of 9", "key": (2**255 - 10).to_bytes(32, "little").hex()},
            {"comment": "9 with the high bit", "key": (9 + 2**255).to_bytes(32, "little").hex()},
            {"comment": "order 8", "key": "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"},
        ],
    }


def mask_vectors() -> Json:
    """Levels with two masks, packed in each ring."""
    levels = np.array([0, 1, -1, 8_000_000, -8_000_000, 12345], np.int32)
    plus, minus = Mask(entropy("plus"), 1), Mask(entropy("minus"), -1)
    packed = {}
    for ring_bits in (16, 24, 32):
        block = np.empty(packed_bytes(len(levels), ring_bits), np.uint8)
        for _, words in masked_pieces(levels.view(np.uint32), [plus, minus], 0, len(levels)):
            pack(words, ring_bits, block)
        packed[str(ring_bits)] = block.tobytes().hex()
    return {"levels": levels.tolist(), "added": plus.key.hex(), "subtracted": minus.key.hex(), "packed": packed}


def quantisation_vectors() -> Json:
    values = [0.0, 0.5, -0.5, 1.0, -1.0, 7.0, -7.0, 0.123456789, -1e-9, 3e-7]
    spec = VectorSpec("update", len(values), 1.0, levels=1_677_721)
    secret = entropy("rounding")
    levels = quantise(np.array(values, np.float32), spec, secret)
    return {
        "values_float32": np.array(values, "<f4").tobytes().hex(),
        "clip": spec.clip,
        "levels": spec.levels,
        "entropy": secret.hex(),
        "result": levels.tolist(),
    }


def round_vectors(rig: Rig, lost: dict[Stage, str], comment: str) -> Json:
    """A whole round: parameters, each hospital's input, and every message."""
    story = record(rig, lost=lost)
    spec = rig.spec
    packages = [Signed.decode(KeyPackage, data) for data in story.sent[Stage.ADVERTISE].values()]
    context1 = keys.cohort_context(spec.context0, packages)
    return {
        "comment": comment,
        "spec": {
            "run": spec.run.hex(),
            "round": spec.round,
            "attempt": spec.attempt,
            "plan_hash": spec.plan_hash.hex(),
            "roster": json.loads(spec.roster.to_json()),
            "model_hash": spec.model_hash.hex(),
            "vectors": [vars(vector) for vector in spec.vectors],
            "cohort": list(spec.cohort),
            "threshold": spec.threshold,
        },
        "policy": vars(rig.policy),
        "coordinator_entropy": entropy("coordinator").hex(),
        "hospitals": {name: hospital_input(rig, name) for name in rig.names},
        "roster_digest": spec.roster.digest.hex(),
        "roster_fingerprint": fingerprint(spec.roster.digest),
        "context0": spec.context0.hex(),
        "context1": context1.hex(),
        "context2": keys.survivors_context(context1, story.outcome.survivors).hex(),
        "stages": {stage.value: stage_messages(story, stage) for stage in STAGES},
        "survivors": list(story.outcome.survivors),
        "sums": [total.tolist() for total in story.outcome.sums],
        "transcript": story.outcome.transcript.hex(),
        "refused": refused_messages(story) if not lost else [],
    }


def hospital_input(rig: Rig, name: str) -> Json:
    mark = mark_of(name)
    return {
        "identity_seed": entropy("identity", name).hex(),
        "public": identity(name).public.hex(),
        "entropy": entropy("round", name, rig.spec.number).hex(),
        "mark": {"counter": mark.counter, "head": mark.head.hex()},
        "levels": [levels.tolist() for levels in rig.levels[name]],
    }


def stage_messages(story: Recording, stage: Stage) -> Json:
    return {
        "incoming": {name: data.hex() for name, data in story.incoming[stage].items() if data},
        "sent": {name: data.hex() for name, data in story.sent[stage].items()},
    }


def refused_messages(story: Recording) -> list[Json]:
    """One failure each: who receives what instead of the message above, and whom it blames."""

    def case(comment: str, stage: Stage, receiver: str, message: bytes, blamed: str, sender: str = "") -> Json:
        fields = {"comment": comment, "stage": stage.value, "receiver": receiver, "message": message.hex()}
        return {**fields, "blamed": [blamed], **({"sender": sender} if sender else {})}

    def flipped(data: bytes, at: int) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    sent, incoming = story.sent, story.incoming
    cases = [
        case("a key is changed", Stage.SHARE, "h00", flipped(incoming[Stage.SHARE]["h00"], -70), "coordinator"),
        case(
            "the last signature is changed",
            Stage.UNMASK,
            "h00",
            flipped(incoming[Stage.UNMASK]["h00"], -1),
            "coordinator",
        ),
        case("a box is another hospital's", Stage.MASK, "h00", incoming[Stage.MASK]["h02"], "coordinator"),
        case("the survivors of nobody", Stage.AGREE, "h00", b"\x01\x07" + bytes(4), "coordinator"),
        case("a trailing byte", Stage.AGREE, "h00", incoming[Stage.AGREE]["h00"] + b"\0", "coordinator"),
        case("version 2", Stage.AGREE, "h00", b"\x02" + incoming[Stage.AGREE]["h00"][1:], "coordinator"),
    ]
    for stage in STAGES:
        cases.append(case("cut short", stage, "coordinator", sent[stage]["h01"][:-1], "h01", "h01"))
        cases.append(case("one bit changed", stage, "coordinator", flipped(sent[stage]["h01"], -1), "h01", "h01"))
        cases.append(case("another's message", stage, "coordinator", sent[stage]["h02"], "h01", "h01"))
    return cases


def all_vectors() -> Mapping[str, Json]:
    policy = ClientPolicy(0, 2)
    return {
        "shamir": shamir_vectors(),
        "derivation": derivation_vectors(),
        "masks": mask_vectors(),
        "quantisation": quantisation_vectors(),
        "round_of_three": round_vectors(make_rig(3, length=4, policy=policy), {}, "three hospitals, nobody leaves"),
        "round_with_a_drop_out": round_vectors(
            make_rig(5, length=3, policy=policy, ring_bits=16, vectors=2),
            {Stage.MASK: "h03"},
            "five hospitals; the upload of h03 is lost, so its mask key is recovered",
        ),
    }


def encode(vectors: Json) -> bytes:
    return (json.dumps(vectors, indent=1) + "\n").encode()


def main() -> None:
    for name, vectors in all_vectors().items():
        (FOLDER / f"{name}.json").write_bytes(encode(vectors))


if __name__ == "__main__":
    main()
