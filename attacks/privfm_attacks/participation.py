"""Which hospitals' updates a combination of released sums lays open, decided exactly; and at what price in noise.

Sums of rounds with different survivors can be added and subtracted. A combination cancels a hospital if its update were
the same in every round; what is left is a weighted sum of the others. So the question is which coordinates a vector of
the row space of the participation matrix can be confined to. Ranks are taken modulo a prime, which can only
underestimate them: where one is lower than it was, fractions decide.

Source: Kerkouche et al. 2023, "Client-specific property inference against secure aggregation in federated learning"
(arXiv 2303.03908), for the matrix and its rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from privfm.plan import Plan

__all__ = ["Isolation", "Participation", "Search", "leaving_out_in_turn", "noise_factor", "search", "whole_cohort"]

PRIME = 2**31 - 1
MOST_SETS = 60_000
"""Sets of hospitals that a search looks at before it gives up."""

BATCH = 2_000


@dataclass(frozen=True)
class Participation:
    """Who is in which released sum.

    Args:
        hospitals: all of them, ascending.
        sums: for each released sum, whose updates it holds.
    """

    hospitals: tuple[str, ...]
    sums: tuple[frozenset[str], ...]

    @cached_property
    def matrix(self) -> Int64[np.ndarray, "sums hospitals"]:
        """1 where a hospital is in a sum."""
        rows = [[int(name in members) for name in self.hospitals] for members in self.sums]
        return np.array(rows, dtype=np.int64).reshape(len(self.sums), len(self.hospitals))

    @cached_property
    def independent(self) -> tuple[int, ...]:
        """Places of sums that no combination of earlier ones gives: as many as the rank, over the rationals."""
        basis: dict[int, list[Fraction]] = {}
        chosen = []
        for place, row in enumerate(self.matrix.tolist()):
            rest = _reduced([Fraction(value) for value in row], basis)
            lead = next((column for column, value in enumerate(rest) if value), None)
            if lead is not None:
                basis[lead] = [value / rest[lead] for value in rest]
                chosen.append(place)
        return tuple(chosen)

    @property
    def rank(self) -> int:
        """
        >>> Participation(("a", "b", "c"), (frozenset("abc"), frozenset("ab"), frozenset("abc"))).rank
        2
        """
        return len(self.independent)


def _reduced(row: list[Fraction], basis: Mapping[int, list[Fraction]]) -> list[Fraction]:
    for lead, known in basis.items():
        if row[lead]:
            factor = row[lead]
            row = [value - factor * other for value, other in zip(row, known, strict=True)]
    return row


@dataclass(frozen=True)
class Isolation:
    """A combination of sums in which few hospitals are left.

    Args:
        hospitals: whose updates are left.
        combination: whole numbers by the place of the sum.
    """

    hospitals: tuple[str, ...]
    combination: Mapping[int, int]

    def __str__(self) -> str:
        return " ".join(f"{factor:+d} x sum {place + 1}" for place, factor in self.combination.items())


@dataclass(frozen=True)
class Search:
    """What a search for the fewest hospitals found.

    Args:
        smallest: the combination that leaves the fewest, of those that were looked at; None without any sum.
        proved: no combination leaves fewer hospitals than this, a sum of none apart.
    """

    smallest: Isolation | None
    proved: int

    @property
    def complete(self) -> bool:
        return self.smallest is None or len(self.smallest.hospitals) <= self.proved


def search(participation: Participation, most_sets: int = MOST_SETS) -> Search:
    """Return the combination of sums that leaves the fewest hospitals.

    Hospitals that were always in the same sums cannot be told apart, so sets of such groups are tried, the smallest
    first. A set can be isolated if without its columns the matrix has a lower rank.

    Args:
        most_sets: give up after so many; what was found till then is in the result, and what is proved.

    >>> found = search(Participation(("a", "b", "c"), (frozenset("abc"), frozenset("ab"))))
    >>> found.smallest.hospitals, found.smallest.combination, found.complete
    (('c',), {0: 1, 1: -1}, True)
    """
    groups = _groups(participation)
    if not groups:
        return Search(None, 0)
    looked, known = 0, _smallest_sum_or_difference(participation)
    for size in range(1, len(known.hospitals)):
        sets = list(_sets_of(groups, size, most_sets - looked))
        looked += len(sets)
        found = _first_isolated(participation, sets)
        if found is not None:
            return Search(found, size)
        if looked >= most_sets:
            return Search(known, size)
    return Search(known, len(known.hospitals))


def _groups(participation: Participation) -> list[tuple[int, ...]]:
    """Hospitals, by place, that were in just the same sums; those in none left out."""
    alike: dict[bytes, list[int]] = {}
    for place, column in enumerate(participation.matrix.T):
        if column.any():
            alike.setdefault(column.tobytes(), []).append(place)
    return sorted((tuple(places) for places in alike.values()), key=len)


def _sets_of(groups: Sequence[tuple[int, ...]], size: int, most: int) -> Iterator[tuple[int, ...]]:
    """Unions of groups with `size` hospitals in all, at most `most` of them."""
    found, stack = 0, [((), 0)]  # type: tuple[int, list[tuple[tuple[int, ...], int]]]
    while stack and found < most:
        places, start = stack.pop()
        if len(places) == size:
            found += 1
            yield places
            continue
        for index in range(start, len(groups)):
            if len(places) + len(groups[index]) > size:
                break  # groups ascend in size
            stack.append(((*places, *groups[index]), index + 1))


def _smallest_sum_or_difference(participation: Participation) -> Isolation:
    """The best that one sum, or two, give: what a search that gives up falls back on."""
    matrix, names = participation.matrix, participation.hospitals
    best: Isolation | None = None
    distinct = np.unique(matrix, axis=0, return_index=True)[1].tolist()
    rows = [place for place in sorted(distinct) if matrix[place].any()]
    candidates = [({place: 1}, matrix[place]) for place in rows]
    candidates += [({a: 1, b: -1}, matrix[a] - matrix[b]) for a in rows for b in rows if a < b]
    for combination, left in candidates:
        hospitals = tuple(names[place] for place in np.flatnonzero(left))
        if best is None or len(hospitals) < len(best.hospitals):
            best = Isolation(hospitals, combination)
    if best is None:
        raise ValueError("sums: none holds anybody")
    return best


def _first_isolated(participation: Participation, sets: Sequence[tuple[int, ...]]) -> Isolation | None:
    rows = list(participation.independent)
    basis = participation.matrix[rows]
    for start in range(0, len(sets), BATCH):
        batch = sets[start : start + BATCH]
        kept = np.repeat(basis[None], len(batch), axis=0)
        for number, places in enumerate(batch):
            kept[number][:, list(places)] = 0
        for number in np.flatnonzero(_ranks(kept) < len(rows)).tolist():
            combination = _left_null_vector(kept[number].tolist())
            if combination is not None:
                return _isolation(participation, rows, combination)
    return None


def _isolation(participation: Participation, rows: Sequence[int], combination: Sequence[int]) -> Isolation:
    left = np.array(combination, dtype=object) @ participation.matrix[list(rows)]
    hospitals = tuple(name for name, value in zip(participation.hospitals, left, strict=True) if value)
    return Isolation(hospitals, {row: factor for row, factor in zip(rows, combination, strict=True) if factor})


def _ranks(matrices: Int64[np.ndarray, "b rows columns"]) -> Int64[np.ndarray, " b"]:
    """Ranks modulo a prime, all at once: at most the ranks over the rationals."""
    left, (count, rows, columns) = matrices % PRIME, matrices.shape
    ranks, each = np.zeros(count, dtype=np.int64), np.arange(count)
    for column in range(columns):
        free = (np.arange(rows) >= ranks[:, None]) & (left[:, :, column] != 0)
        has = free.any(axis=1)
        target = np.minimum(ranks, rows - 1)
        pivot = np.where(has, free.argmax(axis=1), target)
        left[each, target], left[each, pivot] = left[each, pivot], left[each, target]
        row = left[each, target]
        factors = np.where((np.arange(rows) > target[:, None]) & has[:, None], left[:, :, column], 0)
        scale = np.where(factors != 0, row[:, column][:, None], 1)
        left = (left * scale[:, :, None] % PRIME - factors[:, :, None] * row[:, None, :] % PRIME) % PRIME
        ranks += has
    return ranks


def _left_null_vector(matrix: Sequence[Sequence[int]]) -> list[int] | None:
    """Whole numbers, not all zero, with which the rows add up to zero; None if there are none."""
    basis: dict[int, tuple[list[Fraction], list[Fraction]]] = {}
    for place, given in enumerate(matrix):
        row = [Fraction(value) for value in given]
        made = [Fraction(int(other == place)) for other in range(len(matrix))]
        for lead, (known, how) in basis.items():
            if row[lead]:
                factor = row[lead]
                row = [value - factor * other for value, other in zip(row, known, strict=True)]
                made = [value - factor * other for value, other in zip(made, how, strict=True)]
        column = next((column for column, value in enumerate(row) if value), None)
        if column is None:
            return _whole(made)
        basis[column] = ([value / row[column] for value in row], [value / row[column] for value in made])
    return None


def _whole(values: Sequence[Fraction]) -> list[int]:
    """The same direction in the smallest whole numbers, the first of them positive."""
    scale = math.lcm(*(value.denominator for value in values))
    numbers = [int(value * scale) for value in values]
    divisor = math.gcd(*numbers) * (1 if next(number for number in numbers if number) > 0 else -1)
    return [number // divisor for number in numbers]


def noise_factor(participation: Participation, hospital: str) -> float:
    """Return how many times noisier a hospital's mean update is when isolated from sums than when seen by itself.

    Every hospital is taken to add the same noise in every round. Infinite if no combination isolates it. Only the
    factor is computed in floating point, never whether there is one.

    >>> round(noise_factor(Participation(("a", "b", "c"), (frozenset("abc"), frozenset("ab"))), "c"), 3)
    2.236
    """
    place, matrix = participation.hospitals.index(hospital), participation.matrix
    without = Participation(participation.hospitals, tuple(members - {hospital} for members in participation.sums))
    if without.rank == participation.rank:
        return math.inf
    used: Float64[np.ndarray, "sums hospitals"] = matrix[matrix.any(axis=1)].astype(np.float64)
    weighted = used / used.sum(axis=1, keepdims=True)  # a sum of n hospitals has n times the variance
    variance = np.linalg.pinv(used.T @ weighted, hermitian=True)[place, place]
    return math.sqrt(float(variance) * float(used[:, place].sum()))


def whole_cohort(plan: Plan, rounds: int | None = None) -> Participation:
    """What a plan provides: every hospital in every round's sum."""
    names = tuple(sorted(str(hospital.id) for hospital in plan.hospitals))
    return Participation(names, (frozenset(names),) * (rounds or plan.federation.rounds))


def leaving_out_in_turn(plan: Plan, rounds: int | None = None) -> Participation:
    """What a coordinator can bring about within the threshold: nobody is left out in one round, then each in turn."""
    names = tuple(sorted(str(hospital.id) for hospital in plan.hospitals))
    if plan.secagg.threshold is None or plan.secagg.threshold >= len(names):
        return whole_cohort(plan, rounds)
    turns = [frozenset(names), *(frozenset(names) - {name} for name in names)]
    count = rounds or plan.federation.rounds
    return Participation(names, tuple(turns[place % len(turns)] for place in range(count)))
