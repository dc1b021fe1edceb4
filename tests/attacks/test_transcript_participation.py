"""Which hospitals a combination of sums lays open is decided exactly: against every set, for small federations."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privfm_attacks.participation import (
    Participation,
    leaving_out_in_turn,
    noise_factor,
    search,
    whole_cohort,
)

from privfm.federation.planning import complete_plan
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan


def plan_of(hospitals: int, threshold: int | None = None, rounds: int = 20) -> Plan:
    sections = {"privacy": {"epsilon": 8.0}, "federation": {"rounds": rounds}, "secagg": {"threshold": threshold}}
    names = [HospitalId(f"h{place}") for place in range(hospitals)]
    return complete_plan(parse_plan(sections), dict.fromkeys(names, 50), 0.3)


def of(*sums: str) -> Participation:
    return Participation(tuple(sorted(set("".join(sums)))), tuple(frozenset(each) for each in sums))


def rank(rows: list[list[int]]) -> int:
    """By elimination with fractions, the plainest way."""
    left, found = [[Fraction(value) for value in row] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((row for row in left[found:] if row[column]), None)
        if pivot is None:
            continue
        left.remove(pivot)
        left.insert(found, pivot)
        for place in range(found + 1, len(left)):
            factor = left[place][column] / pivot[column]
            left[place] = [value - factor * other for value, other in zip(left[place], pivot, strict=True)]
        found += 1
    return found


def fewest(participation: Participation) -> int:
    """The size of the smallest set whose columns' removal lowers the rank, among all sets."""
    matrix, hospitals = participation.matrix, range(len(participation.hospitals))
    whole = rank(matrix.tolist())
    sets = chain.from_iterable(combinations(hospitals, size) for size in range(1, len(hospitals) + 1))
    return next(len(chosen) for chosen in sets if rank(np.delete(matrix, chosen, axis=1).tolist()) < whole)


sums_of_seven = st.lists(st.frozensets(st.sampled_from("abcdefg"), min_size=1), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(sums_of_seven)
def test_the_fewest_are_found(sums: list[frozenset[str]]) -> None:
    participation = Participation(tuple("abcdefg"), tuple(sums))
    assert participation.rank == rank(participation.matrix.tolist())
    found = search(participation)
    assert found.complete
    assert found.smallest is not None
    assert len(found.smallest.hospitals) == fewest(participation)
    left = sum(factor * participation.matrix[place] for place, factor in found.smallest.combination.items())
    assert tuple(np.array(list("abcdefg"))[np.flatnonzero(left)]) == found.smallest.hospitals


@pytest.mark.parametrize(
    ("sums", "hospitals"),
    [
        (("abcde", "abcd"), "e"),
        (("abcd", "bcde"), "ae"),
        (("abcde", "abcde", "abcde"), "abcde"),
        (("ab", "bc", "ac"), "a"),  # no two of them do
        (("abc", "abd", "acd", "bcd"), "a"),
        (("abcdefg", "abc"), "abc"),
        (("abcd", "cdef", "abef"), "ab"),
    ],
)
def test_planted_isolations(sums: tuple[str, ...], hospitals: str) -> None:
    found = search(of(*sums))
    assert found.complete
    assert found.smallest is not None
    assert len(found.smallest.hospitals) == len(hospitals)
    if len(sums) == 2:
        assert "".join(found.smallest.hospitals) == hospitals


def test_nothing_summed_nothing_isolated() -> None:
    assert search(Participation(("a", "b"), ())).smallest is None
    assert search(Participation(("a", "b"), (frozenset(),))).smallest is None


def test_a_search_that_gives_up_says_what_it_proved() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"h{place:02d}" for place in range(30))
    sums = tuple(frozenset(np.array(names)[rng.random(30) < 0.7].tolist()) for _ in range(12))
    found = search(Participation(names, sums), most_sets=3_000)
    assert found.smallest is not None
    assert not found.complete
    assert found.proved < len(found.smallest.hospitals)


def test_a_hundred_hospitals_with_drop_outs_take_no_time() -> None:
    names = tuple(f"h{place:03d}" for place in range(100))
    sums = tuple(frozenset(names) - {names[place], names[place + 1]} for place in range(0, 40, 2))
    found = search(Participation(names, sums))
    assert found.complete
    assert found.smallest is not None
    assert len(found.smallest.hospitals) == 4


def test_what_isolation_costs_in_noise() -> None:
    assert noise_factor(of("abc", "ab"), "c") == pytest.approx(math.sqrt(3 + 2))
    assert noise_factor(of("abc", "abc", "ab", "ab"), "c") == pytest.approx(math.sqrt(3 + 2))
    assert noise_factor(of("a"), "a") == pytest.approx(1.0)
    assert noise_factor(of("abc", "abc"), "a") == math.inf


def test_a_plan_is_judged_before_it_runs() -> None:
    plan = plan_of(8)
    assert whole_cohort(plan).rank == 1
    worst = leaving_out_in_turn(plan)
    assert worst.rank == 8
    assert min(len(members) for members in worst.sums) >= (plan.secagg.threshold or 0)
    found = search(worst).smallest
    assert found is not None
    assert len(found.hospitals) == 1
    assert leaving_out_in_turn(plan_of(8, threshold=8)).rank == 1
    assert leaving_out_in_turn(plan_of(3)).rank == 1
