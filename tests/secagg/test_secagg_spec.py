"""Parameters of a round: proved sound when they are made, every one of them in context0."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from rounds import entropy, make_rig, roster_of

from privfm.secagg import (
    ClientPolicy,
    LedgerMark,
    Neighbours,
    RoundSpec,
    VectorSpec,
    largest_max_corrupt,
    smallest_threshold,
)

BASE = make_rig(5).spec
VECTOR = BASE.vectors[0]


@pytest.mark.parametrize("ring_bits", [16, 24, 32])
@pytest.mark.parametrize("clients", [3, 5, 100])
def test_fitted_levels_are_the_most_that_cannot_wrap(clients: int, ring_bits: int) -> None:
    spec = VectorSpec.fit("v", 3, 1.0, clients=clients, ring_bits=ring_bits)
    assert 2 * clients * spec.levels < 2**ring_bits
    assert 2 * clients * (spec.levels + 1) >= 2**ring_bits


def test_a_round_whose_sum_could_wrap_cannot_be_described() -> None:
    too_fine = VectorSpec("v", 3, 1.0, VectorSpec.fit("v", 3, 1.0, clients=5).levels + 1)
    with pytest.raises(ValueError, match="the sum of 5 can wrap"):
        replace(BASE, vectors=(too_fine,))


CHANGES: dict[str, Any] = {
    "run": b"another run here",
    "round": 4,
    "attempt": 1,
    "plan_hash": entropy("other plan"),
    "roster": roster_of(6),
    "model_hash": entropy("other model"),
    "vectors": (replace(VECTOR, length=41),),
    "cohort": BASE.cohort[1:],
    "threshold": 5,
    "neighbours": Neighbours(3, 2),
}


@pytest.mark.parametrize("change", [{key: value} for key, value in CHANGES.items()], ids=CHANGES.keys())
def test_context0_covers(change: dict[str, Any]) -> None:
    if "cohort" in change:
        change = {**change, "threshold": 4}
    assert replace(BASE, **change).context0 != BASE.context0


def test_every_field_of_a_round_was_tried() -> None:
    assert set(CHANGES) == {field.name for field in fields(RoundSpec)}


@pytest.mark.parametrize(
    "change", [{"name": "w"}, {"length": 41}, {"clip": 2.0}, {"levels": 9}, {"ring_bits": 32}], ids=str
)
def test_context0_covers_each_field_of_a_vector(change: dict[str, Any]) -> None:
    assert replace(BASE, vectors=(replace(VECTOR, **change),)).context0 != BASE.context0


@pytest.mark.parametrize(
    "change",
    [
        {"run": b"short"},
        {"plan_hash": b""},
        {"model_hash": bytes(33)},
        {"round": -1},
        {"round": 2**64},
        {"attempt": 2**32},
        {"cohort": ("h01", "h00", "h02", "h03", "h04")},
        {"cohort": ("h00", "h00", "h02", "h03", "h04")},
        {"cohort": ("h00", "h01", "h02", "h03", "nobody")},
        {"threshold": 1},
        {"threshold": 6},
        {"neighbours": Neighbours(5, 3)},
        {"vectors": ()},
        {"vectors": (VECTOR, VECTOR)},
    ],
    ids=str,
)
def test_unsound_rounds(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"need|not in roster"):
        replace(BASE, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"length": 0},
        {"length": 2**32},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"clip": float("nan")},
        {"levels": 0},
        {"levels": 2**23},
        {"ring_bits": 20},
    ],
    ids=str,
)
def test_unsound_vectors(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="="):
        replace(VECTOR, **change)


@pytest.mark.parametrize("count", range(3, 101))
def test_the_rules_hold_for_the_default_threshold(count: int) -> None:
    threshold = smallest_threshold(count)
    corrupt = largest_max_corrupt(count, threshold)
    assert threshold >= 2 * count // 3 + 1
    assert threshold > 2 * count / 3
    assert 2 * threshold > count + corrupt
    assert threshold - corrupt >= 2
    assert not (2 * threshold > count + corrupt + 1 and threshold - corrupt - 1 >= 2)
    ClientPolicy(corrupt, 2).check(count, threshold)


def test_marks_go_forward() -> None:
    mark = LedgerMark(5, entropy("head"))
    assert mark.follows(mark)
    assert LedgerMark(6, entropy("other")).follows(mark)
    assert not LedgerMark(5, entropy("other")).follows(mark)
    assert not LedgerMark(4, entropy("head")).follows(mark)
    for counter, head in ((-1, bytes(32)), (2**64, bytes(32)), (0, b"")):
        with pytest.raises(ValueError, match=r"counter|head"):
            LedgerMark(counter, head)


def test_unsound_policies() -> None:
    for corrupt, cohort in ((-1, 2), (0, 1)):
        with pytest.raises(ValueError, match="max_corrupt"):
            ClientPolicy(corrupt, cohort)


def test_unsound_neighbours() -> None:
    for degree, threshold in ((3, 4), (3, 1)):
        with pytest.raises(ValueError, match="threshold="):
            Neighbours(degree, threshold)
